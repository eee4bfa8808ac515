"""Commits while others write, collect or commit; and what becomes of layers."""

import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.modelkit.derive import (
    Derived,
    TreeChanged,
)
from kitfs.modelkit.derive_plan import LayerState
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.walk import FileChanged, FileOpenForWriting
from kitfs.oci.mediatype import LayerFormat
from kitfs.oci.reference import parse_reference
from kitfs.progress import Step
from kitfs.store.errors import StoreWriteFailed, TagTaken
from kitfs.store.gc import gc

KITFILE = "manifestVersion: 1.0.0\nmodel: {name: m, path: model}\ndatasets: [{path: data}]\ndocs: [{path: docs/a}]\n"


def states(derived: Derived) -> dict[str, str]:
    return {layer.path: layer.state.value for layer in derived.layers}


def test_file_that_is_open_for_writing_is_refused(work):
    """A file with a writer, by a descriptor or by a shared map alone, stops the commit until it is closed."""
    work.make()
    path = work.write("data/x", "12345")
    with open(path, "r+b") as file:
        with pytest.raises(FileOpenForWriting) as caught:
            work.commit()
        assert caught.value.path == "data/x" and "commit again" in caught.value.hint
        shared = mmap.mmap(file.fileno(), 5)
    with pytest.raises(FileOpenForWriting):
        work.commit()
    shared.close()
    assert work.tags() == ["kit:1"]
    assert work.commit().is_new and work.read("data/x") == "12345"


def test_open_file_that_looks_unchanged_is_refused(work):
    """A file with a writer is not taken for unchanged because its size is the parent's."""
    work.make()
    with open(work.write("data/x", "1"), "r+b"), pytest.raises(FileOpenForWriting):
        work.commit()


@pytest.mark.parametrize("times", [1, 2])
def test_change_meanwhile_is_tried_again_once(staged, meddling, times):
    """A change while layers are written makes another try; when it happens again, nothing is committed."""
    staged.make()
    staged.write("data/x", "first")
    writing = meddling(lambda count: count > times or staged.write(f"docs/new{count}"))
    options = {"progress": writing, "ignores_untracked": True}
    if times == 1:
        assert staged.commit(**options).is_new
    else:
        with pytest.raises(TreeChanged) as caught:
            staged.commit(**options)
        assert "commit again" in caught.value.hint
        assert staged.tags() == ["kit:1"]
    assert writing.count == 2


def test_file_that_grows_while_it_is_read_is_noticed(work, meddling):
    """A file that gets longer while it is read is no member cut short: two tries, then an error."""
    work.make()
    path = work.write("data/x", "first")

    class Growing(meddling):
        def begin(self, name: str, size: int) -> Step:
            super().begin(name, size)
            return self

        def advance(self, _size: int) -> None:
            with path.open("a") as file:
                file.write("more")

        def finish(self) -> None:
            pass

    growing = Growing(lambda _count: None)
    with pytest.raises(FileChanged) as caught:
        work.commit(progress=growing)
    assert "commit again" in caught.value.hint and work.tags() == ["kit:1"] and growing.count == 2


def test_parent_may_go_while_its_child_is_made(work, meddling):
    """The parent's tag is removed and the collector runs while layers are written: the child is whole."""
    work.make()
    work.write("docs/a")

    def collect(_count: int) -> None:
        work.untag()
        gc(work.store)

    derived = work.commit(progress=meddling(collect))
    assert states(derived) == {"model": "unchanged", "data": "unchanged", "docs/a": "changed"}
    gc(work.store)
    assert (work.read("model/w"), work.read("docs/a")) == ("weights", "new")


def test_parent_that_went_before_is_missed_at_once(unpacked, meddling):
    """A folder's parent that was collected is an error before anything is written."""
    unpacked.make()
    unpacked.untag()
    gc(unpacked.store)
    writing = meddling(lambda _count: None)
    with pytest.raises(KitfsError) as caught:
        unpacked.commit(progress=writing)
    assert str(unpacked.parent.digests[0]) in str(caught.value) and writing.count == 0


def test_two_commits_to_one_tag_leave_one(work, meddling):
    """Of two commits at once to one tag one is told that it is taken, and the other's ModelKit is there."""
    work.make()
    work.write("docs/a")
    meeting = threading.Barrier(2, timeout=60)
    found: list[object] = []

    def commit() -> None:
        try:
            found.append(work.commit(progress=meddling(lambda _count: meeting.wait())).manifest)
        except TagTaken as error:
            found.append(error)

    threads = [threading.Thread(target=commit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (made,) = [one for one in found if isinstance(one, Digest)]
    assert [type(one) for one in found if one != made] == [TagTaken]
    assert resolve(work.store, parse_reference("kit:2")).digests == (made,)


def test_directory_that_becomes_a_file_of_another_layer_changes_its_own(work):
    """A layer lists an empty directory where another one has a file now: it is written anew without it."""
    kitfile = KITFILE.replace("docs/a", "docs")
    work.make(kitfile)
    (work.top / "data/empty").mkdir(parents=True)
    assert work.commit().is_new
    work.begin("kit:2")
    if not work.is_staged:
        work.remove("data/empty")
    work.write("data/empty", "a file")
    work.write("Kitfile", kitfile + "code: [{path: data/empty}]\n")
    derived = work.commit("kit:3")
    assert states(derived)["data"] == "changed" and states(derived)["data/empty"] == "new"
    assert work.read("data/empty", "kit:3") == "a file"


def test_raw_layer_whose_file_becomes_a_directory_is_a_tar(staged):
    """A raw layer is the bytes of one file; a directory in its place is a tar, and another raw layer stays raw."""
    staged.make("manifestVersion: 1.0.0\nmodel: {name: m, path: w}\ndocs: [{path: d}]\n", {"w": "1", "d": "2"},
                layer_format=LayerFormat.RAW)  # fmt: skip
    staged.write("w/1", "one")
    staged.write("d", "3")
    derived = staged.commit()
    formats = {one.path: one.plan.type.format for one in derived.layers if one.plan is not None}
    assert formats == {"w": LayerFormat.TAR, "d": LayerFormat.RAW}
    assert (staged.read("w/1"), staged.read("d")) == ("one", "3")


def test_special_bits_outlive_a_rewrite(staged, tmp_path):
    """A layer that is written anew keeps setuid and sticky bits of what was not touched."""
    source = tmp_path / "source-kit-1"
    (source / "data").mkdir(parents=True)
    (source / "data/tool").write_text("tool")
    (source / "data/tool").chmod(0o4755)
    (source / "data").chmod(0o1775)
    staged.make()
    staged.write("data/x", "12")
    assert states(staged.commit())["data"] == LayerState.CHANGED
    layer = next(
        one for one in resolve(staged.store, parse_reference("kit:2")).kits[0].layers if one.type.kind == "dataset"
    )
    modes = {one.path: stat.S_IMODE(one.mode) for one in staged.store.get_toc(layer.digest)}
    assert (modes[b"data/tool"], modes[b"data"]) == (0o4755, 0o1775)


def test_index_records_of_kept_layers_are_the_childs_too(work):
    """The image index that is bound to a layer goes along with it, so that the collector keeps it for the child."""
    made = work.make()
    work.write("docs/a")
    derived = work.commit()
    assert derived.manifest is not None
    indexes = [set(work.store.get_manifest(digest).indexes) for digest in (made, derived.manifest)]
    assert len(indexes[0] & indexes[1]) == 2 and len(indexes[1]) == 3


def test_interrupt_leaves_nothing(work, meddling):
    """Control-C while a layer is written ends the commit; nothing of it is visible, and nothing is under way."""
    work.make()
    path = work.write("data/x", "")
    os.truncate(path, 4 << 30)

    def interrupt(_count: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work.commit(progress=meddling(interrupt))
    assert work.tags() == ["kit:1"]
    assert not list((work.store.home / "ingest").iterdir()) and not list((work.store.home / "leases").iterdir())
    path.write_text("12")
    assert work.commit().is_new


@pytest.fixture
def small_disk(store_home: Path) -> Iterator[Path]:
    """The store's file system has 6 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system")
    store_home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", store_home], check=True, timeout=60)
    yield store_home
    subprocess.run(["umount", "-l", store_home], check=True, timeout=60)


@pytest.mark.root
@pytest.mark.usefixtures("small_disk")
def test_full_disk_leaves_nothing(work):
    """Where a child does not fit, an error says so and nothing of it is visible; a smaller one goes in then."""
    work.make()
    path = work.write("data/x", "")
    path.write_bytes(os.urandom(12 << 20))
    with pytest.raises(StoreWriteFailed, match=r"No space left|bytes were taken"):
        work.commit()
    assert work.tags() == ["kit:1"] and not list((work.store.home / "ingest").iterdir())
    path.write_text("12")
    assert work.commit().is_new and work.read("data/x") == "12"


MEETING = """
import os, sys
from kitfs.modelkit.walk import FileOpenForWriting, refuse_writers
path, checker = sys.argv[1], os.getpid()
if os.fork() == 0:
    while os.getppid() == checker:
        os.close(os.open(path, os.O_RDWR))
    os._exit(0)
met = 0
while met < 3000:
    fd = os.open(path, os.O_RDONLY)
    try:
        refuse_writers(fd, path)
    except FileOpenForWriting:
        met += 1
    os.close(fd)
"""


def test_writer_that_comes_while_a_file_is_checked_is_no_harm(tmp_path):
    """Who opens a file for writing just while its lease is there makes the kernel send a signal; it ends nothing.

    Without `F_SETSIG` about one run in three dies of SIGIO; the lease is there for a microsecond.
    """
    path = tmp_path / "file"
    path.touch()
    done = subprocess.run([sys.executable, "-c", MEETING, path], timeout=60, check=False)
    assert done.returncode == 0
