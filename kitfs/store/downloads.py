"""Blobs that arrive: a file below ``downloads/`` that grows from its start, so that a killed pull goes on where it was.

Used by ``kitfs.transfer.registry``. Nothing in it is believed: whoever takes the blob in hashes all of it. A file is
locked while somebody writes it; a second one who wants the same blob meanwhile gets a file without a name. What lies
there unlocked is garbage collection's once it is old.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kitfs.digest import Digest
from kitfs.store import durable
from kitfs.store.layout import Layout


class Download:
    """The file of one blob that arrives; one thread writes it, any may read. ``close`` ends it.

    Attributes:
        fd: For reading at any offset below ``size``.
        size: Bytes that are there, from the start.
    """

    def __init__(self, layout: Layout, digest: Digest) -> None:
        """Open what is there of a blob, or begin it.

        Raises:
            StoreWriteFailed: when no file can be made.
        """
        folder = layout.downloads
        self._path: Path | None = folder / digest.hex
        with durable.naming(folder, "creating"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.fd = self._open_locked(self._path)
            if self.fd < 0:
                self._path = None
                self.fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.fd).st_size

    @staticmethod
    def _open_locked(path: Path) -> int:
        """The file, locked; -1 when somebody else writes it."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return -1
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.lstat()):
                    return fd
            os.close(fd)  # it was removed between the two

    def append(self, data: bytes) -> None:
        """Write the next bytes.

        Raises:
            StoreWriteFailed: when the disk is full or fails.
        """
        with durable.naming(self._path or Path("downloads"), "writing"):
            view = memoryview(data)
            while view:
                count = os.pwrite(self.fd, view, self.size)
                self.size += count
                view = view[count:]

    def restart(self) -> None:
        """Forget what is there: it was not what it should be."""
        os.ftruncate(self.fd, 0)
        self.size = 0

    def close(self, *, remove: bool) -> None:
        """Close it; removed when it is of no more use."""
        if self.fd >= 0:
            if remove and self._path is not None:
                durable.remove(self._path)
            os.close(self.fd)
            self.fd = -1


def iter_unused(layout: Layout) -> Iterator[Path]:
    """Downloads that nobody writes."""
    try:
        paths = sorted(layout.downloads.iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path
            finally:
                os.close(fd)
