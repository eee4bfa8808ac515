"""The few file operations that durability rests on, each with its error named.

Used by every module of the store that writes. Nothing here knows what a blob is. An ``OSError`` becomes
``StoreWriteFailed`` with the path and the action. A failed fsync is never tried again: the kernel may have
dropped the dirty pages, so the caller unlinks the file and writes it anew (reliability.md 2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from kitfs.store.errors import StoreWriteFailed

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_RENAMEAT2 = getattr(_LIBC, "renameat2", None)
_SYNC_FILE_RANGE = getattr(_LIBC, "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2
if _SYNC_FILE_RANGE is not None:
    _SYNC_FILE_RANGE.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_NO_SUCH_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


@contextlib.contextmanager
def naming(path: Path, action: str) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into ``StoreWriteFailed(path, action, …)``.

    Raises:
        StoreWriteFailed: in place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StoreWriteFailed(path, action, error.strerror or str(error)) from error


def write_all(fd: int, data: bytes | bytearray | memoryview, path: Path) -> None:
    """Write all of ``data`` at the descriptor's position.

    Raises:
        StoreWriteFailed: when the kernel takes fewer bytes (a full disk, a quota, a limit) or none.
    """
    with naming(path, "writing"):
        written = os.write(fd, data)
    if written != len(data):
        raise StoreWriteFailed(path, "writing", f"only {written} of {len(data)} bytes were taken")


def sync_file(fd: int, path: Path) -> None:
    """Return once the file's bytes and size are on disk.

    Raises:
        StoreWriteFailed: when fsync failed; the file's content on disk is then unknown.
    """
    with naming(path, "fsync of"):
        os.fsync(fd)


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Let the kernel begin to write a range out, so that nothing dirty piles up; makes nothing durable."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(fd, offset, size, _SYNC_FILE_RANGE_WRITE)


def sync_directory(path: Path) -> None:
    """Return once the directory's entries are on disk.

    Raises:
        StoreWriteFailed: when fsync failed.
    """
    with naming(path, "fsync of"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def rename_new(source: Path, target: Path) -> bool:
    """Rename ``source`` to ``target`` unless ``target`` exists.

    ``renameat2(RENAME_NOREPLACE)``; where the file system has no such flag, ``link`` and ``unlink``, which never
    replace either. A crash between those two leaves a second name in ``ingest/``, which GC removes.

    Returns:
        False when ``target`` exists; ``source`` is then left where it was.

    Raises:
        StoreWriteFailed: for any other failure.
    """
    if _RENAMEAT2 is not None:
        names = (os.fsencode(source), os.fsencode(target))
        if _RENAMEAT2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
            return True
        code = ctypes.get_errno()
        if code == errno.EEXIST:
            return False
        if code not in _NO_SUCH_FLAG:
            raise StoreWriteFailed(target, "renaming to", os.strerror(code))
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        raise StoreWriteFailed(target, "linking to", error.strerror or str(error)) from error
    remove(source)
    return True


def rename_over(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, replacing what is there in one step.

    Raises:
        StoreWriteFailed: when the rename failed.
    """
    with naming(target, "renaming to"):
        source.rename(target)


def remove(path: Path) -> None:
    """Unlink a file if it is there; a failure is passed over, because GC removes what stays."""
    with contextlib.suppress(OSError):
        path.unlink()


def write_file(path: Path, data: bytes, *, scratch: Path, mode: int) -> None:
    """Write a small file whole: it appears under ``path`` with its bytes and mode, or not at all.

    Returns with the file and its directory entry on disk.

    Args:
        path: Where it appears; a file that is there is replaced.
        data: Its bytes.
        scratch: A name in the same file system to write to first; must not exist.
        mode: Permission bits.

    Raises:
        StoreWriteFailed: when a step failed; ``path`` is then as it was.
    """
    try:
        with naming(scratch, "creating"):
            fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data, scratch)
            with naming(scratch, "chmod of"):
                os.fchmod(fd, mode)
            sync_file(fd, scratch)
        finally:
            os.close(fd)
        rename_over(scratch, path)
    except BaseException:
        remove(scratch)
        raise
    sync_directory(path.parent)
