"""Fixtures that every test may use. Folders with foreign ModelKits lie beside the project and may be absent."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard
from hypothesis import HealthCheck, settings

from kitfs.cli.main import run

PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("KITFS_TEST_SHARED", PROJECT.parent / "shared"))

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("dev", deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("nightly", deadline=None, max_examples=5000, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{path} is absent (set KITFS_TEST_SHARED)")
    return path


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """ModelKits that other programs packed (read only)."""
    return _folder("fixtures")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Test data from elsewhere (read only)."""
    return _folder("corpora")


@pytest.fixture
def store_home(tmp_path: Path) -> Path:
    """A fresh place for a store."""
    return tmp_path / "home"


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run_verb(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a verb in this process, with the environment as it is; no traceback is ever printed."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Done(code, captured.out, captured.err)

    return call


RECORDED = ["kit-v0.1.0", "kit-v0.1.3", "kit-v0.2.3", "kit-v0.2.5", "kit-v0.4.0", "kit-v1.7.0", "modctl"]


class Recorded(NamedTuple):
    """ModelKits that one program packed, and what its own unpack wrote.

    Attributes:
        arguments: Of ``kitfs import``, to bring all of them in.
        trees: By reference, then by path: type, mode, and of a file size and digest.
    """

    arguments: list[str]
    trees: dict[str, dict[str, dict[str, object]]]


def _recorded_reference(name: str, stem: str) -> str:
    if name == "modctl":
        return f"localhost/mp:{stem}"
    if stem.startswith("registry.example.com"):
        return "registry.example.com:8080/acme/team_a/tuned:1"
    return stem.replace("_", ":")


@pytest.fixture(params=RECORDED)
def recorded(request: pytest.FixtureRequest, shared_fixtures: Path) -> Recorded:
    """Each folder of ModelKits that another program packed."""
    name = request.param
    folder = shared_fixtures / name
    trees = {}
    for path in sorted((folder / "expected").glob("*.json")):
        entries = json.loads(path.read_text())
        trees[_recorded_reference(name, path.stem)] = {entry.pop("path"): entry for entry in entries}
    where = [str(folder / "layout"), "--as", "mp"] if name == "modctl" else [str(folder)]
    return Recorded([*where, "--copy"], trees)


def _tar(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def _blob(folder: Path, media_type: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (folder / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _make_layout(folder: Path, compression: str, files: dict[str, bytes]) -> Path:
    suffix = {"gzip": "tar+gzip", "zstd": "tar+zstd", "none": "tar"}[compression]
    pack = {"gzip": lambda data: gzip.compress(data, 1), "zstd": zstandard.compress, "none": bytes}[compression]
    tar = _tar({f"weights/{name}": data for name, data in files.items()})
    layer = _blob(folder, f"application/vnd.kitops.modelkit.model.v1.{suffix}", pack(tar))
    kitfile = {"manifestVersion": "1.0.0", "package": {"name": "t"}, "model": {"name": "m", "path": "weights"}}
    config = _blob(folder, "application/vnd.kitops.modelkit.config.v1+json", json.dumps(kitfile).encode())
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [layer]}
    descriptor = _blob(folder, manifest_type, json.dumps(manifest).encode())
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


@pytest.fixture
def make_layout(tmp_path: Path) -> Callable[[str, str, dict[str, bytes]], Path]:
    """Makes an OCI layout ``name:1`` whose model is a folder ``weights`` in a tar: ``(name, compression, files)``."""

    def make(name: str, compression: str, files: dict[str, bytes]) -> Path:
        folder = tmp_path / "layouts" / name
        folder.mkdir(parents=True)
        return _make_layout(folder, compression, files)

    return make


class Chain:
    """ModelKits with the tags ``1``, ``2`` … in an OCI layout, each derived from the one before.

    Attributes:
        layout: The layout.
        digests: Their ModelKitIDs.
    """

    def __init__(self, layout: Path) -> None:
        self.layout = layout
        self.digests: list[str] = []
        self._index = json.loads((layout / "index.json").read_text())
        (self._first,) = self._index["manifests"]
        self._manifest = json.loads((layout / "blobs/sha256" / self._first["digest"][7:]).read_text())
        self._index["manifests"] = []

    def add(self, *, listed: bool = True, **annotations: str) -> str:
        """One more ModelKit, derived from the last unless ``parent`` says otherwise; its ModelKitID."""
        if self.digests:
            annotations = {"parent": self.digests[-1], **annotations}
        names = {f"org.kitfs.{key.replace('_', '.')}": value for key, value in annotations.items()}
        created = {"org.opencontainers.image.created": f"2026-03-01T10:00:0{len(self.digests)}Z"}
        raw = json.dumps({**self._manifest, "annotations": created | names}).encode()
        digest = hashlib.sha256(raw).hexdigest()
        self.digests.append(f"sha256:{digest}")
        if listed:
            (self.layout / "blobs/sha256" / digest).write_bytes(raw)
            name = {"org.opencontainers.image.ref.name": str(len(self.digests))}
            descriptor = {**self._first, "digest": f"sha256:{digest}", "size": len(raw), "annotations": name}
            self._index["manifests"].append(descriptor)
            (self.layout / "index.json").write_text(json.dumps(self._index))
        return self.digests[-1]


@pytest.fixture
def chain(make_layout: Callable[[str, str, dict[str, bytes]], Path]) -> Chain:
    """An OCI layout of ModelKits with lineage, empty yet."""
    return Chain(make_layout("chain", "none", {"a": b"1"}))


def _read_layout(folder: Path) -> dict[str, str]:
    """What a layout names, after a look at all of its blobs by their digests."""
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    blobs = {path.name: path.read_bytes() for path in (folder / "blobs/sha256").iterdir()}
    for name, data in blobs.items():
        assert hashlib.sha256(data).hexdigest() == name
    found = {}
    for entry in json.loads((folder / "index.json").read_bytes())["manifests"]:
        manifest = json.loads(blobs[entry["digest"][7:]])
        for blob in (entry, manifest["config"], *(manifest["layers"] or [])):
            assert len(blobs[blob["digest"][7:]]) == blob["size"]
        name = entry.get("annotations", {}).get("org.opencontainers.image.ref.name", entry["digest"])
        assert name not in found
        found[name] = entry["digest"]
    return found


@pytest.fixture
def read_layout() -> Callable[[Path], dict[str, str]]:
    """Reads an OCI layout as the image specification has it, all of it verified: digests by name."""
    return _read_layout
