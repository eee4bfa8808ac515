"""`verify` proves all that a mount would read, and names what is damaged and what mends it."""

import os

import msgspec
import pytest

from kitfs.digest import Digest
from kitfs.layer.verify import IMPORT_AGAIN, REBUILD_INDEX, REPAIR_DATA
from kitfs.modelkit.rebuild import rebuild_index
from kitfs.modelkit.resolve import ModelKitNotFound, resolve
from kitfs.modelkit.verify import verify
from kitfs.oci.reference import parse_reference
from kitfs.store import catalog, schema
from kitfs.store.pins import unpin_members
from kitfs.store.recipe import read_recipe
from kitfs.store.repair import repair
from kitfs.store.store import Store

TUNED = "registry.example.com:8080/acme/team_a/tuned:1"
REFERENCES = [
    "myllm:3.1.4",
    "myllm:3.1.4-gzip",
    "myllm:3.1.4-fast",
    "mp:raw",
    "mp:tar",
    "packed:zstd",
    "mine:1",
    "empty:0",
    TUNED,
]


@pytest.fixture
def store(many_forms):
    with Store.open(many_forms) as store:
        yield store


@pytest.fixture
def look(store, silent):
    """Verify a reference: (part, digest) to (reason, mend) of what is damaged; and the report."""

    def run(reference):
        report = verify(store, parse_reference(reference), silent)
        damaged = {
            (part.what, part.verdict.digest): [(damage.reason, damage.mend) for damage in part.verdict.damages]
            for part in report.parts
            if part.verdict.damages
        }
        assert report.is_right == (not damaged)
        return damaged, report

    return run


def rot(path):
    """One bit in the middle, and the old times."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def file_of(store, digest):
    """The file of a blob; of a split one the file of its first member."""
    if store.get_blob(digest).form != "split":
        return store.layout.blob(digest)
    return store.layout.member(read_recipe(store.layout, digest).members[0].digest)


@pytest.mark.parametrize("reference", REFERENCES)
def test_sound_kit_is_right_and_every_part_is_looked_at(store, look, reference):
    """Of a sound ModelKit every blob that its tree needs is read, parents' models included, and nothing is damaged."""
    damaged, report = look(reference)
    assert not damaged
    needed = set()
    for kit in resolve(store, parse_reference(reference)).kits:
        needed |= {kit.manifest.digest, kit.manifest.config.digest, *(layer.digest for layer in kit.layers)}
        needed |= set(store.get_manifest(kit.manifest.digest).indexes)
    looked_at = {part.verdict.digest for part in report.parts}
    shown = {part.what for part in report.parts if part.kit != reference}
    assert looked_at <= needed
    assert report.manifest in looked_at
    if reference == TUNED:
        assert shown == {"manifest", "config", "model", "modelpart"}
    else:
        assert looked_at == needed
    for part in report.parts:
        record = store.find_layer(part.verdict.digest)
        assert part.form == "" or record is not None
        if record is not None and part.verdict.members and "zstd" not in part.form and record.size_members:
            assert part.verdict.spans > 0, part


def test_stored_members_are_hashed_too(look):
    """The zstd layer's member files are counted as stored and right; an empty one has none."""
    _, report = look("packed:zstd")
    assert [part.verdict.native for part in report.parts if part.form == "tar+zstd"] == [2]


def first(report, what, form=None):
    return next(part.verdict.digest for part in report.parts if part.what == what and form in (None, part.form))


@pytest.mark.parametrize("what", ["manifest", "config", "model"])
@pytest.mark.parametrize("reference", ["myllm:3.1.4", "myllm:3.1.4-gzip", "mp:raw", "packed:zstd", "mine:1"])
def test_rotten_blob_is_named(store, look, reference, what):
    """A flipped bit in any blob is named with its part; the others are looked at all the same."""
    _, before = look(reference)
    victim = first(before, what)
    rot(file_of(store, victim))
    damaged, report = look(reference)
    assert [digest for _, digest in damaged] == [victim]
    [[(reason, mend)]] = damaged.values()
    is_split = store.get_blob(victim).form == "split"
    assert ("holds other bytes" if is_split else "another digest") in reason
    assert mend == IMPORT_AGAIN if is_split else mend.endswith(IMPORT_AGAIN)
    assert {part.verdict.digest for part in report.parts} == {part.verdict.digest for part in before.parts}


def test_rotten_layer_of_a_parent_is_named(store, look):
    """A parent's model is part of what its child needs."""
    victim = first(look("myllm:3.1.4")[1], "model")
    rot(file_of(store, victim))
    damaged, report = look(TUNED)
    assert list(damaged) == [("model", victim)]
    assert next(part.kit for part in report.parts if part.verdict.damages) == "myllm:3.1.4"


def test_missing_blob_is_named(store, look):
    """A blob whose file is gone, or is no plain file, is named."""
    victim = first(look("myllm:3.1.4")[1], "code")
    path = store.layout.blob(victim)
    path.unlink()
    assert look("myllm:3.1.4")[0] == {("code", victim): [("it is not there", IMPORT_AGAIN)]}
    path.symlink_to("/dev/zero")
    assert look("myllm:3.1.4")[0] == {("code", victim): [("it is not there", IMPORT_AGAIN)]}


def test_rotten_member_is_named_and_mended_as_it_says(store, look):
    """A member file with a flipped bit under its old stamp is named; the repair that is named mends it."""
    [layer] = [digest for digest, record in store.iter_blobs() if any("zstd" in text for text in record.media_types)]
    member = Digest.from_raw(store.get_toc(layer)[0].digest)
    rot(store.layout.member(member))
    damaged, _ = look("packed:zstd")
    [[(reason, mend)]] = damaged.values()
    assert "weights" in reason
    assert mend == REPAIR_DATA
    repair(store, read_data=True)
    assert not look("packed:zstd")[0]


def test_members_of_a_split_layer_are_named(store, look):
    """Of a split layer each member that is wrong, cut or gone is named, zeros too; the right ones count as native."""
    damaged, report = look("mine:1")
    layer = first(report, "model")
    [part] = [part for part in report.parts if part.what == "model"]
    assert (part.verdict.native, part.verdict.spans) == (2, 5)
    a, b = (store.layout.member(member.digest) for member in read_recipe(store.layout, layer).members)
    whole = b.read_bytes()
    assert not any(whole)
    b.unlink()
    wrong_b = ("the stored file of member 'weights/b.bin' holds other bytes, or is gone", IMPORT_AGAIN)
    assert look("mine:1")[0] == {("model", layer): [wrong_b]}
    b.write_bytes(whole[:-1])
    rot(a)
    wrong_a = (wrong_b[0].replace("b.bin", "a.bin"), IMPORT_AGAIN)
    damaged, _ = look("mine:1")
    assert damaged == {("model", layer): [wrong_a, wrong_b]}


def test_rotten_recipe_is_named(store, look):
    """A recipe that does not verify, or is gone, is damage of its layer that importing again mends."""
    layer = first(look("mine:1")[1], "model")
    rot(store.layout.recipe(layer))
    assert look("mine:1")[0] == {("model", layer): [("its recipe's checksum differs", IMPORT_AGAIN)]}
    store.layout.recipe(layer).unlink()
    assert look("mine:1")[0] == {("model", layer): [("it is not there", IMPORT_AGAIN)]}


def test_lost_pins_of_a_split_layer_are_named_and_mended_as_it_says(store, look):
    """A member of a split layer that could be evicted is damage, which the repair that is named mends."""
    layer = first(look("mine:1")[1], "model")
    with store.index.write() as txn:
        unpin_members(txn, [layer])
    [[first_found, _]] = look("mine:1")[0].values()
    assert first_found == ("member 'weights/a.bin' is not recorded as its", REPAIR_DATA)
    repair(store, read_data=True)
    assert not look("mine:1")[0]


def put_layer(store, layer, **changes):
    """Record a layer with something other than what it has, checksums of the records right."""
    record = store.find_layer(layer)
    values = {
        "record": record,
        "toc": store.get_toc(layer),
        "span_checksums": store.span_checksums(layer),
        "checkpoints": [store.get_checkpoint_value(layer, number) for number in range(record.checkpoint_values)],
    }
    values |= {name: change(values[name]) for name, change in changes.items()}
    with store.index.write() as txn:
        catalog.put_layer(txn, layer, *values.values())


def flip(data, at):
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def grow_first(toc):
    return [msgspec.structs.replace(toc[0], size=toc[0].size + 1), *toc[1:]]


def rename_decoded(record):
    return msgspec.structs.replace(record, diff_id=Digest.of(b""))


LIES = {
    "another member's size": ("myllm:3.1.4", {"toc": grow_first}),
    "a span checksum": ("myllm:3.1.4", {"span_checksums": lambda sums: flip(sums, 3)}),
    "a gzip span checksum": ("myllm:3.1.4-gzip", {"span_checksums": lambda sums: flip(sums, 19)}),
    "a checkpoint's bit": ("myllm:3.1.4-gzip", {"checkpoints": lambda values: [flip(values[0], 36), *values[1:]]}),
    "another decoded digest": ("myllm:3.1.4-gzip", {"record": rename_decoded}),
}


@pytest.mark.parametrize("lie", LIES)
def test_index_that_describes_another_layer_is_named_and_rebuilt(many_forms, silent, lie):
    """Records that verify and are wrong all the same are found by reading, and the rebuild that is named mends them."""
    reference, changes = LIES[lie]
    with Store.open(many_forms) as store:
        layer = first(verify(store, parse_reference(reference), silent), "model")
        put_layer(store, layer, **changes)
        report = verify(store, parse_reference(reference), silent)
        [part] = [part for part in report.parts if part.verdict.damages]
        assert part.verdict.digest == layer
        assert [damage.mend for damage in part.verdict.damages] == [REBUILD_INDEX]
    assert rebuild_index(many_forms, silent).exit_code == 0
    with Store.open(many_forms) as store:
        assert verify(store, parse_reference(reference), silent).is_right


def test_layer_without_records_is_named(store, look):
    """A layer that the index forgot, and a blob that it forgot, are damage that a rebuild mends."""
    layer = first(look("myllm:3.1.4")[1], "model")
    with store.index.write() as txn:
        catalog.delete_layer(txn, layer)
    assert look("myllm:3.1.4")[0] == {("model", layer): [("it has no table of contents", REBUILD_INDEX)]}
    with store.index.write() as txn:
        txn.delete(schema.BLOBS, layer.raw)
    assert look("myllm:3.1.4")[0] == {("model", layer): [("the index does not have it", REBUILD_INDEX)]}


def test_kit_that_is_not_there(store, silent):
    """What the store does not hold is not found, a parent too."""
    with pytest.raises(ModelKitNotFound):
        verify(store, parse_reference("nothing:1"), silent)
    with store.lease("test") as lease:
        change = store.change(lease)
        change.remove_tag("localhost/myllm", "3.1.4")
        change.commit()
    with pytest.raises(ModelKitNotFound, match=r"myllm:3\.1\.4"):
        verify(store, parse_reference(TUNED), silent)
