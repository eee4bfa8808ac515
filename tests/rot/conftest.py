"""A store with every kind of layer, damage of one bit, what a reader may make of it, and a table of what it did.

A test asks the fixture ``specimen`` for a store, gives a ``Flip`` to ``Specimen.examine`` and gets a ``Verdict``; it
hands all its verdicts to ``record_verdicts``. The table is printed when the run is over, also with pytest-xdist.
"""

import collections
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zstandard
from isal import igzip_lib, isal_zlib
from zlib_ng import gzip_ng

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer import checkpoints, span_pool
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.layer.reader import LayerReader
from kitfs.layer.span_pool import SpanPool
from kitfs.layer.spans import SPAN_SIZE
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store import schema
from kitfs.store.findings import FsckReport
from kitfs.store.fsck import check
from kitfs.store.records import KIND_FILE, ManifestRecord
from kitfs.store.repair import repair
from kitfs.store.store import Store

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
SPACING = 20_000
KIB = 1 << 10

MODEL = "application/vnd.kitops.modelkit.model.v1"
CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def text(seed: int, size: int) -> bytes:
    """Lines of words: blocks refer far back, so that every checkpoint has a window of some KiB."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(2, 7)).hex() for _ in range(3000)]
    lines = []
    total = 0
    while total < size:
        lines.append(" ".join(rng.choices(words, k=12)) + "\n")
        total += len(lines[-1])
    return "".join(lines).encode()[:size]


def make_tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def gzip_by_many(data: bytes) -> bytes:
    """Members of five encoders, one of them of independent pieces, and zero padding."""
    encoders: list[Callable[[bytes], bytes]] = [
        lambda part: igzip_lib.compress(part, 1, igzip_lib.COMP_GZIP),
        lambda part: gzip_ng.compress(part, 6),
        lambda part: gzip.compress(part, 9, mtime=0),
        flush_fully,
        lambda part: gzip.compress(part, 1, mtime=0),
    ]
    size = -(-len(data) // len(encoders))
    parts = [encode(data[at * size : (at + 1) * size]) for at, encode in enumerate(encoders)]
    return b"".join(parts) + bytes(700)


def flush_fully(data: bytes) -> bytes:
    encoder = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
    body = b""
    for at in range(0, len(data), 32 * KIB):
        body += encoder.compress(data[at : at + 32 * KIB]) + encoder.flush(isal_zlib.Z_FULL_FLUSH)
    body += encoder.flush()
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")


@dataclass
class Layer:
    """One layer of the specimen.

    Attributes:
        name: What kind it is.
        published: Its bytes.
        files: The bytes of each member, None for a directory.
        index: What was recorded of it.
        media_type: Its media type.
    """

    name: str
    published: bytes
    files: list[bytes | None]
    index: LayerIndex
    media_type: str

    @property
    def digest(self) -> Digest:
        return self.index.digest


@dataclass
class Flip:
    """One bit of one object, ready to be flipped.

    Attributes:
        kind: Row of the table.
        place: Where, for the message of a failure.
        apply: Flips it on disk.
        undo: Puts everything back as it was before, whatever a repair did meanwhile.
        damage: Damages that a check may name it by; empty when it is none that a check can see.
        names: What a check has to name, one of these.
        touches: Whether a range ``(layer, member, start, stop)`` may be an error; all others must be right.
        layers: Layers that are read.
        blob: A small blob that is read whole and must be refused.
        mends: Whether a repair must mend it, so that all is right and clean afterwards.
        reads: Whether anything is read before the repair.
    """

    kind: str
    place: str
    apply: Callable[[], None]
    undo: Callable[[], None]
    damage: frozenset[str]
    names: tuple[str, ...]
    touches: Callable[[Layer, int, int, int], bool]
    layers: list[Layer]
    blob: bytes | None = None
    mends: bool = False
    reads: bool = True


@dataclass
class Verdict:
    """What came of one flip.

    Attributes:
        right: Ranges that read right.
        refused: Ranges that were a named error.
        silent: Ranges with wrong bytes.
        unnamed: Errors of no name.
        overreach: Ranges that the flip does not touch and that were an error.
        is_found: Whether the check named it.
        is_mended: Whether a repair mended it, or said what is lost; None when none was tried.
    """

    place: str
    right: int = 0
    refused: int = 0
    silent: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    overreach: list[str] = field(default_factory=list)
    is_found: bool = True
    is_mended: bool | None = None

    @property
    def faults(self) -> list[str]:
        found = [f"silent: {what}" for what in self.silent]
        found += [f"unnamed: {what}" for what in self.unnamed]
        found += [f"untouched, but refused: {what}" for what in self.overreach]
        if not self.is_found:
            found.append("not named by the check")
        if self.is_mended is False:
            found.append("not mended by the repair")
        return [f"{self.place}: {what}" for what in found]


def flip_bit(path: Path, bit: int, *, keeps_mtime: bool = False) -> None:
    """Flip a bit in place; mode and, where asked, mtime are as before. Nobody can set ctime back."""
    before = path.stat()
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes((byte ^ 1 << bit % 8,)))
    path.chmod(before.st_mode & 0o7777)
    if keeps_mtime:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Specimen:
    """The store and what is in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.layers: dict[str, Layer] = {}
        with Store.open(home) as store, pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "_VALUE_SIZE", 32 * KIB)  # several values of windows in a small layer
            self._fill(store)
            assert not check(store, read_data=True).findings

    def _fill(self, store: Store) -> None:
        rng = random.Random(7)
        lines = text(1, 700 * KIB)
        files = {f"data/{at:02}": lines[at * 60 * KIB : (at + 1) * 60 * KIB] for at in range(10)}
        gz = make_tar({**files, "empty": b"", "long": text(2, 400 * KIB), "tail": b"end"})
        sizes = {"small": 5, "below": SPAN_SIZE - 1, "span": SPAN_SIZE, "large": 2 * SPAN_SIZE + 777, "empty": 0}
        plain = make_tar({name: rng.randbytes(size) for name, size in sizes.items()})
        many = make_tar({"noise": rng.randbytes(60 * KIB), "text": text(3, 400 * KIB), "short": b"x" * 700})
        zst = make_tar({f"z{at}": text(4 + at, size) for at, size in enumerate((10, 50_000, 150_000, 0, 90_000))})
        raw = rng.randbytes(SPAN_SIZE + 5000)
        TAR, RAW = LayerFormat.TAR, LayerFormat.RAW
        with store.lease("specimen") as lease:
            self._add(store, lease, "tar", plain, plain, TAR, Compression.NONE, ".tar")
            self._add(store, lease, "raw", raw, raw, RAW, Compression.NONE, ".raw")
            self._add(store, lease, "gzip", gz, gzip.compress(gz, 6, mtime=0), TAR, Compression.GZIP, ".tar+gzip")
            self._add(store, lease, "gzip by many", many, gzip_by_many(many), TAR, Compression.GZIP, ".tar+gzip")
            lines = text(20, 150 * KIB)
            self._add(store, lease, "raw gzip", lines, gzip.compress(lines, 9), RAW, Compression.GZIP, ".raw+gzip")
            self._add(store, lease, "zstd", zst, zstandard.compress(zst), TAR, Compression.ZSTD, ".tar+zstd")
            self._add_kit(store, lease)

    def _add(self, store, lease, name, decoded, published, layer_format, compression, suffix) -> None:
        indexer = LayerIndexer(layer_format, compression, hashes_blob=False, spacing=SPACING)
        indexer.feed(published)
        index = indexer.finish(Digest.of(published))
        files = [
            decoded[member.offset : member.offset + member.size] if member.kind == KIND_FILE else None
            for member in index.toc
        ]
        self.layers[name] = Layer(name, published, files, index, MODEL + suffix)
        self._store_layer(store, lease, self.layers[name])

    def _store_layer(self, store, lease, layer: Layer) -> None:
        digest = self._store_blob(store, lease, layer.published)
        index = layer.index
        change = store.change(lease)
        change.add_blob(digest, len(layer.published), media_type=layer.media_type)
        change.add_layer(digest, index.record, index.toc, index.span_checksums, index.checkpoints)
        change.commit()

    def _store_blob(self, store, lease, data: bytes) -> Digest:
        with store.ingest(lease) as ingest:
            ingest.write(data)
            return ingest.commit_blob()

    def _add_kit(self, store, lease) -> None:
        config = json.dumps({"manifestVersion": "1.0.0", "package": {"name": "specimen"}}).encode()
        self.small = {"config": config}
        entries = [(layer.media_type, layer.published) for layer in self.layers.values()]
        described = [
            {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}
            for media_type, data in [(CONFIG, config), *entries]
        ]
        kit = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        self.small["manifest"] = json.dumps(kit).encode()
        change = store.change(lease)
        for data, media_type in ((config, CONFIG), (self.small["manifest"], MANIFEST)):
            change.add_blob(self._store_blob(store, lease, data), len(data), media_type=media_type)
        manifest = Digest.of(self.small["manifest"])
        record = ManifestRecord(Digest.of(config), [layer.digest for layer in self.layers.values()])
        change.add_manifest(manifest, record)
        change.set_tag("localhost/specimen", "1", manifest)
        change.commit()

    # Putting things back

    def heal(self, layer: Layer) -> None:
        """What an import does: the right bytes and records are in place again."""
        with Store.open(self.home) as store, store.lease("heal") as lease:
            self._store_layer(store, lease, layer)
            shutil.rmtree(store.layout.quarantine, ignore_errors=True)

    def heal_kit(self) -> None:
        """As `heal`, of manifest, config and tag."""
        with Store.open(self.home) as store, store.lease("heal") as lease:
            self._add_kit(store, lease)
            shutil.rmtree(store.layout.quarantine, ignore_errors=True)

    def plant(self, data: bytes) -> Digest:
        """A member's own file, right and trusted, in place."""
        with Store.open(self.home) as store, store.lease("plant") as lease:
            with store.ingest(lease) as ingest:
                ingest.write(data)
                digest = ingest.commit_member()
            change = store.change(lease)
            change.add_member(digest, len(data))
            change.commit()
        return digest

    def drop_members(self) -> None:
        """No member has its own file."""
        with Store.open(self.home) as store:
            with store.index.write() as txn:
                for key, _ in list(txn.iter_raw(schema.MEMBERS)):
                    txn.delete(schema.MEMBERS, key)
            for path in store.layout.content("members").glob("*/*"):
                path.unlink()

    def put_raw(self, table: str, key: bytes, value: bytes) -> None:
        """A value as it is, checksum and all."""
        with Store.open(self.home) as store, store.index.write() as txn:
            txn._txn.put(schema.PREFIXES[table] + key, value)

    def snapshot_index(self) -> Callable[[], None]:
        """What puts index and log back as they are now; the store must not be open then."""
        files = [self.home / "index" / "data.mdb", self.home / "tags.log"]
        saved = [path.read_bytes() for path in files]

        def restore() -> None:
            (self.home / "index" / "lock.mdb").unlink(missing_ok=True)
            for path, data in zip(files, saved, strict=True):
                path.write_bytes(data)

        return restore

    # Looking

    def examine(self, flip: Flip, rng: random.Random, *, repairs: bool = True) -> Verdict:
        """Flip, check, read everything by a fresh store and reader, repair, look again, undo."""
        verdict = Verdict(flip.place)
        flip.apply()
        try:
            with Store.open(self.home) as store:
                if flip.names:
                    verdict.is_found = _is_named(check(store, read_data=True), flip)
                if flip.reads:
                    self.read_layers(store, flip, verdict, rng)
            if repairs and flip.names:
                with Store.open(self.home) as store:
                    report = repair(store, read_data=True)
                    verdict.is_mended = self._is_mended(store, flip, report, rng)
        finally:
            flip.undo()
        return verdict

    def read_layers(self, store: Store, flip: Flip, verdict: Verdict, rng: random.Random) -> None:
        if flip.blob is not None:
            try:
                found = store.read_blob(Digest.of(flip.blob))
            except KitfsError:
                verdict.refused += 1
            else:
                verdict.right += found == flip.blob
                verdict.silent += [] if found == flip.blob else ["a blob read whole"]
        for layer in flip.layers:
            with fresh_pool():
                self._read_layer(store, flip, layer, verdict, rng)

    def _read_layer(self, store, flip, layer, verdict, rng) -> None:
        try:
            reader = LayerReader(store, layer.digest)
        except KitfsError as error:
            self._refuse(flip, layer, 0, 0, 0, error, verdict)
            return
        with reader:
            for number, data in enumerate(layer.files):
                if data is not None:
                    self._read_member(reader, flip, layer, number, data, verdict, rng)

    def _read_member(self, reader, flip, layer, number, data, verdict, rng) -> None:
        try:
            member = reader.open_member(number)
        except KitfsError as error:
            self._refuse(flip, layer, number, 0, len(data), error, verdict)
            return
        for start, stop in ranges(len(data), rng):
            where = f"{layer.name}[{number}] [{start}, {stop})"
            try:
                ready = member.read_ready(start, stop)
                if ready is not None and bytes(ready) != data[start:stop]:
                    verdict.silent.append(where + " at once")
                found = bytes(member.read(start, stop))
            except (KitfsError, OSError) as error:
                self._refuse(flip, layer, number, start, stop, error, verdict)
            except BaseException as error:  # noqa: BLE001  # the verdict is what is asked for
                verdict.unnamed.append(f"{where}: {error!r}")
            else:
                if found == data[start:stop]:
                    verdict.right += 1
                else:
                    verdict.silent.append(where)

    def _refuse(self, flip, layer, number, start, stop, error, verdict) -> None:
        verdict.refused += 1
        if not isinstance(error, KitfsError):
            verdict.unnamed.append(f"{layer.name}[{number}] [{start}, {stop}): {error!r}")
        elif not flip.touches(layer, number, start, stop):
            verdict.overreach.append(f"{layer.name}[{number}] [{start}, {stop}): {error}")

    def _is_mended(self, store, flip: Flip, report: FsckReport, rng) -> bool:
        if not flip.mends:
            return report.exit_code == 6 or not report.problems
        again = Verdict(flip.place)
        self.read_layers(store, flip, again, rng)
        return not report.problems and not again.refused and not again.faults

    def find_layers(self, *names: str) -> list[Layer]:
        return [self.layers[name] for name in names] if names else list(self.layers.values())


def _is_named(report: FsckReport, flip: Flip) -> bool:
    return any(
        finding.damage in flip.damage and any(name in finding.name for name in flip.names)
        for finding in report.problems
    )


def ranges(size: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """All of a file in pieces, one after another, and the whole last: it must not hide what pieces would show."""
    step = rng.choice((16 * KIB, 40_000))
    for start in range(0, size, step):
        yield start, min(start + step, size)
    start = rng.randrange(size + 1)
    yield start, min(size, start + rng.choice((1, 4096, SPAN_SIZE)))
    yield 0, size


@contextlib.contextmanager
def fresh_pool() -> Iterator[None]:
    """A process that has decoded nothing yet: what an earlier reader left decoded would hide the flip."""
    before, span_pool._shared = span_pool._shared, SpanPool(threads=2)
    try:
        yield
    finally:
        span_pool._shared.close()
        span_pool._shared = before


class SpanTouch:
    """Which ranges of a layer a flip in its published bytes may break, by the layer's own span map."""

    def __init__(self, specimen: Specimen, layer: Layer) -> None:
        self.layer = layer
        self.spans = None
        with Store.open(specimen.home) as store, LayerReader(store, layer.digest) as reader:
            if reader._lazy is not None:
                self.spans = reader._lazy.spans

    def by_byte(self, at: int) -> Callable[[Layer, int, int, int], bool]:
        """What a flip of published byte ``at`` touches."""
        if self.spans is not None:
            broken = [
                span
                for span in range(self.spans.count)
                if self.spans.published_range(span)[0] <= at < self.spans.published_range(span)[1]
            ]
            return self.by_spans(broken)
        if self.layer.index.record.compression == "none":
            return lambda _, number, start, stop: self._touches_plain(at, number, start, stop)
        good = self._count_decoded(at)
        toc = self.layer.index.toc
        return lambda _, number, start, stop: toc[number].size > 0 and toc[number].offset + toc[number].size > good

    def by_spans(self, broken: list[int]) -> Callable[[Layer, int, int, int], bool]:
        """What is touched when these spans can not be decoded."""
        places = [self.spans.range(span) for span in broken]
        toc = self.layer.index.toc

        def touches(_: Layer, number: int, start: int, stop: int) -> bool:
            offset = toc[number].offset
            return any(offset + start < high and low < offset + stop for low, high in places)

        return touches

    def _touches_plain(self, at: int, number: int, start: int, stop: int) -> bool:
        place = at - self.layer.index.toc[number].offset
        if not 0 <= place < self.layer.index.toc[number].size:
            return False
        low = place // SPAN_SIZE * SPAN_SIZE
        return start < low + SPAN_SIZE and low < stop

    def _count_decoded(self, at: int) -> int:
        """Decoded bytes that the published ones before a byte give for sure, of a stream without spans."""
        decoder = zstandard.ZstdDecompressor().decompressobj()
        return len(decoder.decompress(self.layer.published[:at]))


@pytest.fixture(scope="session")
def rot_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rot") / "home"


@pytest.fixture(scope="session")
def specimen(rot_home: Path) -> Specimen:
    """The store; a test leaves it as it found it."""
    return Specimen(rot_home)


@dataclass
class Tools:
    """The names of this file that tests need."""

    CAMPAIGN: bool = CAMPAIGN
    Flip: type = Flip
    Layer: type = Layer
    SpanTouch: type = SpanTouch
    Specimen: type = Specimen
    Verdict: type = Verdict
    check: Callable = staticmethod(check)
    flip_bit: Callable = staticmethod(flip_bit)


@pytest.fixture(scope="session")
def rot() -> Tools:
    """What is defined here."""
    return Tools()


@pytest.fixture
def record_verdicts(record_property):
    """``record_verdicts(kind, verdicts, seconds)``: a row of the table; fails when any verdict has a fault."""

    def record(kind: str, verdicts: list[Verdict], started_s: float) -> None:
        refused = sum(verdict.refused > 0 for verdict in verdicts)
        row = {
            "kind": kind,
            "flips": len(verdicts),
            "all right": len(verdicts) - refused,
            "EIO in part": refused,
            "silent": sum(bool(verdict.silent) for verdict in verdicts),
            "unnamed": sum(bool(verdict.unnamed) for verdict in verdicts),
            "overreach": sum(bool(verdict.overreach) for verdict in verdicts),
            "not found": sum(not verdict.is_found for verdict in verdicts),
            "repairs": sum(verdict.is_mended is not None for verdict in verdicts),
            "not mended": sum(verdict.is_mended is False for verdict in verdicts),
            "ranges": sum(verdict.right + verdict.refused for verdict in verdicts),
            "s": round(time.monotonic() - started_s, 1),
        }
        record_property("rot", json.dumps(row))
        faults = [fault for verdict in verdicts for fault in verdict.faults]
        assert not faults, f"{len(faults)} faults, the first: " + "\n".join(faults[:10])

    return record


def pytest_terminal_summary(terminalreporter) -> None:
    """Print what came of all flips."""
    rows = [
        json.loads(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "rot" and getattr(report, "when", "") == "call"
    ]
    if not rows:
        return
    total = collections.Counter()
    for row in rows:
        total.update({name: value for name, value in row.items() if name != "kind"})
    headers = list(rows[0])
    table = [[str(row[name]) for name in headers] for row in sorted(rows, key=lambda row: row["kind"])]
    table.append(["total", *(f"{total[name]:g}" for name in headers[1:])])
    widths = [max(len(line[at]) for line in [headers, *table]) for at in range(len(headers))]
    terminalreporter.section("one bit flipped")
    for line in [headers, *table]:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
