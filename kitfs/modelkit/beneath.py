"""Directories that are opened below another without following a link, and renames that replace nothing.

System calls that Python's ``os`` has not, with what does the same where the kernel has not either. Used by
``unpack_target``; any thread.
"""

from __future__ import annotations

import ctypes
import errno
import os

_ATTEMPTS = 8  # of a look-up that others' renames have disturbed
_OPENAT2 = 437  # the same number on every architecture (Linux 5.6)
_RESOLVE = 0x02 | 0x04 | 0x08  # NO_MAGICLINKS, NO_SYMLINKS, BENEATH: linux/openat2.h
_RENAME_NOREPLACE = 1
_DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG, errno.EOPNOTSUPP})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_how = _OpenHow(_DIRECTORY_FLAGS, 0, _RESOLVE)


def open_directory(root: int, path: bytes) -> Directory:
    """Open a directory below another, no link followed.

    Raises:
        OSError: ELOOP or ENOTDIR for a link on the way, ENOTDIR for a file, and what else the system says.
    """
    fd = find_beneath(root, path)
    return Directory(walk_beneath(root, path) if fd is None else fd)


def find_beneath(root: int, path: bytes) -> int | None:
    """A descriptor of a directory below another, no link followed; None where the kernel can not do that at once.

    Raises:
        OSError: ELOOP for a link on the way, ENOTDIR, ENOENT, and what else the system says.
    """
    for _ in range(_ATTEMPTS):
        fd = _libc.syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_int(root), ctypes.c_char_p(path), ctypes.byref(_how),
            ctypes.c_size_t(ctypes.sizeof(_how)),
        )  # fmt: skip
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    if code in _UNSUPPORTED:
        return None
    raise OSError(code, os.strerror(code))


def walk_beneath(root: int, path: bytes) -> int:
    """As ``find_beneath``, name by name.

    Raises:
        OSError: ENOTDIR for a link or a file on the way, and what else the system says.
    """
    fd = os.open(b".", _DIRECTORY_FLAGS, dir_fd=root)
    for name in path.split(b"/"):
        try:
            if name in (b"", b".", b".."):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            inner = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


class Directory:
    """An open directory, closed when the last one lets go of it.

    Attributes:
        fd: Its descriptor.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def rename_new(fd: int, source: bytes, name: bytes) -> None:
    """Rename in a directory unless the new name is taken.

    Raises:
        OSError: EEXIST when it is.
    """
    rename = getattr(_libc, "renameat2", None)
    if rename is not None:
        if rename(fd, source, fd, name, _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))
    os.link(source, name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    os.unlink(source, dir_fd=fd)
