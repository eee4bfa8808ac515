"""The one order of writing, looked at from outside."""

import errno
import os
import resource
import signal
import stat
import threading

import pytest

from kitfs.digest import Digest
from kitfs.store import durable
from kitfs.store.errors import StoreWriteFailed


def files_of(store):
    return sorted(path for kind in ("blobs", "members") for path in store.layout.content(kind).glob("*/*"))


@pytest.fixture
def file_size_limit():
    """Files may grow to 1 MiB only; a write across the limit is short, one beyond it is EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    yield 1 << 20
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def test_nothing_is_visible_before_the_commit(store):
    """While bytes are written, no file has their digest's name, and the ingest is private."""
    with store.lease("test") as lease, store.ingest(lease) as ingest:
        ingest.write(b"hello")
        assert files_of(store) == []
        [scratch] = store.layout.ingest.iterdir()
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o600
        ingest.commit_blob()


def test_committed_file_has_its_final_mode_and_no_writable_descriptor(store, build):
    """A committed file is 0444, and this process has no descriptor of it left."""
    with store.lease("test") as lease:
        path = store.layout.blob(build.put(lease, b"hello"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        targets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        assert str(path) not in targets
        assert list(store.layout.ingest.iterdir()) == []


def _is_open(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_abandoned_ingest_leaves_nothing(store):
    """Leaving the block without a commit removes what was written."""
    with store.lease("test") as lease:
        with store.ingest(lease) as ingest:
            ingest.write(b"hello")
        assert list(store.layout.ingest.iterdir()) == []
    assert files_of(store) == []


def test_blob_in_place_keeps_its_inode(store, build):
    """Bytes that are there, verified and untouched, keep their file when they come again."""
    digest = build.member(b"hello")
    inode = store.layout.member(digest).stat().st_ino
    with store.lease("again") as lease:
        build.put(lease, b"hello", member=True)
        assert store.layout.member(digest).stat().st_ino == inode
        assert lease.holds(digest)
    build.member(b"hello")
    assert store.layout.member(digest).stat().st_ino == inode
    fd, trusted = store.open_member(digest)
    os.close(fd)
    assert trusted


@pytest.mark.parametrize("damage", [b"jello", b"hell", b"hello hello", b""])
def test_bytes_that_come_again_heal_a_changed_file(damaged, build_damaged, damage):
    """A blob that was overwritten, cut, extended or emptied is right again once it is stored again."""
    build_damaged.kit(layers=[b"hello"])
    path = damaged.layout.blob(Digest.of(b"hello"))
    path.chmod(0o644)
    path.write_bytes(damage)
    with damaged.lease("again") as lease:
        assert damaged.read_blob(build_damaged.put(lease, b"hello")) == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize("kind", ["symlink", "folder"])
def test_what_lies_in_the_way_is_replaced_or_named(damaged, build_damaged, kind, tmp_path):
    """A symlink under a blob's name is replaced and its target untouched; a folder there is a named error."""
    (tmp_path / "target").write_bytes(b"other")
    path = damaged.layout.blob(Digest.of(b"hello"))
    path.symlink_to(tmp_path / "target") if kind == "symlink" else path.mkdir()
    with damaged.lease("test") as lease:
        if kind == "symlink":
            assert damaged.read_blob(build_damaged.put(lease, b"hello")) == b"hello"
        else:
            with pytest.raises(StoreWriteFailed, match="renaming"):
                build_damaged.put(lease, b"hello")
    assert (tmp_path / "target").read_bytes() == b"other"
    assert list(damaged.layout.ingest.iterdir()) == []


def test_short_write_is_an_error_and_leaves_nothing(store, file_size_limit):
    """When the kernel takes only a part, the ingest fails, says so, and leaves no file."""
    with store.lease("test") as lease:
        with pytest.raises(StoreWriteFailed, match="were taken"), store.ingest(lease) as ingest:
            ingest.write(bytes(file_size_limit - 10))
            ingest.write(bytes(100))
        with pytest.raises(StoreWriteFailed, match="too large"), store.ingest(lease) as ingest:
            ingest.write(bytes(file_size_limit))
            ingest.write(b"x")
        assert list(store.layout.ingest.iterdir()) == []
    assert files_of(store) == []


def test_ingest_that_failed_takes_nothing_more(store, file_size_limit):
    """After a failed write neither another write nor a commit succeeds."""
    with store.lease("test") as lease:
        ingest = store.ingest(lease)
        with pytest.raises(StoreWriteFailed):
            ingest.write(bytes(file_size_limit + 1))
        with pytest.raises(StoreWriteFailed):
            ingest.write(b"x")
        with pytest.raises(StoreWriteFailed):
            ingest.commit_blob()


def test_many_threads_store_the_same_bytes(store, build):
    """Sixteen threads that store one blob at once make one file with the right bytes."""
    digests, data = [], os.urandom(300_000)

    def put():
        with store.lease("thread") as lease:
            change = store.change(lease)
            change.add_blob(build.put(lease, data), len(data))
            change.commit()
            digests.append(store.read_blob(Digest.of(data)) == data)

    threads = [threading.Thread(target=put) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [True] * 16
    assert len(files_of(store)) == 1


def test_rename_without_the_flag_does_not_replace_either(tmp_path, monkeypatch):
    """Where renameat2 has no RENAME_NOREPLACE, a file that is there is left alone all the same."""
    for renameat2 in (None, lambda *_: _fail(errno.EINVAL)):
        monkeypatch.setattr(durable, "_RENAMEAT2", renameat2)
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_text("new")
        assert durable.rename_new(source, target)
        source.write_text("newer")
        assert not durable.rename_new(source, target)
        assert (source.read_text(), target.read_text()) == ("newer", "new")
        target.unlink()


def _fail(code):
    import ctypes

    ctypes.set_errno(code)
    return -1
