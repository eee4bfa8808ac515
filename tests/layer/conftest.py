"""A store with layers in it, made by the real ingest and indexer, and checked after each test."""

import dataclasses
import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from kitfs.digest import Digest
from kitfs.layer import finisher, span_pool
from kitfs.layer.block_inflater import SPACING
from kitfs.layer.finisher import Finisher
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.layer.span_pool import SpanPool
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.fsck import check
from kitfs.store.store import Store


@dataclasses.dataclass
class Layers:
    """Puts layers into a store; without checkpoints as stores have them that are older than these."""

    store: Store
    keeps_checkpoints: bool = True
    spacing: int = SPACING

    def compress(self, raw: bytes, compression: Compression) -> bytes:
        if compression is Compression.GZIP:
            return gzip.compress(raw, 6, mtime=0)
        return zstandard.compress(raw) if compression is Compression.ZSTD else raw

    def add(self, raw: bytes, compression: Compression, layer_format: LayerFormat = LayerFormat.TAR) -> LayerIndex:
        """Store decoded bytes as a layer; on disk and recorded when this returns."""
        published = self.compress(raw, compression)
        with self.store.lease("test") as lease, self.store.ingest(lease) as ingest:
            indexer = LayerIndexer(layer_format, compression, hashes_blob=False, spacing=self.spacing)
            ingest.write(published)
            indexer.feed(published)
            digest = ingest.commit_blob()
            index = indexer.finish(digest)
            change = self.store.change(lease)
            change.add_blob(digest, len(published))
            checkpoints = index.checkpoints if self.keeps_checkpoints else []
            change.add_layer(digest, index.record, index.toc, index.span_checksums, checkpoints)
            change.commit()
        return index

    def blob_path(self, digest: Digest) -> Path:
        return self.store.layout.blob(digest)


@pytest.fixture(autouse=True)
def fresh_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpanPool]:
    """A pool of this test's own, whose cache has nothing of another's."""
    pool = SpanPool()
    monkeypatch.setattr(span_pool, "_shared", pool)
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def fresh_finisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Finisher]:
    """A finisher of this test's own."""
    made = Finisher()
    monkeypatch.setattr(finisher, "_shared", made)
    yield made
    made.close()


@pytest.fixture
def layers(store_home: Path) -> Iterator[Layers]:
    with Store.open(store_home) as store:
        yield Layers(store)
        # Leases and ingests must be gone; what a test damaged on purpose is in `blobs` and `members` only.
        report = check(store)
        assert [finding for finding in report.findings if finding.damage == "leftover"] == []
        assert list(store.layout.leases.iterdir()) == []
        assert list(store.layout.ingest.iterdir()) == []


@pytest.fixture
def tar_of() -> Callable[[dict[str, bytes]], bytes]:
    """A tar of some files."""

    def make(files: dict[str, bytes]) -> bytes:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return raw.getvalue()

    return make


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """Files around the sizes that matter: empty, small, a span and its neighbours, several spans."""
    rng = random.Random(5)
    span = 128 << 10
    sizes = {"empty": 0, "small": 5, "below": span - 1, "span": span, "above": span + 1, "large": 5 * span + 777}
    found = {f"model/{name}": rng.randbytes(size) for name, size in sizes.items()}
    found["model/twin"] = found["model/above"]
    return found
