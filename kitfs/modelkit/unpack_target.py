"""The directory that a ModelKit is unpacked into, written so that nothing outside of it ever is.

Every path is opened below one descriptor of the directory, and no symbolic link is followed on the way
(``openat2(2)`` with ``RESOLVE_BENEATH`` and its kin; name by name with ``O_NOFOLLOW`` where the kernel has none).
Whoever may write there can swap what they like meanwhile: a step through a link fails, a directory that is open stays
the directory it was. The target itself may be reached by links, as with ``tar -C``. Files get their final name when
they are whole: they are written under a name of their own in the same directory and then renamed, so what had the name
is replaced, never written to. Nothing is fsynced. Used by ``unpack``. Methods may be called from any thread.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
from collections import OrderedDict
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from kitfs.errors import KitfsError
from kitfs.modelkit.beneath import Directory, open_directory
from kitfs.modelkit.unpack_errors import PathExists, PathIsLink, PathNotDirectory, UnpackFailed, failure
from kitfs.modelkit.unpack_file import NewFile

IMPLIED_MODE = 0o755
"""Of directories that no layer has an entry for (kit's ``MkdirAll``)."""

_DIRECTORIES_MAX = 128
_ATTEMPTS = 8  # against somebody who keeps removing what is made
_MODE = 0o7777
_OWNER = 0o700


class Target:
    """A directory being unpacked into; a context manager."""

    def __init__(self, path: Path, *, overwrite: bool = False, ignore_existing: bool = False) -> None:
        """Make the directory where it is not there, and open it.

        Raises:
            UnpackFailed: when that can not be done, or its file system is read only.
        """
        self.path = path
        self.overwrite = overwrite
        self._ignore_existing = ignore_existing
        try:
            path.mkdir(IMPLIED_MODE, parents=True, exist_ok=True)
            self._root = Directory(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            if os.fstatvfs(self._root.fd).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        except OSError as error:
            raise failure(os.fsencode(path), error) from error
        self._lock = threading.Lock()
        self._opened: OrderedDict[bytes, Directory] = OrderedDict()
        self._narrow: list[tuple[bytes, int]] = []
        self._token = secrets.token_hex(6)
        self._numbers = count()

    def make_directory(self, path: bytes, mode: int) -> None:
        """Make a directory where there is none; one that is there stays as it is.

        It can be written by its owner until ``finish``, whatever its mode.

        Raises:
            UnpackFailed: when there is something else, or it can not be made.
        """
        above, name = _split(path)
        parent = self._open(above)
        try:
            os.mkdir(name, mode & _MODE | _OWNER, dir_fd=parent.fd)
        except FileExistsError:
            self._check_directory(parent, name, path)
            return
        except OSError as error:
            raise failure(path, error) from error
        if mode & _OWNER != _OWNER:
            self._narrow.append((path, mode & _MODE))

    def _check_directory(self, parent: Directory, name: bytes, path: bytes) -> None:
        status = _find_status(parent, name)
        if status is not None and stat.S_ISLNK(status.st_mode):
            raise PathIsLink(path)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise PathNotDirectory(path)

    def create(self, path: bytes, mode: int) -> NewFile | None:
        """Begin a file; None when there is one already and such are passed over.

        Args:
            path: Relative to the target.
            mode: Permission bits; the umask takes from them.

        Raises:
            PathExists: when something is there and is not to be replaced, or can not be.
            UnpackFailed: when it can not be made.
        """
        above, name = _split(path)
        directory = self._open(above)
        status = _find_status(directory, name)
        if status is not None:
            if self._ignore_existing:
                return None
            if not self.overwrite:
                raise PathExists(path)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                raise PathExists(path, " and is not a regular file")
        temporary = f".kitfs-{self._token}-{next(self._numbers)}".encode()
        try:
            return NewFile(path, directory, name, temporary, mode & _MODE, self.overwrite)
        except OSError as error:
            raise failure(path, error) from error

    def read_existing(self, path: bytes, limit: int) -> bytes | None:
        """The first bytes of a file that is there, or None when there is none.

        Raises:
            PathExists: when there is something else.
            UnpackFailed: when it can not be read.
        """
        above, name = _split(path)
        directory = self._open(above)
        status = _find_status(directory, name)
        if status is None:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise PathExists(path, " and is not a regular file")
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=directory.fd), "rb") as file:
                return file.read(limit)
        except OSError as error:
            raise failure(path, error) from error

    def _open(self, path: bytes) -> Directory:
        if not path:
            return self._root
        with self._lock:
            found = self._opened.get(path)
            if found is not None:
                self._opened.move_to_end(path)
                return found
        directory = self._open_anew(path)
        with self._lock:
            self._opened[path] = directory
            if len(self._opened) > _DIRECTORIES_MAX:
                self._opened.popitem(last=False)
        return directory

    def _open_anew(self, path: bytes) -> Directory:
        for _ in range(_ATTEMPTS):
            try:
                return open_directory(self._root.fd, path)
            except FileNotFoundError as error:
                missing = error
            except OSError as error:
                raise self._explain(path, error) from error
            above, name = _split(path)
            parent = self._open(above)
            try:
                os.mkdir(name, IMPLIED_MODE, dir_fd=parent.fd)
            except FileExistsError:
                pass
            except OSError as error:
                raise failure(path, error) from error
        raise failure(path, missing) from missing

    def _explain(self, path: bytes, error: OSError) -> UnpackFailed:
        """The error that names the step which can not be made; what it tells may have changed since."""
        names = path.split(b"/")
        for number in range(len(names)) if error.errno in (errno.ELOOP, errno.ENOTDIR) else ():
            step = b"/".join(names[: number + 1])
            try:
                mode = os.lstat(os.path.join(os.fsencode(self.path), step)).st_mode
            except OSError:
                break
            if stat.S_ISLNK(mode):
                return PathIsLink(step)
            if not stat.S_ISDIR(mode):
                return PathNotDirectory(step)
        return failure(path, error)

    def finish(self) -> None:
        """Take from directories what their modes do not let their owner do; nothing more can be made in them.

        Raises:
            UnpackFailed: when that can not be done.
        """
        for path, mode in reversed(self._narrow):
            try:
                directory = self._open(path)
                fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)
                try:
                    os.fchmod(fd, mode & ~read_umask())
                finally:
                    os.close(fd)
            except OSError as error:
                raise failure(path, error) from error
        self._narrow.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._opened.clear()


def read_umask() -> int:
    """The process's umask, without changing it for a moment as ``umask(2)`` would.

    Raises:
        KitfsError: when the system does not tell.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    raise KitfsError("/proc/self/status tells no umask (Linux 4.7 or newer is needed)")


def _split(path: bytes) -> tuple[bytes, bytes]:
    above, _, name = path.rpartition(b"/")
    if name in (b"", b".", b"..") or path.startswith(b"/"):
        raise UnpackFailed(path, "it is no path below the directory")
    return above, name


def _find_status(directory: Directory, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(name, error) from error
