"""Files that an export writes outside the store: whole and verified under their name, or not there.

Used by ``export_layout``, ``export_archive`` and ``export_kit``. A blob is never hard-linked out of the store: a second
name shares the inode, so a ``chmod`` or ``touch`` of whoever owns the export would end the trust in the store's file,
and a write would change it. It is cloned where the file system shares extents (btrfs, XFS), which costs no space and
gives an inode of its own, else copied; either way its bytes are hashed, and the file appears when they are right.

Files under way are named ``.kitfs-export-…`` and locked while they are written, so that the next export removes what a
killed one has left (``sweep``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from kitfs.digest import Digest, Digester
from kitfs.progress import Progress, Step
from kitfs.store import durable
from kitfs.store.errors import BlobCorrupt, BlobIsSplit, StoreWriteFailed
from kitfs.store.link import hash_file
from kitfs.store.plain import open_plain
from kitfs.store.store import Store
from kitfs.transfer.export_plan import ExportedBlob

SCRATCH = ".kitfs-export-"
"""How names of files under way begin."""

_FICLONE = 0x40049409
_WRITEBACK_SIZE = 8 << 20
_ATTEMPTS_MAX = 10


@contextlib.contextmanager
def open_scratch(folder: Path, mode: int) -> Iterator[tuple[int, Path]]:
    """A new file for reading and writing, locked; it is removed in the end unless it was renamed.

    Args:
        folder: Where it lies.
        mode: Its permission bits, as far as the umask lets them be.

    Raises:
        StoreWriteFailed: when it can not be made.
    """
    fd, path = _create(folder, mode)
    try:
        yield fd, path
    finally:
        durable.remove(path)
        os.close(fd)


def _create(folder: Path, mode: int) -> tuple[int, Path]:
    """Create and lock; a sweep that came between the two removes the file, or has, so look and try again."""
    for _ in range(_ATTEMPTS_MAX):
        path = folder / f"{SCRATCH}{os.getpid()}-{os.urandom(8).hex()}"
        with durable.naming(path, "creating"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        if not _is_swept(fd) and path.exists():
            return fd, path
        os.close(fd)
    raise StoreWriteFailed(path, "creating", "it was removed again and again")


def _is_swept(fd: int) -> bool:
    """Lock a new file; whether a sweep has done so, and is about to remove it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: nobody sweeps there either
        pass
    return False


def sweep(folder: Path) -> None:
    """Remove what exports that were killed have left in a folder; what can not be removed stays."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(SCRATCH):
                _remove_stale(path)


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(fd)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other exports from changing a folder's index for the time of the block; waits for them.

    Programs other than kitfs take no such lock. Where the file system has none, nothing is waited for.

    Raises:
        StoreWriteFailed: when the folder can not be opened.
    """
    with durable.naming(folder, "opening"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and have their names on disk.

    Raises:
        StoreWriteFailed: when that fails.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with durable.naming(path, "creating"):
        path.mkdir(exist_ok=True)
    durable.sync_directory(path.parent)


def write_small(path: Path, raw: bytes, *, mode: int) -> None:
    """Put a small file in place in one step; one that is there is replaced and its mode kept.

    On disk when it returns: bytes and name.

    Raises:
        StoreWriteFailed: when a step failed; what was there is there still.
    """
    with open_scratch(path.parent, mode) as (fd, scratch):
        durable.write_all(fd, raw, scratch)
        _keep_mode(fd, path)
        durable.sync_file(fd, scratch)
        durable.rename_over(scratch, path)
    durable.sync_directory(path.parent)


def _keep_mode(fd: int, path: Path) -> None:
    with durable.naming(path, "keeping the mode of"):
        try:
            os.fchmod(fd, stat.S_IMODE(path.stat().st_mode))
        except FileNotFoundError:
            return


def write_blobs(store: Store, blobs: Iterable[ExportedBlob], root: Path, *, mode: int, progress: Progress) -> None:
    """Have blobs as files in a layout, named by their digests; right ones that are there stay, others are replaced.

    On disk when it returns: bytes and names.

    Args:
        store: Where from.
        blobs: Which.
        root: The layout's folder.
        mode: Permission bits of a new file.
        progress: Is told of each blob.

    Raises:
        BlobNotFound, BlobCorrupt: when the store does not have one, or other bytes under its name.
        StoreWriteFailed: when a step failed; what is there under a digest is right.
    """
    folder = root / "blobs" / "sha256"
    make_folder(folder)
    for blob in blobs:
        step = progress.begin(blob.title, blob.size)
        _write_blob(store, blob, folder / blob.digest.hex, mode=mode, scratch_folder=root, step=step)
        step.finish()
    durable.sync_directory(folder)


def _write_blob(store: Store, blob: ExportedBlob, path: Path, *, mode: int, scratch_folder: Path, step: Step) -> None:
    if _is_right(path, blob, step):
        return
    with open_scratch(scratch_folder, mode) as (fd, scratch):
        if not _clone(store, blob.digest, fd, scratch, step):
            copy_blob(store, blob.digest, Sink(fd, scratch), step)
        durable.sync_file(fd, scratch)
        durable.rename_over(scratch, path)


def _is_right(path: Path, blob: ExportedBlob, step: Step) -> bool:
    """Whether a file has a blob's bytes, and has them on disk; other programs do not sync theirs."""
    try:
        fd = open_plain(path)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_size != blob.size or hash_file(path) != blob.digest:
            return False
        durable.sync_file(fd, path)
    finally:
        os.close(fd)
    step.advance(blob.size)
    return True


def _clone(store: Store, digest: Digest, fd: int, path: Path, step: Step) -> bool:
    """Share the extents of a blob that is one file, and look at what that gave; the file is empty when it failed."""
    try:
        source = store.open_blob(digest)
    except BlobIsSplit:
        return False
    try:
        fcntl.ioctl(fd, _FICLONE, source)
    except OSError:
        return False
    finally:
        os.close(source)
    with durable.naming(path, "reading"):
        if hash_file(path) == digest:
            step.advance(os.fstat(fd).st_size)
            return True
        os.ftruncate(fd, 0)
    return False


class Sink:
    """Where an export's bytes go: an open file or pipe, from its position on.

    Args:
        fd: Descriptor for writing; the caller's.
        path: How messages name it.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._written = 0
        self._started = 0  # what lies before is on its way to the disk

    def write(self, data: bytes) -> None:
        """Append bytes; what was written for a while is on its way to the disk.

        Raises:
            StoreWriteFailed: when the kernel does not take them all.
        """
        durable.write_all(self._fd, data, self._path)
        self._written += len(data)
        if self._written - self._started >= _WRITEBACK_SIZE:
            durable.start_writeback(self._fd, self._started, self._written - self._started)
            self._started = self._written


def copy_blob(store: Store, digest: Digest, sink: Sink, step: Step) -> None:
    """Write a blob's bytes, whatever form the store keeps it in, and see that they are the digest's.

    Raises:
        BlobNotFound, BlobCorrupt: when the store does not have it, or other bytes under its name.
        StoreWriteFailed: when the sink does not take them all.
    """
    digester = Digester()
    with store.open_content(digest) as content:
        for piece in content.iter_pieces():
            digester.update(piece)
            sink.write(piece)
            step.advance(len(piece))
    if digester.digest() != digest:
        raise BlobCorrupt(digest, f"its {digester.size} bytes have digest {digester.digest()}")
