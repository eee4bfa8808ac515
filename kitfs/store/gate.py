"""The order between taking hold of content and sweeping it: one flock on ``gc.lock``.

Used by leases, sessions, ingests and GC. Whoever is about to rely on content looks that it is there and writes
its digest down (lease or session) inside ``shared()``; GC reads those notes and takes files away inside
``exclusive()``. So either GC sees the note, or the holder sees that the content is gone. Never held while data
is hashed, copied or fsynced: one append, one look, one rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kitfs.store.durable import naming


@contextlib.contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    with naming(path, "locking"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with naming(path, "locking"):
            fcntl.flock(fd, operation)
        yield
    finally:
        os.close(fd)


def shared(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold ``gc.lock`` at ``path`` together with others; each call has a descriptor, so threads do not mix.

    Raises:
        StoreWriteFailed: when the file can not be opened or locked.
    """
    return _locked(path, fcntl.LOCK_SH)


def exclusive(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold ``gc.lock`` at ``path`` alone.

    Raises:
        StoreWriteFailed: when the file can not be opened or locked.
    """
    return _locked(path, fcntl.LOCK_EX)


def is_alive(path: Path) -> bool:
    """Whether somebody holds a flock on the file; False when it is not there.

    Two who ask at the same moment may each see the other: such a false "alive" only keeps things longer.

    Raises:
        StoreWriteFailed: when that can not be found out, as without free descriptors: that is no "no".
    """
    with naming(path, "looking at"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return True
            raise
        finally:
            os.close(fd)
    return False
