"""Members being put together span by span: a sparse file, and a map of what is in it (store.md 1, lazy.md 4).

Used by ``kitfs.layer`` behind readers of lazy layers. The files of one member of one layer::

    partial/<boot id>/<layer hex>.<index>         the member's bytes as far as they are decoded, 0600
    partial/<boot id>/<layer hex>.<index>.map     a byte for each span: 1 once the span's bytes are in the file

Every process that reads the member opens the same two files. A byte of the map is written after its bytes, by
``pwrite`` and not through a map into memory, whose page could not be had on a full disk: a process killed between the
two writes leaves a 0 and bytes that are right or absent. Two that decode one span write the same bytes. After another
boot nothing here is believed (the map may have reached the disk before the bytes), so the folders of other boots go.

In use is what somebody holds a shared flock on the map of. Files appear, are placed and go under an exclusive flock on
the boot's folder, where the name is compared with the open file: so whoever places a file places the one it hashed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from kitfs.digest import Digest, Digester, DigestMismatch
from kitfs.store import durable, gate
from kitfs.store.errors import StoreWriteFailed
from kitfs.store.ingest import FILE_MODE, FindStamp, place_file
from kitfs.store.layout import Layout
from kitfs.store.lease import Lease

_BLOCK_SIZE = 512  # st_blocks, stat(2)
_READ_SIZE = 1 << 20
_MAP_SUFFIX = ".map"


@functools.cache
def boot_id() -> str:
    """The running kernel's boot, random per boot (proc(5), ``/proc/sys/kernel/random/boot_id``)."""
    with open(os.path.join("/proc/sys/kernel/random", "boot_id")) as file:
        return file.read().strip()


def drop_other_boots(layout: Layout) -> None:
    """Remove what other boots left; a failure is passed over, because it is tried again by whoever comes next."""
    current = boot_id()
    with contextlib.suppress(OSError), os.scandir(layout.partial) as entries:
        for entry in entries:
            if entry.name != current:
                for path in Path(entry.path).iterdir():
                    durable.remove(path)
                Path(entry.path).rmdir()


def iter_partials(layout: Layout) -> Iterator[Path]:
    """The data files of all partials of all boots."""
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted(layout.partial.iterdir()):
            with contextlib.suppress(OSError):
                yield from (path for path in sorted(folder.iterdir()) if path.suffix != _MAP_SUFFIX)


def map_of(path: Path) -> Path:
    """The map that belongs to a partial's data file; its flock says that the partial is in use."""
    return path.with_name(path.name + _MAP_SUFFIX)


def find_partial(layout: Layout, name: str) -> bool:
    """Whether this boot has a partial of a name."""
    return (layout.partial / boot_id() / name).exists()


def is_used(layout: Layout, name: str) -> bool:
    """Whether somebody is putting this boot's partial of a name together: there is room for the whole of it."""
    return gate.is_alive(map_of(layout.partial / boot_id() / name))


def measure(layout: Layout) -> int:
    """Bytes that partials take: what lies on disk of those that nobody uses, the whole of the others.

    Raises:
        StoreWriteFailed: when that can not be found out.
    """
    size = 0
    for path in iter_partials(layout):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            size += status.st_size if gate.is_alive(map_of(path)) else status.st_blocks * _BLOCK_SIZE
    return size


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with durable.naming(folder, "locking"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with durable.naming(folder, "locking"):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Partial:
    """One member that is being put together. Methods may be called from any thread, `close` once by the last.

    Attributes:
        path: Of its data file.
        size: Bytes of the member.
        count: Spans that it is made of.
    """

    def __init__(self, layout: Layout, name: str, size: int, count: int) -> None:
        """Open a partial, making it where there is none; one of another shape is replaced.

        Raises:
            StoreWriteFailed: when its files can not be made.
        """
        folder = layout.partial / boot_id()
        self.path = folder / name
        self.size = size
        self.count = count
        self._data = self._map = -1
        with durable.naming(folder, "making"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        drop_other_boots(layout)
        with _locked(folder):
            try:
                if not self._open():
                    self._remove()
                    self._open()
            except BaseException:
                self.close()
                raise

    def _open(self) -> bool:
        """Open or make both files; False when they are another partial's."""
        self.close()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with durable.naming(self.path, "opening"):
            with contextlib.suppress(FileNotFoundError):
                self.path.chmod(0o600)  # of one that was killed as it placed the file: only root could open it
            self._data = os.open(self.path, flags, 0o600)
            self._map = os.open(map_of(self.path), flags, 0o600)
            fcntl.flock(self._map, fcntl.LOCK_SH)
            shape = (os.fstat(self._data).st_size, os.fstat(self._map).st_size)
            if shape == (0, 0):
                os.ftruncate(self._data, self.size)
                if os.pwrite(self._map, bytes(self.count), 0) != self.count:
                    raise StoreWriteFailed(map_of(self.path), "writing", "not all bytes were taken")
                return True
        return shape == (self.size, self.count)

    def find_missing(self) -> list[int]:
        """Numbers of the spans whose bytes are not in the file, in order.

        Raises:
            OSError: when the map can not be read.
        """
        written = os.pread(self._map, self.count, 0).ljust(self.count, b"\0")
        return [number for number, byte in enumerate(written) if byte != 1]

    def inner_share(self) -> float:
        """How many of the spans that lie within the member are in the file; the two at its ends are not counted.

        Raises:
            OSError: when the map can not be read.
        """
        if self.count <= 2:
            return 1.0
        return os.pread(self._map, self.count - 2, 1).count(b"\1") / (self.count - 2)

    @property
    def is_whole(self) -> bool:
        """Whether all spans are in the file."""
        return os.pread(self._map, self.count, 0) == b"\1" * self.count

    def has(self, number: int) -> bool:
        """Whether the bytes of a span are in the file."""
        return os.pread(self._map, 1, number) == b"\1"

    def write(self, number: int, data: memoryview, offset: int) -> None:
        """Write the verified bytes of a span, then its byte of the map.

        Raises:
            StoreWriteFailed: when the disk fails or is full.
        """
        with durable.naming(self.path, "writing"):
            written = os.pwrite(self._data, data, offset)
            if written != len(data):
                raise StoreWriteFailed(self.path, "writing", f"only {written} of {len(data)} bytes were taken")
            durable.start_writeback(self._data, offset, len(data))
            os.pwrite(self._map, b"\1", number)

    def forget(self, number: int) -> None:
        """Take a span for missing, whose bytes were found to be others.

        Raises:
            StoreWriteFailed: when the map can not be written.
        """
        with durable.naming(self.path, "writing"):
            os.pwrite(self._map, b"\0", number)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file, to be verified by the caller.

        Raises:
            OSError: when the disk fails.
        """
        return os.pread(self._data, size, offset)

    def place(self, lease: Lease, digest: Digest, find_stamp: FindStamp) -> bool:
        """Make the whole file the member `digest`, or drop it when its bytes are others.

        On disk when this returns True: the member under its digest, mode 0444, no writable descriptor of this
        process, for the caller to record. Nothing can be written through this object afterwards.

        Returns:
            False when another process has placed or dropped it.

        Raises:
            DigestMismatch: when its bytes are others; it is gone.
            StoreWriteFailed, LeaseEnded: when a step failed.
        """
        digester = Digester()
        with durable.naming(self.path, "reading"):
            while piece := os.pread(self._data, _READ_SIZE, digester.size):
                digester.update(piece)
        actual = digester.digest()
        if actual != digest:
            self.discard()
            raise DigestMismatch(digest, actual)
        durable.sync_file(self._data, self.path)
        taken = lease.next_ingest()
        with _locked(self.path.parent):
            is_ours = self._is_ours()
            if is_ours:
                with durable.naming(self.path, "chmod of"):
                    os.fchmod(self._data, FILE_MODE)
                durable.sync_file(self._data, self.path)
                durable.rename_over(self.path, taken)
                durable.remove(map_of(self.path))
        self.close()  # nothing writable is open here before it is seen
        if is_ours:
            try:
                place_file(lease, taken, digest, find_stamp, member=True)
            except BaseException:
                durable.remove(taken)
                raise
        return is_ours

    def discard(self) -> None:
        """Remove its files, unless their names are another's by now; then close.

        Raises:
            StoreWriteFailed: when the folder can not be locked.
        """
        with _locked(self.path.parent):
            if self._is_ours():
                self._remove()
        self.close()

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._data))
        except OSError:
            return False

    def _remove(self) -> None:
        durable.remove(self.path)
        durable.remove(map_of(self.path))

    def close(self) -> None:
        """Close its files; they stay for whoever opens them next."""
        for fd in (self._data, self._map):
            if fd >= 0:
                os.close(fd)
        self._data = self._map = -1


def remove_unused(path: Path) -> bool:
    """Remove a partial that nobody uses; False when somebody does.

    Raises:
        StoreWriteFailed: when that can not be found out.
    """
    with contextlib.suppress(FileNotFoundError), _locked(path.parent):
        with durable.naming(path, "locking"):
            try:
                fd = os.open(map_of(path), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                fd = -1
            try:
                if fd >= 0:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            finally:
                if fd >= 0:
                    os.close(fd)
        durable.remove(path)
        durable.remove(map_of(path))
    return True
