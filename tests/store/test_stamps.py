"""Stamps: what is trusted without being read, and what is not."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kitfs.digest import Digest
from kitfs.store.errors import BlobCorrupt, BlobNotFound, RecordCorrupt
from kitfs.store.records import Stamp
from kitfs.store.stamp import TICK_NS, is_settled, matches, settle, stamp_of

DATA = b"member bytes"


def trusted(store, digest):
    fd, answer = store.open_member(digest)
    os.close(fd)
    return answer


def test_untouched_member_is_trusted(store, build):
    """A member is trusted as long as nobody touched its file."""
    digest = build.member(DATA)
    assert trusted(store, digest)
    stamp = store.find_member(digest).stamp
    assert stamp.ctime_ns + TICK_NS <= time.time_ns()


def damage_write(path):
    path.chmod(0o644)
    path.write_bytes(b"others bytes")


def damage_mtime_hidden(path):
    """Other bytes of the same size, with the old mtime put back."""
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"others bytes")
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def damage_replaced(path):
    other = path.with_name("other")
    other.write_bytes(b"others bytes")
    other.chmod(0o444)
    other.rename(path)


def damage_cut(path):
    path.chmod(0o644)
    os.truncate(path, 3)


DAMAGES = [damage_write, damage_mtime_hidden, damage_replaced, damage_cut]


@pytest.mark.parametrize("damage", DAMAGES)
def test_changed_member_is_not_trusted_and_is_dropped_when_hashed(damaged, build_damaged, damage):
    """A member whose file was written, replaced or cut is not trusted; hashing it drops file and record."""
    digest = build_damaged.member(DATA)
    damage(damaged.layout.member(digest))
    assert not trusted(damaged, digest)
    assert not damaged.restamp_member(digest)
    assert damaged.find_member(digest) is None
    assert not damaged.layout.member(digest).exists()
    assert damaged.restamp_member(digest) is False


@pytest.mark.parametrize("touch", ["chmod", "link", "copy"])
def test_touched_member_with_right_bytes_is_trusted_again_once_hashed(store, build, tmp_path, touch):
    """A mode change, a new link or a restored copy voids the stamp; one hash gives a new one."""
    digest = build.member(DATA)
    path = store.layout.member(digest)
    if touch == "chmod":
        path.chmod(0o444)
    elif touch == "link":
        os.link(path, tmp_path / "link")
    else:
        (tmp_path / "copy").write_bytes(DATA)
        (tmp_path / "copy").chmod(0o444)
        (tmp_path / "copy").rename(path)
    assert not trusted(store, digest)
    assert store.restamp_member(digest)
    assert trusted(store, digest)


def test_stamp_younger_than_a_tick_is_not_believed():
    """A ctime within 20 ms of now, or in the future, is not settled; one that is older is."""
    stamp = Stamp(1, 2, 3, 4, 1_000_000_000)
    assert not is_settled(stamp, 1_000_000_000)
    assert not is_settled(stamp, 1_000_000_000 + TICK_NS - 1)
    assert is_settled(stamp, 1_000_000_000 + TICK_NS)
    assert not is_settled(stamp, 0)


def test_settling_waits_one_tick_at_most(tmp_path):
    """Waiting for a fresh file ends when it is settled; a file of the future is not waited for."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    stamp = stamp_of(path.stat())
    settle(stamp)
    assert is_settled(stamp, time.time_ns())
    before = time.monotonic()
    settle(Stamp(0, 0, 0, 0, time.time_ns() + 3600 * 10**9))
    assert time.monotonic() - before < 1
    assert not matches(None, path.stat())
    assert not matches(stamp, None)


def test_blob_is_held_unread_while_its_stamp_holds_and_hashed_otherwise(store, build):
    """A blob without a believed stamp is hashed once when held, then has one, and is trusted."""
    build.kit(layers=[DATA])
    digest = Digest.of(DATA)
    with store.lease("test") as lease:
        store.hold_verified(lease, digest)
        assert store.get_blob(digest).stamp is not None
        assert store.is_trusted(digest)
        store.layout.blob(digest).chmod(0o444)
        assert not store.is_trusted(digest)
        store.hold_verified(lease, digest)
        assert store.is_trusted(digest)


@pytest.mark.parametrize("damage", DAMAGES)
def test_changed_blob_is_corrupt_when_held(damaged, build_damaged, damage):
    """A blob whose bytes changed is not held as right."""
    build_damaged.kit(layers=[DATA])
    digest = Digest.of(DATA)
    damage(damaged.layout.blob(digest))
    with damaged.lease("test") as lease:
        with pytest.raises(BlobCorrupt):
            damaged.hold_verified(lease, digest)
        with pytest.raises(BlobCorrupt):
            damaged.read_blob(digest)


def test_damaged_table_of_contents_shows_when_the_layer_is_held(damaged, build_damaged):
    """A layer whose table of contents does not verify is not held as right, so that an import makes it anew."""
    build_damaged.kit(layers=[DATA])
    digest = Digest.of(DATA)
    with damaged.index.write() as txn:
        txn._txn.put(b"o" + digest.raw + b"\0" + bytes(4), b"\x01" + bytes(40))
    with damaged.lease("test") as lease, pytest.raises(RecordCorrupt):
        damaged.hold_verified(lease, digest)


def test_absent_blob_is_not_held(store):
    """Holding what is not there says so."""
    with store.lease("test") as lease, pytest.raises(BlobNotFound):
        store.hold_verified(lease, Digest("0" * 64))


def test_pipe_in_the_place_of_a_member_is_dropped_without_waiting(store, build):
    """What is no plain file is never opened for hashing: a pipe would wait for a writer for ever."""
    digest = build.member(DATA)
    path = store.layout.member(digest)
    path.unlink()
    os.mkfifo(path)
    assert not store.restamp_member(digest)
    assert store.find_member(digest) is None
    assert not path.exists()


def test_right_file_that_replaces_one_being_hashed_is_never_dropped(store):
    """However often a member is placed anew while others hash it, even under an inode number used before, it stays."""
    data = os.urandom(300_000)
    digest = Digest.of(data)
    done = threading.Event()

    def restamp() -> None:
        while not done.is_set():
            store.restamp_member(digest)

    with store.lease("test") as lease, ThreadPoolExecutor(3) as others:
        try:
            hashing = [others.submit(restamp) for _ in range(3)]
            for _ in range(100):
                with store.ingest(lease) as ingest:
                    ingest.write(data)
                    ingest.commit_member(digest)
                assert store.layout.member(digest).exists()
        finally:
            done.set()
        assert [future.result() for future in hashing] == [None] * 3
