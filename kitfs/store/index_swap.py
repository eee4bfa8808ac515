"""An index in place of another: nobody has the old one open, and a crash leaves the old one or the new one.

Used by what makes the index anew. The new environment is built in ``index.new/`` and its one data file is then renamed
over the old one's. The folder and the lock file stay: two processes that agree on the data file but not on the lock
file would both be LMDB's only writer.

LMDB holds a POSIX read lock on the first byte of ``lock.mdb`` in every process that has the environment open. So a
write lock on that byte tells that nobody has, and whoever opens the index meanwhile waits in LMDB until it is given
back. The lock belongs to the process and ends with the first descriptor of the file that it closes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from kitfs.store import durable
from kitfs.store.errors import IndexInUse
from kitfs.store.index import DATA_NAME, LOCK_NAME, is_open_here
from kitfs.store.layout import Layout
from kitfs.store.stamp import find_status


@contextlib.contextmanager
def hold_unused(layout: Layout) -> Iterator[None]:
    """Keep every process from opening the index, for the time of the block.

    What the lock file knew of readers and writers is cleared: when the block ends well, this process has opened the
    index once more, which writes it anew.

    Raises:
        IndexInUse: when a process has the index open.
        StoreWriteFailed: when the lock file can not be opened or locked.
    """
    path = layout.index / LOCK_NAME
    with durable.naming(layout.index, "making"):
        layout.index.mkdir(mode=0o700, exist_ok=True)
    if is_open_here(layout.index):
        raise IndexInUse(layout.index)
    with durable.naming(path, "opening"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with durable.naming(path, "locking"):
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0, os.SEEK_SET)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise IndexInUse(layout.index) from None
                raise
            os.ftruncate(fd, 0)
        yield
    finally:
        os.close(fd)


def make_scratch(layout: Layout) -> Path:
    """An empty folder for the new environment; what a killed run left there is removed.

    Raises:
        StoreWriteFailed: when it can not be made.
    """
    drop_scratch(layout)
    with durable.naming(layout.index_new, "making"):
        layout.index_new.mkdir(mode=0o700)
    return layout.index_new


def drop_scratch(layout: Layout) -> None:
    """Remove the folder of the new environment, if it is there; what can not be removed is for the next run."""
    shutil.rmtree(layout.index_new, ignore_errors=True)


def replace_index(layout: Layout) -> Path | None:
    """Put the environment in ``index.new/``, closed and synced, in the place of the old one.

    On disk when it returns: the new index. The old data file, if it has any bytes, lies in ``quarantine/``.

    Returns:
        Where the old one is kept, or None when there was none.

    Raises:
        StoreWriteFailed: when a step failed; the old one is then where it was.
    """
    old = layout.index / DATA_NAME
    aside = _keep_aside(layout, old)
    durable.rename_over(layout.index_new / DATA_NAME, old)
    durable.sync_directory(layout.index)
    drop_scratch(layout)
    return aside


def _keep_aside(layout: Layout, old: Path) -> Path | None:
    status = find_status(old)
    if status is None or (stat.S_ISREG(status.st_mode) and status.st_size == 0):
        return None
    aside = layout.quarantine / f"index.{time.time_ns()}.mdb"
    with durable.naming(aside, "keeping the old index as"):
        layout.quarantine.mkdir(mode=0o700, exist_ok=True)
        if stat.S_ISREG(status.st_mode):
            os.link(old, aside)  # and not a rename: there is an index at every moment
        else:
            old.rename(aside)
    durable.sync_directory(layout.quarantine)
    return aside
