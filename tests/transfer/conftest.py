"""Layouts and storages made by hand, so that each test says what is odd about its input."""

import base64
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zstandard

from kitfs.digest import Digest
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.store import Store
from kitfs.transfer.detect import open_source
from kitfs.transfer.importer import ImportReport, import_source

KITOPS = "application/vnd.kitops.modelkit"
CONFIG = f"{KITOPS}.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, 6, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def make_tar(files: dict[str, bytes]) -> bytes:
    """A tar of some files, by Python's tarfile."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def descriptor(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    """The descriptor of some bytes."""
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **more}


@dataclass
class LayoutMaker:
    """An OCI layout that is being written."""

    path: Path
    manifests: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "blobs/sha256").mkdir(parents=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data: bytes) -> Digest:
        """Put bytes under their digest."""
        digest = Digest.of(data)
        (self.path / "blobs/sha256" / digest.hex).write_bytes(data)
        return digest

    def kit(self, tag: str | None, layers: list[tuple[str, bytes]], *, kitfile: dict[str, object] | None = None,
            config_type: str = CONFIG, change: Callable[[dict], None] | None = None) -> Digest:  # fmt: skip
        """A ModelKit of (media type, bytes); ``change`` may spoil its manifest before it is written."""
        for _, data in layers:
            self.blob(data)
        config = json.dumps(kitfile or {"manifestVersion": "1.0.0"}).encode()
        self.blob(config)
        manifest = {
            "schemaVersion": 2,
            "config": descriptor(config, config_type),
            "layers": [descriptor(data, media_type) for media_type, data in layers],
        }
        if change:
            change(manifest)
        return self.manifest(tag, json.dumps(manifest).encode())

    def manifest(self, tag: str | None, raw: bytes, media_type: str = MANIFEST) -> Digest:
        """List raw bytes as a manifest."""
        digest = self.blob(raw)
        entry = descriptor(raw, media_type)
        if tag is not None:
            entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.manifests.append(entry)
        self.write_index()
        return digest

    def write_index(self) -> None:
        """Write ``index.json``."""
        index = {"schemaVersion": 2, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(index))


@pytest.fixture
def layout(tmp_path: Path) -> LayoutMaker:
    """An empty layout in a folder called ``made``."""
    return LayoutMaker(tmp_path / "made")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store; whatever a test did to it, a check of all its bytes finds nothing in the end."""
    with Store.open(tmp_path / "home") as opened:
        yield opened
        assert check(opened, read_data=True).problems == []


@pytest.fixture
def bring(store: Store) -> Callable[..., ImportReport]:
    """Import a path into the store."""

    def run(path: Path, *references, repository=None, **options) -> ImportReport:
        source = open_source(path, repository=repository)
        try:
            return import_source(store, source, references=list(references) or None, **options)
        finally:
            source.close()

    return run


@pytest.fixture
def copy_home(tmp_path: Path, shared_fixtures: Path) -> Callable[[str], Path]:
    """A writable copy of kit's home of some version."""

    def copy(version: str) -> Path:
        home = tmp_path / version
        shutil.copytree(shared_fixtures / version, home)
        for path in home.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return home

    return copy


@pytest.fixture(name="make_tar")
def _make_tar() -> Callable[[dict[str, bytes]], bytes]:
    return make_tar


@pytest.fixture
def packers() -> dict[str, Callable[[bytes], bytes]]:
    """Compressors by the suffix of a media type."""
    return PACKERS


@pytest.fixture(name="kit_file")
def _kit_file() -> Callable[[Path, str, str], Path]:
    return kit_file


@pytest.fixture(name="is_empty")
def _is_empty() -> Callable[[Store], bool]:
    return is_empty


def kit_file(home: Path, repository: str, kind: str) -> Path:
    """kit's index or tags file of a repository."""
    name = base64.urlsafe_b64encode(repository.encode()).decode()
    return home / "storage" / f"{name}-{kind}.json"


def is_empty(store: Store) -> bool:
    """Whether nothing is in the store: no record, and after GC no file."""
    records = [*store.iter_tags(), *store.iter_manifests(), *store.iter_blobs()]
    gc(store)
    files = [path for path in store.home.rglob("*") if path.is_file() and path.parent.name not in ("index", "home")]
    return not records and not files
