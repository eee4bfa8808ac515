"""Linked blobs: another program's file becomes ours without a copy, or not at all."""

import os
import stat

import pytest

from kitfs.digest import Digest, DigestMismatch
from kitfs.store.errors import BlobCorrupt, CanNotLink
from kitfs.store.gc import gc
from kitfs.store.stamp import settle, stamp_of

DATA = b"weights"
DIGEST = Digest.of(DATA)


@pytest.fixture
def source(tmp_path):
    """A file of kit's."""
    path = tmp_path / "kit-blob"
    path.write_bytes(DATA)
    path.chmod(0o640)
    return path


def link(store, source, digest=DIGEST):
    with store.lease("test") as lease:
        store.link_blob(lease, source, digest)
        change = store.change(lease)
        change.add_blob(digest, len(DATA))
        change.commit()
        lease.hold(digest)


def test_linked_blob_is_the_same_file_with_its_mode(store, source):
    """The blob is a second name of the source, whose mode is left alone; it is recorded as linked, never trusted."""
    link(store, source)
    status = store.layout.blob(DIGEST).stat()
    assert status.st_ino == source.stat().st_ino
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert store.get_blob(DIGEST).form == "linked"
    assert not store.is_trusted(DIGEST)


def test_linked_blob_outlives_its_source(store, source):
    """Removing the source, as kit remove does, leaves the blob."""
    link(store, source)
    source.unlink()
    assert store.read_blob(DIGEST) == DATA


def test_source_outlives_the_blob(store, source):
    """Garbage collection of a linked blob leaves the source."""
    link(store, source)
    gc(store)
    assert source.read_bytes() == DATA


def test_wrong_bytes_are_refused(store, source):
    """A source that holds other bytes is a DigestMismatch and leaves nothing."""
    source.write_bytes(b"others!")
    with pytest.raises(DigestMismatch):
        link(store, source)
    assert not store.layout.blob(DIGEST).exists()
    assert list(store.layout.ingest.iterdir()) == []


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo", "absent"])
def test_only_regular_files_are_linked(store, source, tmp_path, kind):
    """A symlink, folder, fifo or nothing can not be linked, and does not block."""
    path = tmp_path / "other"
    {
        "symlink": lambda: path.symlink_to(source),
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "absent": lambda: None,
    }[kind]()
    with store.lease("test") as lease, pytest.raises(CanNotLink):
        store.link_blob(lease, path, DIGEST)
    assert list(store.layout.ingest.iterdir()) == []


@pytest.mark.root
def test_file_of_another_owner_is_not_linked(store, source):
    """A file that another uid could write is copied, not linked."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give the file away")
    os.chown(source, 12345, -1)
    with pytest.raises(CanNotLink, match="12345"):
        link(store, source)


def test_file_of_another_file_system_is_not_linked(store):
    """A file in another file system can not be linked."""
    fd = os.memfd_create("source")
    os.write(fd, DATA)
    path = store.home.parent / "fd"
    path.symlink_to(f"/proc/{os.getpid()}/fd")
    with pytest.raises(CanNotLink), store.lease("test") as lease:
        store.link_blob(lease, path / str(fd), DIGEST)
    os.close(fd)


def test_watcher_sees_the_bytes_and_can_refuse(store, source):
    """A watcher sees all bytes before the blob is in place; its error leaves nothing."""

    class Watcher:
        seen = b""

        def feed(self, data):
            self.seen += bytes(data)

        def finish(self):
            raise ValueError

    watcher = Watcher()
    with store.lease("test") as lease, pytest.raises(ValueError):
        store.link_blob(lease, source, DIGEST, watcher)
    assert watcher.seen == DATA
    assert not store.layout.blob(DIGEST).exists()


def test_copied_blob_in_place_is_kept(store, build, source):
    """Linking what the store has of its own, verified and untouched, keeps the store's own file."""
    digest = build.member(DATA)
    with store.lease("test") as lease:
        build.put(lease, DATA)
        settle(stamp_of(store.layout.blob(digest).stat()))
        change = store.change(lease)
        change.add_blob(digest, len(DATA))
        change.commit()
        inode = store.layout.blob(digest).stat().st_ino
        store.link_blob(lease, source, digest)
    assert store.layout.blob(digest).stat().st_ino == inode
    assert store.get_blob(digest).form == "whole"


def test_changed_source_is_found_and_healed(damaged, build_damaged, source):
    """When kit's file is overwritten in place, holding it verified says so, and storing the bytes again heals it."""
    link(damaged, source)
    source.write_bytes(b"changed")
    with damaged.lease("again") as lease:
        with pytest.raises(Exception, match="corrupt"):
            damaged.hold_verified(lease, DIGEST)
        build_damaged.put(lease, DATA)
        change = damaged.change(lease)
        change.add_blob(DIGEST, len(DATA))
        change.commit()
        damaged.hold_verified(lease, DIGEST)
    assert damaged.get_blob(DIGEST).form == "whole"
    assert source.read_bytes() == b"changed"


class Scribbler:
    """Writes other bytes into a file of kit's between its hashing and its placing."""

    def __init__(self, source):
        self.source = source

    def feed(self, data):
        """Looks at nothing."""

    def finish(self):
        self.source.write_bytes(b"strange")


def test_what_its_owner_wrote_while_it_was_linked_is_not_believed(store, source):
    """Bytes that changed after they were hashed are found by the next import, which asks for them anew (I7)."""
    os.utime(source, ns=(0, 0))
    with store.lease("test") as lease:
        store.link_blob(lease, source, DIGEST, Scribbler(source))
        settle(stamp_of(store.layout.blob(DIGEST).lstat()))
        change = store.change(lease)
        change.add_blob(DIGEST, len(DATA))
        change.commit()
        with pytest.raises(BlobCorrupt):
            store.hold_verified(lease, DIGEST)
    source.write_bytes(DATA)


def test_link_over_a_copy_that_is_not_recorded_yet_is_known_as_linked(store, source):
    """Two imports at once, one copies and one links: whoever commits last, a linked file is recorded as linked."""
    with store.lease("copies") as copies, store.lease("links") as links:
        with store.ingest(copies) as ingest:
            ingest.write(DATA)
            ingest.commit_blob(DIGEST)
        store.link_blob(links, source, DIGEST)
        for lease in (links, copies):
            change = store.change(lease)
            change.add_blob(DIGEST, len(DATA))
            change.commit()
    assert store.layout.blob(DIGEST).stat().st_ino == source.stat().st_ino
    assert store.get_blob(DIGEST).form == "linked"
