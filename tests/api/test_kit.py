"""An open ModelKit: what it says of itself, and that it stays whole for as long as it is open."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import kitfs
from kitfs.api import ModelKitClosed, ModelKitForked
from kitfs.cli.main import run
from kitfs.errors import NotFoundError
from kitfs.oci.reference import ReferenceMalformed
from kitfs.store.errors import StoreNotFound

TAR = "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316"
TUNED = "registry.example.com:8080/acme/team_a/tuned:1"


def test_kit_says_what_it_is(home):
    """Id, Kitfile, manifest and config are those of the ModelKit; one that nobody derived has no parent."""
    with kitfs.open("myllm", home=home) as kit:
        assert (kit.id, kit.reference) == (TAR, "myllm:latest")
        assert isinstance(kit.kitfile, kitfs.Kitfile) and kit.kitfile.model.path == "./model"
        assert f"sha256:{hashlib.sha256(kit.manifest).hexdigest()}" == TAR
        assert kit.kitfile.model.name.encode() in kit.config
        assert (kit.parent, kit.parent_reference, kit.message, kit.created) == (None, None, "", None)


@pytest.mark.parametrize("reference", [TAR, f"myllm@{TAR}", "myllm:3.1.4"])
def test_reference_may_be_any(home, reference):
    """A ModelKit is opened by its ModelKitID too."""
    with kitfs.open(reference, home=home) as kit:
        assert kit.id == TAR and (kit / "README.md").read_text()


def test_kit_without_a_kitfile_has_none(import_kits, shared_fixtures):
    """A ModelPack artifact without a Kitfile has files all the same."""
    home = import_kits(shared_fixtures / "modctl/layout", "--copy", "--as", "mp")
    with kitfs.open("mp:raw", home=home) as kit:
        assert kit.kitfile is None and any(path.size for path in kit.files().iter_files())


def test_lineage_of_a_derived_kit(import_kits, chain):
    """Parent, its name then, message and time are those that its annotations have."""
    first = chain.add()
    chain.add(parent_reference="tuned:gold", message="two\nlines")
    home = import_kits(chain.layout, "--copy", "--as", "tuned")
    with kitfs.open("tuned:2", home=home) as kit:
        assert (kit.parent, kit.parent_reference, kit.message) == (first, "tuned:gold", "two\nlines")
        assert kit.created.isoformat() == "2026-03-01T10:00:01+00:00"


def test_what_is_not_there_is_not_opened(home, tmp_path):
    """A ModelKit, a store and a parent that are not there are each said to be; nothing is made."""
    with pytest.raises(NotFoundError, match="nope:1"):
        kitfs.open("nope:1", home=home)
    with pytest.raises(ReferenceMalformed):
        kitfs.open("X//y", home=home)
    with pytest.raises(StoreNotFound):
        kitfs.open("myllm", home=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert run(["remove", "myllm:3.1.4", "--home", str(home)]) == 0
    with pytest.raises(NotFoundError, match=r"myllm:3\.1\.4.*parent of registry"):
        kitfs.open(TUNED, home=home)
    assert list((home / "leases").iterdir()) == []


def test_home_is_that_of_the_commands(home, monkeypatch):
    """Without a home the store is where the commands have it."""
    monkeypatch.setenv("KITFS_HOME", str(home))
    with kitfs.open("myllm") as kit:
        assert kit.id == TAR


def test_open_kit_is_not_collected(home):
    """What is open is read to its end after its tags were removed and the collector came; then it is gone."""
    before = {str(path): path.read_bytes() for path in _files(TUNED, home)}
    with kitfs.open(TUNED, home=home) as kit:
        for words in (["remove", "--all", "--force"], ["gc"]):
            assert run([*words, "--home", str(home)]) == 0
        assert {str(path): path.read_bytes() for path in kit.files().iter_files()} == before
    assert run(["gc", "--home", str(home)]) == 0
    with pytest.raises(NotFoundError):
        kitfs.open(TUNED, home=home)
    assert not [path for path in (home / "blobs").rglob("*") if path.is_file()]


def _files(reference, home):
    with kitfs.open(reference, home=home) as kit:
        yield from kit.files().iter_files()


def test_closed_kit_says_so(home):
    """Whatever reads from a closed ModelKit is told; closing it twice is no mistake, and its facts stay known."""
    kit = kitfs.open("myllm", home=home)
    path = kit / "README.md"
    file = path.open("rb")
    kit.close()
    kit.close()
    assert kit.closed and kit.id == TAR
    for call in (path.read_bytes, path.exists, file.read, lambda: list(kit.files().iterdir())):
        with pytest.raises(ModelKitClosed, match="myllm:latest is closed"):
            call()
    assert list((home / "leases").iterdir()) == []


def test_kit_that_is_forgotten_is_closed(home):
    """A path keeps its ModelKit open; when nothing refers to either any more, the lease ends."""
    path = kitfs.open("myllm", home=home) / "README.md"
    assert path.read_text() and len(list((home / "leases").iterdir())) == 1
    del path
    assert list((home / "leases").iterdir()) == []


def test_closed_file_is_given_back(home):
    """A file that is closed has no descriptor any more, though its object and its ModelKit live on."""

    def opened() -> list[str]:
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return [os.readlink(link) for link in links if os.path.lexists(link) and "/members/" in os.readlink(link)]

    with kitfs.open("myllm:3.1.4", home=home) as kit:
        files = [path.open("rb") for path in (kit / "model").iterdir() if path.is_file()]
        assert all(file.read(1) for file in files) and len(opened()) == len(files)
        for file in files:
            file.close()
        assert opened() == []


def test_kit_closed_while_it_is_listed(home):
    """A directory whose ModelKit is closed in the midst of a listing is not listed to its end."""
    with kitfs.open("myllm", home=home) as kit:
        entries = kit.files().iter_files()
        next(entries)
    with pytest.raises(ModelKitClosed):
        list(entries)


def test_threads_read_at_once(home):
    """Many threads that read the same and other files of two ModelKits of one store get each the right bytes."""
    with kitfs.open("myllm:3.1.4", home=home) as tar, kitfs.open("myllm:3.1.4-gzip", home=home) as gzip:
        paths = [path for kit in (tar, gzip) for path in kit.files().iter_files()]
        expected = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
        shared = [path.open("rb", buffering=0) for path in paths]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                whole = list(pool.map(lambda path: path.read_bytes(), paths))
                ranges = list(pool.map(lambda file: file.read_range(0, file.size), shared))
                assert [hashlib.sha256(data).digest() for data in whole] == expected
                assert whole == ranges


def test_close_waits_for_who_reads(home):
    """close() in one thread waits until a read in another is done; what is asked afterwards is refused."""
    kit = kitfs.open("myllm", home=home)
    closing = threading.Thread(target=kit.close)
    with kit.using():
        closing.start()
        closing.join(0.05)
        assert closing.is_alive() and not kit.closed
        assert (kit / "README.md").read_text()
    closing.join(60)
    assert kit.closed


def _child(kit, connection) -> None:
    try:
        (kit / "README.md").read_text()
    except ModelKitForked as error:
        kit.close()
        connection.send(str(error))


def test_fork_is_told(home):
    """A forked child that uses its parent's ModelKit is told to open its own, and takes nothing from the parent."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with kitfs.open("myllm", home=home) as kit:
        child = context.Process(target=_child, args=(kit, theirs))
        child.start()
        assert ours.poll(60) and "before a fork" in ours.recv()
        child.join(60)
        assert child.exitcode == 0
        assert (kit / "README.md").read_text() and len(list((home / "leases").iterdir())) == 1


def python(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_import_costs_nothing():
    """``import kitfs`` imports no other module of kitfs before one of its names is used; all of them are there."""
    code = "import sys, kitfs; print(*[name for name in sys.modules if name.startswith('kitfs.')])"
    assert python(code).strip() == ""
    assert {name for name in kitfs.__all__ if getattr(kitfs, name) is not None} == set(kitfs.__all__)
    assert set(kitfs.__all__) <= set(dir(kitfs))
    with pytest.raises(AttributeError, match="nope"):
        kitfs.nope  # noqa: B018


def test_program_that_ends_leaves_no_lease(home):
    """An interpreter that exits with an open ModelKit, whose decoders are at work, ends at once and gives it back."""
    code = """
import sys, kitfs
kit = kitfs.open("myllm:3.1.4-gzip", home=sys.argv[1])
file = (kit / "model/vocab.txt").open("rb")
print(len(file.read()))
"""
    assert python(code, home) == "231508\n"
    assert list((home / "leases").iterdir()) == []
    assert os.listdir(home / "ingest") == []
