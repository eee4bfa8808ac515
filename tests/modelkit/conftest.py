"""A store with ModelKits of every form, and all that its index means, as one value."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kitfs.digest import Digest
from kitfs.layer.reader import LayerReader
from kitfs.modelkit.derive import Derived, DeriveOptions, derive
from kitfs.modelkit.pack import pack
from kitfs.modelkit.pack_options import PackOptions
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.sessions import prepare_session
from kitfs.modelkit.staging import create_staging
from kitfs.modelkit.unpack import unpack
from kitfs.oci.reference import parse_reference
from kitfs.progress import NoProgress, Progress, Step
from kitfs.store import catalog, schema
from kitfs.store.fsck import check
from kitfs.store.records import InodeRange
from kitfs.store.sessions import SessionOptions
from kitfs.store.store import Store
from kitfs.transfer.detect import open_source
from kitfs.transfer.importer import import_source

KITOPS = "application/vnd.kitops.modelkit"


@pytest.fixture
def store(store_home: Path) -> Iterator[Store]:
    """A store, in which fsck finds nothing when the test is done."""
    with Store.open(store_home) as store:
        yield store
        assert check(store).problems == []


def make_layout(
    folder: Path, tag: str, layers: list[tuple[str, bytes]], kitfile: dict[str, object] | None = None
) -> Path:
    """An OCI layout with one ModelKit of (media type, bytes)."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = Digest.of(data)
        (blobs / digest.hex).write_bytes(data)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    config = put(json.dumps(kitfile or {"manifestVersion": "1.0.0"}).encode(), f"{KITOPS}.config.v1+json")
    entries = [put(data, media_type) for media_type, data in layers]
    raw = json.dumps({"schemaVersion": 2, "config": config, "layers": entries}).encode()
    manifest = put(raw, "application/vnd.oci.image.manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return folder


def tar_of(files: dict[str, bytes]) -> bytes:
    """A plain tar of some files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


COMPRESSORS = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, 6, mtime=0),
    "+zstd": zstandard.ZstdCompressor().compress,
}


def layer(suffix: str, files: dict[str, bytes]) -> tuple[str, bytes]:
    """A tar layer of a model, compressed as its media type says."""
    return f"{KITOPS}.model.v1.tar{suffix}", COMPRESSORS[suffix](tar_of(files))


def bring(store: Store, path: Path, *, copy: bool = True, repository: str | None = None) -> None:
    """Import all of a source."""
    source = open_source(path, repository=repository)
    try:
        import_source(store, source, copy=copy)
    finally:
        source.close()


def dump(store: Store) -> dict[str, object]:
    """All that the index means: everything but times and stamps."""
    found: dict[str, object] = {
        "blobs": {
            digest: (record.size, record.form, record.media_types, record.origin)
            for digest, record in store.iter_blobs()
        },
        "manifests": dict(store.iter_manifests()),
        "tags": {
            (repository, tag): (record.manifest, record.origin, record.set_s)
            for repository, tag, record in store.iter_tags()
        },
    }
    layers, members = {}, {}
    for digest, _ in store.iter_blobs():
        record = store.find_layer(digest)
        if record is not None:
            values = [store.get_checkpoint_value(digest, number) for number in range(record.checkpoint_values)]
            layers[digest] = (record, store.get_toc(digest), store.span_checksums(digest), values)
    with store.index.read() as txn:
        for key, value in txn.iter_raw(schema.MEMBERS):
            members[key] = value[17:18]
        total = catalog.get_member_total(txn)
        inodes = dict(txn.iter(schema.INODE_BASES, InodeRange))
    for key in members:
        record = store.find_member(Digest.from_raw(key))
        members[key] = (record.size, record.state, record.pins)
    return found | {"layers": layers, "members": members, "total": total, "inodes": inodes}


def read_all(store: Store, *, tagged: bool = True) -> dict[tuple[Digest, int], Digest]:
    """The digest of every member of every layer, read as a mount reads it."""
    found = {}
    for digest, _ in store.iter_blobs():
        if store.find_layer(digest) is None:
            continue
        with LayerReader(store, digest) as reader:
            for number, member in enumerate(reader.toc):
                if member.kind == 0:
                    data = reader.open_member(number).read(0, member.size)
                    found[digest, number] = Digest.of(data)
                    assert found[digest, number].raw == member.digest
    return found


PACKED = {"weights/a.bin": bytes(range(251)) * 1300, "weights/b.bin": bytes(200_000), "weights/empty": b""}
"""Large enough on average to be kept split."""

FILES = {"model/weights": bytes(range(256)) * 3000, "model/config.json": b"{}" * 40, "model/empty": b""}


@pytest.fixture
def many_forms(tmp_path: Path, many_forms_made: Path) -> Path:
    """The home of a store with plain, gzip, zstd and raw kits, linked and copied, members, sessions, parents."""
    subprocess.run(["cp", "-a", *many_forms_made.iterdir(), tmp_path], check=True)  # keeps hard links
    return tmp_path / "home"


@pytest.fixture(scope="session")
def many_forms_made(tmp_path_factory: pytest.TempPathFactory, shared_fixtures: Path) -> Path:
    """The folder with that store and the storage that some of its blobs are linked from."""
    tmp_path = tmp_path_factory.mktemp("many")
    home = tmp_path / "home"
    linked = tmp_path / "kit-v0.2.3"
    shutil.copytree(shared_fixtures / "kit-v0.2.3", linked)
    with Store.open(home) as store:
        bring(store, linked, copy=False)
        bring(store, shared_fixtures / "kit-v1.7.0")
        bring(store, shared_fixtures / "modctl/layout", repository="localhost/mp")
        bring(store, make_layout(tmp_path / "packed", "zstd", [layer("+zstd", FILES), layer("+gzip", {"x": b"x"})]))
        context = tmp_path / "context"
        for name, data in PACKED.items():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_bytes(data)
        (context / "Kitfile").write_text('manifestVersion: "1.0.0"\nmodel: {name: m, path: weights}\n')
        pack(store, context, None, [parse_reference("mine:1")], created_s=1_700_000_000)
        for digest, record in list(store.iter_blobs()):
            if any("zstd" in text for text in record.media_types):  # reading those materialises their members
                with LayerReader(store, digest) as reader:
                    assert reader.open_member(0).read(0, 5) == FILES["model/weights"][:5]
        with store.lease("untag") as lease:
            change = store.change(lease)
            change.remove_tag("localhost/one-file", "1")
            change.commit()
        for reference in ("registry.example.com:8080/acme/team_a/tuned:1", None):
            prepare_session(
                store,
                parse_reference(reference) if reference else None,
                mountpoint=tmp_path / "mnt",
                uid=0,
                gid=0,
                options=SessionOptions(),
            ).close()
    return tmp_path


@pytest.fixture(name="dump")
def _dump():
    return dump


@pytest.fixture(name="read_all")
def _read_all():
    return read_all


@pytest.fixture(name="bring")
def _bring():
    return bring


@pytest.fixture(name="make_layout")
def _make_layout():
    return make_layout


@pytest.fixture(name="make_layer")
def _make_layer():
    return layer


@pytest.fixture
def silent() -> NoProgress:
    """Progress that says nothing."""
    return NoProgress()


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """An upper directory; the file system keeps ``user.`` xattrs."""
    path = tmp_path / "upper"
    path.mkdir()
    try:
        os.setxattr(path, "user.probe", b"")
    except OSError:
        pytest.skip("no user xattrs here")
    return path


KITFILE = "manifestVersion: 1.0.0\nmodel: {name: m, path: model}\ndatasets: [{path: data}]\ndocs: [{path: docs/a}]\n"
CONTENT = {"model/w": "weights", "data/x": "1", "data/sub/y": "2", "docs/a": "a"}


class Work:
    """A ModelKit, and a place where it is changed: a staging directory over it, or a folder that was unpacked."""

    def __init__(self, store: Store, folder: Path, *, is_staged: bool) -> None:
        self.store = store
        self.folder = folder
        self.is_staged = is_staged
        self.warnings: list[str] = []

    def make(
        self, kitfile: str = KITFILE, files: dict[str, str] = CONTENT, tag: str = "kit:1", **options: Any
    ) -> Digest:
        """Pack a ModelKit, and begin to work on it."""
        source = self.folder / f"source-{tag.replace(':', '-')}"
        for name, text in (files | {"Kitfile": kitfile}).items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(text)
        made = pack(self.store, source, None, [parse_reference(tag)], created_s=1, options=PackOptions(**options))
        self.begin(tag)
        return made

    def begin(self, tag: str) -> None:
        """Begin to work on a ModelKit that is there."""
        self.parent = resolve(self.store, parse_reference(tag))
        self.path = self.top = self.folder / f"work-{tag.replace(':', '-')}"
        if self.is_staged:
            overlay = "fuse-overlayfs"
            made = create_staging(self.store, self.path, self.parent, overlay=overlay, uid=os.geteuid(), gid=0)
            self.top = made.upper
        else:
            unpack(self.store, parse_reference(tag), self.top)

    def write(self, name: str, text: str = "new") -> Path:
        (self.top / name).parent.mkdir(parents=True, exist_ok=True)
        (self.top / name).write_text(text)
        return self.top / name

    def remove(self, name: str) -> None:
        path = self.top / name
        if self.is_staged:
            self.write(f"{path.parent.relative_to(self.top)}/.wh.{path.name}", "")
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def commit(self, tag: str = "kit:2", progress: Progress | None = None, **options: Any) -> Derived:
        return derive(
            self.store,
            self.path,
            parse_reference(tag),
            parent=None if self.is_staged else self.parent,
            options=DeriveOptions(created_s=2, **options),
            progress=progress,
            warn=self.warnings.append,
        )

    def read(self, name: str, tag: str = "kit:2") -> str:
        """A file of a ModelKit."""
        target = self.folder / f"unpacked-{tag.replace(':', '-')}"
        if not target.exists():
            unpack(self.store, parse_reference(tag), target)
        return (target / name).read_text()

    def untag(self) -> None:
        """Remove the tag ``kit:1``."""
        with self.store.lease("remove") as lease:
            change = self.store.change(lease)
            change.remove_tag("localhost/kit", "1")
            change.commit()

    def tags(self) -> list[str]:
        return sorted(f"{repository.removeprefix('localhost/')}:{tag}" for repository, tag, _ in self.store.iter_tags())


@pytest.fixture(params=["staged", "folder"])
def work(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Work:
    """Work on a ModelKit, in a staging directory and in a folder."""
    return Work(store, tmp_path, is_staged=request.param == "staged")


@pytest.fixture
def staged(store: Store, tmp_path: Path) -> Work:
    """Work on a ModelKit in a staging directory."""
    return Work(store, tmp_path, is_staged=True)


@pytest.fixture
def unpacked(store: Store, tmp_path: Path) -> Work:
    """Work on a ModelKit in a folder."""
    return Work(store, tmp_path, is_staged=False)


class Meddling(NoProgress):
    """Does something whenever the writing of a layer begins; ``count`` says how often."""

    def __init__(self, meddle: Callable[[int], object]) -> None:
        self.count = 0
        self._meddle = meddle

    def begin(self, name: str, size: int) -> Step:
        self.count += 1
        self._meddle(self.count)
        return super().begin(name, size)


@pytest.fixture
def meddling() -> type[Meddling]:
    """Progress that does something whenever the writing of a layer begins."""
    return Meddling
