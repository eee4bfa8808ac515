"""What an export writes with: index files that are added to, and files that are whole or not there."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.digest import Digest
from kitfs.oci.manifest import ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor, ManifestMalformed, parse_index
from kitfs.oci.mediatype import OCI_MANIFEST
from kitfs.oci.reference import parse_reference
from kitfs.progress import NoProgress
from kitfs.store.store import Store
from kitfs.transfer import export_files
from kitfs.transfer.detect import open_source
from kitfs.transfer.export_index import LayoutIndex
from kitfs.transfer.export_layout import export_layout
from kitfs.transfer.export_plan import plan_export
from kitfs.transfer.importer import import_source


def descriptor(number: int, name: str | None = None) -> Descriptor:
    annotations = {ANNOTATION_REF_NAME: name, ANNOTATION_IMAGE_NAME: f"localhost/x:{name}"} if name else {}
    return Descriptor(OCI_MANIFEST, Digest.of(bytes([number])), 100, annotations)


def names_in(index: LayoutIndex) -> list[tuple[str | None, Digest]]:
    return [(entry.annotations.get(ANNOTATION_REF_NAME), entry.digest) for entry in parse_index(index.encode())]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, "a", "b", "c"])), max_size=12))
def test_an_index_is_a_dictionary_of_names_that_loses_no_manifest(steps):
    """The last manifest that got a name has it, alone, and every manifest that was ever added stays listed."""
    index, expected = LayoutIndex(None), {}
    for number, name in steps:
        if name is None:
            index.add(descriptor(number))
        else:
            index.set_name(name, descriptor(number, name))
            expected[name] = descriptor(number).digest
    found = names_in(index)
    named = [item for item in found if item[0] is not None]
    assert dict(named) == expected and len(named) == len(expected)
    assert {digest for _, digest in found} == {descriptor(number).digest for number, _ in steps}
    unnamed = [digest for name, digest in found if name is None]
    assert len(unnamed) == len(set(unnamed)) and not set(unnamed) & set(expected.values())
    assert names_in(LayoutIndex(index.encode())) == found


def test_other_keys_stay(tmp_path):
    """Keys of the index and of its entries that we do not use are written back, also where a name is taken away."""
    entry = {"mediaType": OCI_MANIFEST, "digest": str(descriptor(1).digest), "size": 100, "artifactType": "x/y",
             "annotations": {ANNOTATION_REF_NAME: "a", "k": "v"}}  # fmt: skip
    raw = json.dumps({"schemaVersion": 2, "manifests": [entry], "annotations": {"n": "m"}}).encode()
    index = LayoutIndex(raw)
    index.set_name("a", descriptor(2, "a"))
    top = json.loads(index.encode())
    assert top["annotations"] == {"n": "m"} and top["manifests"][0] == entry | {"annotations": {"k": "v"}}


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"schemaVersion":2}', b'{"schemaVersion":2,"manifests":[1]}'])
def test_what_is_no_index_is_refused(raw):
    """An index that breaks its format is never written back."""
    with pytest.raises(ManifestMalformed):
        LayoutIndex(raw)


@pytest.fixture
def store(make_layout, tmp_path):
    with Store.open(tmp_path / "home") as store:
        source = open_source(make_layout("m", "gzip", {"w": os.urandom(300_000)}))
        import_source(store, source, copy=True)
        source.close()
        yield store


def _clone(fd: int, _request: int, source: int) -> int:
    os.sendfile(fd, source, 0, os.fstat(source).st_size)
    os.lseek(fd, 0, os.SEEK_SET)
    return 0


def _clone_wrongly(fd: int, _request: int, source: int) -> int:
    os.pwrite(fd, bytes(os.fstat(source).st_size + 7), 0)
    return 0


@pytest.mark.parametrize("ioctl", [None, _clone, _clone_wrongly])
def test_blobs_are_cloned_where_that_works(store, tmp_path, monkeypatch, read_layout, ioctl):
    """With a file system that shares extents, one that does not, and one whose clone is wrong, all bytes are right."""
    if ioctl is not None:
        monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with store.lease("test") as lease:
        plan = plan_export(store, lease, [parse_reference("m:1")])
        export_layout(store, plan, tmp_path / "out", progress=NoProgress())
    assert list(read_layout(tmp_path / "out")) == ["1"]


def test_sweep_removes_what_is_dead_and_nothing_else(tmp_path):
    """A file under way of a living process stays, in this process and another; that of a dead one goes."""
    code = (
        "import sys; from pathlib import Path; from kitfs.transfer.export_files import open_scratch\n"
        "with open_scratch(Path(sys.argv[1]), 0o600): print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "open\n"
    (theirs,) = tmp_path.iterdir()
    (tmp_path / "notes.txt").write_text("mine")
    with export_files.open_scratch(tmp_path, 0o600) as (_, mine):
        export_files.sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", mine.name, theirs.name}
        other.kill()
        other.communicate()
        export_files.sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", mine.name}
    assert [path.name for path in Path(tmp_path).iterdir()] == ["notes.txt"]


def test_file_that_a_sweep_has_locked_first_is_not_used(tmp_path, monkeypatch):
    """A sweep that comes between making a file and locking it takes it; another is made."""
    sweeping = []

    def sweep_first(path, flags, *arguments, opened=os.open, **options):
        fd = opened(path, flags, *arguments, **options)
        if flags & os.O_EXCL and not sweeping:
            sweeping.append((opened(path, os.O_RDONLY), Path(path)))
            fcntl.flock(sweeping[0][0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    monkeypatch.setattr(os, "open", sweep_first)
    with export_files.open_scratch(tmp_path, 0o600) as (_, mine):
        lock, theirs = sweeping[0]
        theirs.unlink()
        os.close(lock)
        assert mine != theirs and mine.exists()


def test_a_lease_keeps_what_is_exported(store, tmp_path):
    """While an export is under way its ModelKit may lose its tag and GC may run: nothing of it goes."""
    from kitfs.store.gc import gc

    with store.lease("test") as lease:
        plan = plan_export(store, lease, [parse_reference("m:1")])
        with store.lease("remove") as other:
            change = store.change(other)
            change.remove_tag("localhost/m", "1")
            change.commit()
        gc(store)
        export_layout(store, plan, tmp_path / "out", progress=NoProgress())
    assert gc(store).victims
