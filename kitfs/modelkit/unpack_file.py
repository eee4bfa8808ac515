"""One file being unpacked: written under a name of its own, renamed when it is whole.

Used by ``unpack_target``. What has the final name is replaced, or kept, and never written to.
"""

from __future__ import annotations

import contextlib
import errno
import os

from kitfs.modelkit.beneath import Directory, rename_new
from kitfs.modelkit.unpack_errors import PathExists, failure

_PIECE_SIZE = 1 << 20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_COPIED = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY})


class NewFile:
    """A file that is being written; one of ``place`` and ``discard`` ends it, by one thread.

    Attributes:
        path: Relative to the target.
        fd: For writing.
    """

    __slots__ = ("_directory", "_name", "_temporary", "_will_replace", "fd", "is_open", "path")

    def __init__(
        self, path: bytes, directory: Directory, name: bytes, temporary: bytes, mode: int, will_replace: bool
    ) -> None:
        self.path = path
        self.fd = os.open(temporary, _FLAGS, mode, dir_fd=directory.fd)
        self.is_open = True
        self._directory = directory
        self._name = name
        self._temporary = temporary
        self._will_replace = will_replace

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of some bytes; any thread, any order.

        Raises:
            UnpackFailed: when the disk is full or fails.
        """
        try:
            done = os.pwrite(self.fd, data, offset)
            while done < len(data):
                done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)
        except OSError as error:
            raise failure(self.path, error) from error

    def copy(self, fd: int, start: int, stop: int) -> int:
        """Copy a range of another file to the same place, by the kernel where it can; how many bytes there were.

        Raises:
            UnpackFailed: when the disk is full or fails.
        """
        at = start
        try:
            while at < stop and (done := os.copy_file_range(fd, self.fd, stop - at, at, at)):
                at += done
        except OSError as error:
            if error.errno not in _NOT_COPIED:
                raise failure(self.path, error) from error
            while at < stop and (data := os.pread(fd, min(stop - at, _PIECE_SIZE), at)):
                self.write(data, at)
                at += len(data)
        return at - start

    def place(self) -> None:
        """Give it its name.

        In place when this returns: the whole file, in the page cache.

        Raises:
            PathExists: when something has the name and is not to be replaced.
            UnpackFailed: when it can not be renamed.
        """
        try:
            self._close()
            fd = self._directory.fd
            if self._will_replace:
                os.rename(self._temporary, self._name, src_dir_fd=fd, dst_dir_fd=fd)
            else:
                rename_new(fd, self._temporary, self._name)
        except OSError as error:
            self._remove()
            if error.errno == errno.EEXIST:
                raise PathExists(self.path) from error
            raise failure(self.path, error) from error

    def discard(self) -> None:
        """Remove it; raises nothing, harmless when it has ended."""
        if self.is_open:
            with contextlib.suppress(OSError):
                self._close()
            self._remove()

    def _close(self) -> None:
        self.is_open = False
        os.close(self.fd)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._directory.fd)
