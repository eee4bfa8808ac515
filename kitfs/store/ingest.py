"""Ingests: the one way bytes come into the store, in the one order of store.md 2.

Used by import, pull, pack and materialising. On disk when ``commit_blob`` or ``commit_member`` returns: the
whole verified file under its digest, mode 0444, and its directory entry. It is in the index only after a
``Change``. Before that, or after any error, there is at most a file in ``ingest/``, removed at once or by GC.
One ingest is one thread's at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from kitfs.digest import Digest, Digester, DigestMismatch
from kitfs.store import durable
from kitfs.store.errors import SizeMismatch
from kitfs.store.lease import Lease, Placement
from kitfs.store.records import Stamp
from kitfs.store.stamp import find_status, matches, stamp_of

FILE_MODE = 0o444

FindStamp = Callable[[Digest, bool], Stamp | None]
"""The recorded stamp of a blob (or, second argument true, of a member)."""


def check_content(digester: Digester, expected: Digest | None, size: int | None) -> Digest:
    """The digest of what was written, once it is what was announced.

    Raises:
        DigestMismatch, SizeMismatch: when it is not.
    """
    if size is not None and size != digester.size:
        raise SizeMismatch(size, digester.size, f"content of {expected}" if expected else "content")
    digest = digester.digest()
    if expected is not None and digest != expected:
        raise DigestMismatch(expected, digest)
    return digest


def place_file(lease: Lease, path: Path, digest: Digest, find_stamp: FindStamp, *, member: bool) -> None:
    """Step 4 of store.md 2: a file that is whole, verified and synced becomes visible under its digest.

    On disk when this returns: the directory entry. The lease holds the digest.

    Raises:
        StoreWriteFailed: when a step failed.
        LeaseEnded: when the lease is closed.
    """
    layout = lease.layout
    target = layout.member(digest) if member else layout.blob(digest)
    if not lease.place(path, target, digest, replace=False):
        if matches(find_stamp(digest, member), find_status(target)):
            durable.remove(path)
            return  # the file there was verified and has not changed: it stays, with its inode
        lease.place(path, target, digest, replace=True)  # heals whatever lay there
    durable.sync_directory(target.parent)
    placements = lease.member_placements if member else lease.placements
    with durable.naming(target, "looking at"):
        placements[digest] = Placement("whole", stamp_of(os.lstat(target)))


class Ingest:
    """One new file under way.

    Attributes:
        size: Bytes written so far.
    """

    def __init__(self, lease: Lease, find_stamp: FindStamp) -> None:
        """Begin.

        Args:
            lease: What keeps the result until a change has recorded it.
            find_stamp: The recorded stamp of a blob (or, second argument true, of a member).
        """
        self._lease = lease
        self._find_stamp = find_stamp
        self._path = lease.next_ingest()
        self._digester = Digester()
        self._over = False
        with durable.naming(self._path, "creating"):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._digester.size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            StoreWriteFailed: when not all were taken; the ingest is over then.
        """
        try:
            durable.write_all(self._fd, data, self._path)  # step 1: a new inode, hashed while written
        except BaseException:
            self.abort()
            raise
        self._digester.update(data)

    def digest(self) -> Digest:
        """The digest of the bytes written so far."""
        return self._digester.digest()

    def commit_blob(self, expected: Digest | None = None, size: int | None = None) -> Digest:
        """Make the bytes a blob.

        Args:
            expected: The digest it must have, or None to take what it has.
            size: The size it must have, or None.

        Returns:
            Its digest. The lease holds it.

        Raises:
            DigestMismatch, SizeMismatch: when the bytes are others; nothing is left.
            StoreWriteFailed: when a step failed; nothing is left.
            LeaseEnded: when the lease is closed.
        """
        return self._commit(expected, size, member=False)

    def commit_member(self, expected: Digest | None = None, size: int | None = None) -> Digest:
        """Make the bytes a member; as ``commit_blob``.

        Raises:
            DigestMismatch, SizeMismatch: when the bytes are others; nothing is left.
            StoreWriteFailed: when a step failed; nothing is left.
            LeaseEnded: when the lease is closed.
        """
        return self._commit(expected, size, member=True)

    def _commit(self, expected: Digest | None, size: int | None, *, member: bool) -> Digest:
        try:
            digest = check_content(self._digester, expected, size)  # step 2: is it what was announced
            with durable.naming(self._path, "chmod of"):
                os.fchmod(self._fd, FILE_MODE)
            durable.sync_file(self._fd, self._path)  # step 3: bytes and final mode on disk, nothing writable left
            self._close()
            # step 4: visible under its digest
            place_file(self._lease, self._path, digest, self._find_stamp, member=member)
        except BaseException:
            self.abort()
            raise
        self._over = True
        return digest

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with durable.naming(self._path, "closing"):
                os.close(fd)

    def abort(self) -> None:
        """Drop what was written; harmless after a commit."""
        if self._over:
            return
        self._over = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        durable.remove(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
