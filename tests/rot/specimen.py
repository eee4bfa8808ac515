"""A store with every kind of layer, and what damages it and puts it back. Loaded by ``conftest.py``."""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from isal import igzip_lib, isal_zlib
from zlib_ng import gzip_ng

from kitfs.digest import Digest
from kitfs.layer import checkpoints, span_pool
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader
from kitfs.layer.span_pool import SpanPool
from kitfs.layer.spans import SPAN_SIZE
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store import catalog, schema
from kitfs.store.fsck import check
from kitfs.store.records import KIND_FILE, ManifestRecord
from kitfs.store.store import Store

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
    return (
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
        + body
        + zlib.crc32(data).to_bytes(4, "little")
        + len(data).to_bytes(4, "little")
    )


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


@contextlib.contextmanager
def fresh_pool() -> Iterator[None]:
    """A process that has decoded nothing yet: what an earlier reader left decoded would hide the flip."""
    before, span_pool._shared = span_pool._shared, SpanPool(threads=2)
    try:
        yield
    finally:
        span_pool._shared.close()
        span_pool._shared = before


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
            zst = make_tar({f"f{at}": text(30 + at, size) for at, size in enumerate((10, 50_000, 150_000, 0, 90_000))})
            frames = b"".join(zstandard.compress(zst[at : at + 40_000]) for at in range(0, len(zst), 40_000))
            self._add(store, lease, "zstd frames", zst, frames, TAR, Compression.ZSTD, ".tar+zstd")
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
                catalog.delete_members(txn, [Digest.from_raw(key) for key, _ in txn.iter_raw(schema.MEMBERS)])
            for path in store.layout.content("members").glob("*/*"):
                path.unlink()

    def begin_partials(self, layer: Layer) -> dict[Path, bytes]:
        """Read a layer's members, which then are partial; the files of that."""
        with fresh_pool(), Store.open(self.home) as store:
            with LayerReader(store, layer.digest, materialise=Materialise.ALWAYS) as reader:
                for number, data in enumerate(layer.files):
                    if data:
                        assert reader.open_member(number).read(0, len(data)) == data
            paths = [path for path in store.layout.partial.glob("*/*") if path.is_file()]
        return {path: path.read_bytes() for path in paths}

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
