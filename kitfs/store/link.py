"""Linked blobs: another program's file becomes a blob by a second name, without a copy.

Used by import from kit's local storage. The file keeps its mode, owner and times; only its link count changes.
It may be written by others later, so a linked blob is always read through its checksums and never passed
through to the kernel (store.md 1).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from kitfs.digest import Digest, Digester, DigestMismatch
from kitfs.store import durable
from kitfs.store.errors import CanNotLink
from kitfs.store.lease import Lease, Placement
from kitfs.store.records import Stamp
from kitfs.store.stamp import TICK_NS, find_status, matches, stamp_of

_READ_SIZE = 1 << 20


class Watcher(Protocol):
    """Sees the bytes of a file while it is verified, so that a layer is indexed in the same pass."""

    def feed(self, data: memoryview) -> None:
        """The next bytes; the view is overwritten once this returns."""

    def finish(self) -> None:
        """All bytes have passed and have the digest that was expected; an error here keeps the blob out."""


def hash_file(path: Path, watch: Callable[[memoryview], None] | None = None) -> Digest:
    """The digest of a file's bytes, which are shown to ``watch`` as they pass.

    Raises:
        OSError: when it can not be opened or read.
    """
    digester = Digester()
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(_READ_SIZE)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digester.update(view[:count])
            if watch is not None:
                watch(view[:count])
    return digester.digest()


def link_file(
    lease: Lease, source: Path, digest: Digest, recorded: Stamp | None, watcher: Watcher | None = None
) -> None:
    """Make ``source`` a blob by a hard link, after verifying its bytes and syncing them.

    On disk when it returns: the bytes (kit never fsyncs its blobs) and the new name. The lease holds the blob.

    Args:
        lease: What keeps it until a change has recorded it.
        source: A regular file of the store's owner in the store's file system.
        digest: What it must hold.
        recorded: The stamp that the index has for this blob: a file that still looks so is left in place.
        watcher: Sees the bytes; what it raises leaves nothing in the store.

    Raises:
        CanNotLink: when it is no regular file, belongs to someone else, lies in another file system, or the
            file system refuses links; copying may work.
        DigestMismatch: when it holds other bytes; nothing is left in the store.
        StoreWriteFailed: when a step failed; nothing is left in the store.
    """
    layout = lease.layout
    scratch = lease.next_ingest()
    _link(source, scratch, _check_source(source, layout.home))
    try:
        before, begun_ns = os.lstat(scratch), time.time_ns()
        actual = hash_file(scratch, watcher.feed if watcher is not None else None)
        if actual != digest:
            raise DigestMismatch(digest, actual, str(source))
        if watcher is not None:
            watcher.finish()
        _sync(scratch)
        target = layout.blob(digest)
        if not lease.place(scratch, target, digest, replace=False):
            if matches(recorded, find_status(target)):
                return
            lease.place(scratch, target, digest, replace=True)
        durable.sync_directory(target.parent)
        lease.placements[digest] = Placement("linked", _stamp(before, begun_ns, os.lstat(target)))
    except OSError as error:
        raise CanNotLink(source, error.strerror or str(error)) from error
    finally:
        durable.remove(scratch)


def _stamp(before: os.stat_result, begun_ns: int, placed: os.stat_result) -> Stamp:
    """The stamp of a file that was hashed before it was placed; one that nothing matches when it may have changed.

    Linking and renaming move ctime, so what its other owner wrote meanwhile shows in mtime only.
    """
    stamp, hashed = stamp_of(placed), stamp_of(before)
    is_same = (stamp.inode, stamp.size, stamp.mtime_ns) == (hashed.inode, hashed.size, hashed.mtime_ns)
    is_known = is_same and hashed.mtime_ns + TICK_NS <= begun_ns
    return stamp if is_known else msgspec.structs.replace(stamp, ctime_ns=0)


def _check_source(source: Path, home: Path) -> os.stat_result:
    try:
        status = os.lstat(source)
        home_status = home.stat()
    except OSError as error:
        raise CanNotLink(source, error.strerror or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise CanNotLink(source, "it is not a regular file")
    if status.st_uid != home_status.st_uid:
        raise CanNotLink(source, f"it belongs to uid {status.st_uid}, the store to uid {home_status.st_uid}")
    if status.st_dev != home_status.st_dev:
        raise CanNotLink(source, "it lies in another file system")
    return status


def _link(source: Path, scratch: Path, expected: os.stat_result) -> None:
    """Link without following a symlink that was put there since the check."""
    try:
        os.link(source, scratch, follow_symlinks=False)
        linked = os.lstat(scratch)
    except OSError as error:
        reason = "it lies in another file system" if error.errno == errno.EXDEV else error.strerror or str(error)
        raise CanNotLink(source, reason) from error
    if (linked.st_dev, linked.st_ino) != (expected.st_dev, expected.st_ino):
        durable.remove(scratch)
        raise CanNotLink(source, "it was replaced meanwhile")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        durable.sync_file(fd, path)
    finally:
        os.close(fd)
