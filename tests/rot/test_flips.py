"""One bit flipped anywhere in a store: every range is right or a named error, the check names it, a repair mends it.

Some hundreds of flips in all; with ``KITFS_CAMPAIGN`` more than 20 000.
"""

import random
import time

import msgspec
import pytest

from kitfs.digest import CHECKSUM_SIZE, Digest
from kitfs.layer.checkpoints import SpanMap, count_directory_values
from kitfs.store import schema
from kitfs.store.records import MemberRecord, encode_value
from kitfs.store.stamp import stamp_of
from kitfs.store.store import Store

FLIPS = 8
CAMPAIGN_FLIPS = 600
REPAIRS_ONE_IN = 6  # of flips that lose something: a repair, and what an import puts back


def never(*_):
    """No range may be an error."""
    return False


def always(*_):
    """Every range of the layer may be an error."""
    return True


@pytest.fixture(autouse=True)
def no_members(specimen):
    """Readers decode, unless a test plants members."""
    specimen.drop_members()


@pytest.fixture
def campaign(rot, specimen, record_verdicts, request):
    """``campaign(kind, make, weight)``: examines flips that ``make(rng, number)`` gives, and records them."""

    def run(kind, make, *, share=1.0, repairs_one_in=1):
        count = round((CAMPAIGN_FLIPS if rot.CAMPAIGN else FLIPS) * share)
        rng = random.Random(f"{kind} 20261125")
        started_s = time.monotonic()
        verdicts = []
        for number in range(count):
            flip = make(rng, number)
            verdicts.append(rot.examine(specimen, flip, rng, repairs=number % repairs_one_in == 0))
        with Store.open(specimen.home) as store:
            assert rot.check(store, read_data=True).problems == []
        record_verdicts(kind, verdicts, started_s)

    return run


def borders(layer, spans):
    """Bytes of a published layer where something begins or ends."""
    size = len(layer.published)
    found = {0, size}
    if spans is not None:
        found |= {spans.published_range(span)[0] for span in range(spans.count)} | {spans.stop}
    elif layer.index.record.compression == "none":
        found |= {member.offset for member in layer.index.toc}
        found |= {member.offset + member.size for member in layer.index.toc}
    return sorted(found)


def choose_bit(rng, size, places):
    """Half of them anywhere, half within 24 bytes of a border."""
    if rng.random() < 0.5:
        return rng.randrange(8 * size)
    at = rng.choice(places) + rng.randrange(-24, 24)
    return 8 * min(max(at, 0), size - 1) + rng.randrange(8)


LAYERS = ("tar", "raw", "gzip", "gzip by many", "raw gzip", "zstd", "zstd frames")


@pytest.mark.parametrize("name", LAYERS)
def test_a_flip_in_a_layer_is_refused_where_it_hits_and_nowhere_else(rot, specimen, campaign, name):
    """Ranges of other spans read right; the check names the blob; after a repair and an import all is as before."""
    layer = specimen.layers[name]
    touch = rot.SpanTouch(specimen, layer)
    places = borders(layer, touch.spans)

    def make(rng, number):
        bit = choose_bit(rng, len(layer.published), places)
        with Store.open(specimen.home) as store:
            path = store.layout.blob(layer.digest)

        def undo():
            if path.exists():
                rot.flip_bit(path, bit)
            else:
                specimen.heal(layer)

        if touch.spans is None and layer.index.record.compression != "none":
            specimen.drop_members()
        keeps_mtime = rng.random() < 0.5
        return rot.Flip(
            f"blob, {name}", f"{name}, bit {bit}",
            lambda: rot.flip_bit(path, bit, keeps_mtime=keeps_mtime), undo,
            frozenset({"wrong-digest"}), (str(layer.digest),), touch.by_byte(bit // 8), [layer],
        )  # fmt: skip

    campaign(f"blob, {name}", make, share=1.5, repairs_one_in=REPAIRS_ONE_IN)
    specimen.drop_members()


@pytest.mark.parametrize("name", ["config", "manifest"])
def test_a_flip_in_a_blob_that_is_read_whole_is_refused(rot, specimen, campaign, name):
    """Configs and manifests are hashed whenever they are read."""
    data = specimen.small[name]

    def make(rng, number):
        bit = rng.randrange(8 * len(data))
        with Store.open(specimen.home) as store:
            path = store.layout.blob(Digest.of(data))

        def undo():
            if path.exists():
                rot.flip_bit(path, bit)
            else:
                specimen.heal_kit()

        return rot.Flip(
            f"blob, {name}", f"{name}, bit {bit}",
            lambda: rot.flip_bit(path, bit, keeps_mtime=bool(number % 2)), undo,
            frozenset({"wrong-digest"}), (str(Digest.of(data)),), never, [], blob=data,
        )  # fmt: skip

    campaign(f"blob, {name}", make, share=0.5, repairs_one_in=REPAIRS_ONE_IN)


def member_path(specimen, data):
    with Store.open(specimen.home) as store:
        return store.layout.member(Digest.of(data))


@pytest.mark.parametrize("name", ["gzip", "gzip by many", "raw gzip", "zstd"])
def test_a_flip_in_a_member_file_is_never_served(rot, specimen, campaign, name):
    """All ranges read right, from the layer; the check names the file; a repair drops it, and it can be made again."""
    layer = specimen.layers[name]
    files = [data for data in layer.files if data]
    for data in files:
        specimen.plant(data)

    def make(rng, number):
        data = rng.choice(files)
        path = member_path(specimen, data)
        bit = rng.randrange(8 * len(data))
        keeps_mtime = rng.random() < 0.5
        return rot.Flip(
            f"member, {name}", f"{name}, member of {len(data)} bytes, bit {bit}",
            lambda: rot.flip_bit(path, bit, keeps_mtime=keeps_mtime), lambda: specimen.plant(data),
            frozenset({"wrong-member-digest", "stale-member"}), (str(Digest.of(data)),), never, [layer], mends=True,
        )  # fmt: skip

    campaign(f"member, {name}", make)
    specimen.drop_members()


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_rot_below_the_file_system_is_found_by_reading_and_mended(rot, specimen, campaign, name):
    """Bytes that changed under a stamp that holds: an open can not see it, the check with ``--read-data`` does."""
    layer = specimen.layers[name]
    files = [data for data in layer.files if data]
    for data in files:
        specimen.plant(data)

    def make(rng, number):
        data = rng.choice(files)
        digest = Digest.of(data)
        path = member_path(specimen, data)
        bit = rng.randrange(8 * len(data))

        def apply():
            rot.flip_bit(path, bit)
            with Store.open(specimen.home) as store, store.index.write() as txn:
                record = txn.find(schema.MEMBERS, digest.raw, MemberRecord)
                txn.put(schema.MEMBERS, digest.raw, msgspec.structs.replace(record, stamp=stamp_of(path.stat())))
            with Store.open(specimen.home) as store:
                assert rot.check(store).problems == []  # nothing shows without reading

        return rot.Flip(
            f"below the stamp, {name}", f"{name}, member of {len(data)} bytes, bit {bit}",
            apply, lambda: specimen.plant(data),
            frozenset({"wrong-member-digest"}), (str(digest),), never, [layer], mends=True, reads=False,
        )  # fmt: skip

    campaign(f"below the stamp, {name}", make, share=0.5)
    specimen.drop_members()


def flip_value(value, bit):
    damaged = bytearray(value)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def raw_values(specimen, table):
    with Store.open(specimen.home) as store, store.index.read() as txn:
        return [(bytes(key), bytes(value)) for key, value in txn.iter_raw(table)]


class CheckpointValues:
    """The values of one layer's checkpoints, by what they hold."""

    def __init__(self, specimen, layer):
        batches = -(-len(layer.index.span_checksums) // schema.CHECKPOINT_BATCH_SIZE)
        values = [
            (key, value) for key, value in raw_values(specimen, schema.CHECKPOINTS) if key[:32] == layer.digest.raw
        ]
        has_spans = bool(layer.index.checkpoints) and layer.index.record.compression != "none"
        directories = count_directory_values(layer.index.checkpoints[0]) if has_spans else 0
        self.checksums = values[:batches]
        self.directory = values[batches : batches + directories]
        self.windows = values[batches + directories :]
        self.spans = None
        if has_spans:
            self.spans = SpanMap(layer.index.checkpoints[:directories], layer.index.size_decoded)

    def spans_of(self, number):
        """Spans whose window is in the ``number``-th of the window values."""
        places = [(span, self.spans.window_place(span)) for span in range(self.spans.count)]
        return [span for span, place in places if place and place[0] == self.spans.directory_values + number]


PARTS = [
    *(("checksums", name) for name in ("tar", "raw", "gzip", "gzip by many", "raw gzip", "zstd frames")),
    *(("directory", name) for name in ("gzip", "gzip by many", "raw gzip", "zstd frames")),
    *(("windows", name) for name in ("gzip", "gzip by many", "raw gzip")),
]


@pytest.mark.parametrize(("part", "name"), PARTS)
def test_a_flip_in_a_record_of_checkpoints_is_refused(rot, specimen, campaign, part, name):
    """A value that does not verify is not used: one of windows costs its own spans, others the layer."""
    layer = specimen.layers[name]
    touch = rot.SpanTouch(specimen, layer)
    values = CheckpointValues(specimen, layer)
    chosen = getattr(values, part)
    restore = specimen.snapshot_index()

    def make(rng, _):
        number = rng.randrange(len(chosen))
        key, value = chosen[number]
        bit = rng.randrange(8 * len(value))
        touches = touch.by_spans(values.spans_of(number)) if part == "windows" else always
        return rot.Flip(
            part, f"{part} {number} of {name}, bit {bit}",
            lambda: specimen.put_raw(schema.CHECKPOINTS, key, flip_value(value, bit)), restore,
            frozenset({"corrupt-record", "incomplete-layer"}), (layer.digest.hex,), touches, [layer],
        )  # fmt: skip

    campaign(f"record of {part}, {name}", make, share=0.5, repairs_one_in=REPAIRS_ONE_IN)


@pytest.mark.parametrize(("part", "name"), PARTS)
def test_wrong_values_under_a_right_checksum_are_refused_by_the_spans(rot, specimen, campaign, part, name):
    """Even when the record verifies, what it makes of a span is compared: no wrong byte, and no other error."""
    layer = specimen.layers[name]
    touch = rot.SpanTouch(specimen, layer)
    values = CheckpointValues(specimen, layer)
    chosen = getattr(values, part)
    restore = specimen.snapshot_index()

    def make(rng, _):
        number = rng.randrange(len(chosen))
        key, _ = chosen[number]
        data = layer.index.span_checksums if part == "checksums" else layer.index.checkpoints[
            number + (len(values.directory) if part == "windows" else 0)
        ]  # fmt: skip
        bit = rng.randrange(8 * len(data))
        touches = always
        if part == "windows":
            touches = touch.by_spans(values.spans_of(number))
        elif part == "checksums" and values.spans is not None:
            touches = touch.by_spans([bit // 8 // CHECKSUM_SIZE])
        value = encode_value(schema.CHECKPOINTS, key, flip_value(data, bit))
        return rot.Flip(
            part, f"{part} {number} of {name}, sealed, bit {bit}",
            lambda: specimen.put_raw(schema.CHECKPOINTS, key, value), restore,
            frozenset(), (), touches, [layer],
        )  # fmt: skip

    campaign(f"sealed {part}, {name}", make, share=0.3)


@pytest.mark.parametrize("table", [schema.LAYERS, schema.TOCS])
def test_a_flip_in_a_record_of_a_layer_is_refused(rot, specimen, campaign, table):
    """No guess is made about a layer whose record or table of contents does not verify; other layers read right."""
    values = raw_values(specimen, table)
    by_digest = {layer.digest.raw: layer for layer in specimen.layers.values()}
    restore = specimen.snapshot_index()

    def make(rng, _):
        key, value = rng.choice(values)
        bit = rng.randrange(8 * len(value))
        layer = by_digest[key[:32]]
        other = rng.choice([one for one in specimen.layers.values() if one is not layer and one.name != "zstd"])
        return rot.Flip(
            table, f"{table} of {layer.name}, bit {bit}",
            lambda: specimen.put_raw(table, key, flip_value(value, bit)), restore,
            frozenset({"corrupt-record", "incomplete-layer"}), (layer.digest.hex,),
            lambda read, *_: read is layer, [layer, other],
        )  # fmt: skip

    campaign(f"record of {table}", make, repairs_one_in=REPAIRS_ONE_IN)


@pytest.mark.parametrize("table", [schema.BLOBS, schema.MANIFESTS, schema.TAGS, schema.COUNTS])
def test_a_flip_in_a_record_that_files_tell_again_is_mended(rot, specimen, campaign, table):
    """What a blob, manifest, tag or count record says is made anew from the files and ``tags.log``."""
    values = raw_values(specimen, table)
    restore = specimen.snapshot_index()
    layers = [specimen.layers["tar"], specimen.layers["raw gzip"]]

    def make(rng, _):
        key, value = rng.choice(values)
        bit = rng.randrange(8 * len(value))
        names = (key.hex()[:80], "index")
        return rot.Flip(
            table, f"{table} {key.hex()}, bit {bit}",
            lambda: specimen.put_raw(table, key, flip_value(value, bit)), restore,
            frozenset({"corrupt-record", "disagreeing-counts"}), names, always, layers, mends=True,
        )  # fmt: skip

    campaign(f"record of {table}", make)


def test_a_flip_in_a_record_of_a_member_is_refused_or_passed_over(rot, specimen, campaign):
    """The member's ranges are right or refused, those of others right; a repair forgets the record."""
    layer = specimen.layers["gzip"]
    files = [data for data in layer.files if data]
    for data in files:
        specimen.plant(data)
    values = raw_values(specimen, schema.MEMBERS)
    restore = specimen.snapshot_index()
    digests = [None if data is None else Digest.of(data).raw for data in layer.files]

    def make(rng, _):
        key, value = rng.choice(values)
        bit = rng.randrange(8 * len(value))
        return rot.Flip(
            "member", f"member {key.hex()}, bit {bit}",
            lambda: specimen.put_raw(schema.MEMBERS, key, flip_value(value, bit)), restore,
            frozenset({"corrupt-record"}), (key.hex()[:80],),
            lambda _, number, *__: digests[number] == key, [layer], mends=True,
        )  # fmt: skip

    campaign("record of members", make)
    specimen.drop_members()
