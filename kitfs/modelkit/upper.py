"""What an overlay's upper directory holds: files, directories, and the marks that hide or move what lies below.

Used by ``merged``. The marks of the kernel's overlayfs (``Documentation/filesystems/overlayfs.rst``; xattrs below
``trusted.overlay.``, with ``userxattr`` below ``user.overlay.``) and of fuse-overlayfs::

    whiteout   a character device 0:0; an empty file with the xattr ``whiteout``; fuse-overlayfs: a name ``.wh.NAME``
    opaque     on a directory, xattr ``opaque`` = y; fuse-overlayfs: ``user.fuseoverlayfs.opaque``, or ``.wh..wh..opq``
    redirect   on a directory or a metacopy, where it lies in the lower layer: ``/from/the/root`` or a name beside it
    metacopy   on a file: its bytes are the lower one's, only its attributes are its own
    override   fuse-overlayfs: ``uid:gid:mode`` that are shown instead of the file's own

``origin``, ``impure``, ``nlink`` and the like say nothing about what is shown, and are not read. Nothing is followed
through a symbolic link, no file is opened, nothing is changed. What is read is bounded by the limits below.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kitfs.errors import KitfsError, MalformedError
from kitfs.modelkit import NODES_MAX
from kitfs.modelkit.beneath import Directory, open_directory
from kitfs.modelkit.entries import DEPTH_MAX

ENTRIES_MAX = NODES_MAX // 4
"""Entries of an upper directory, 300 bytes of memory each."""

PATH_SIZE_MAX = 4096
"""Bytes of a path, as in a layer."""

Overlay = Literal["overlay", "fuse-overlayfs"]
"""Which of the two wrote the directory: the kernel's, or fuse-overlayfs."""

_KERNEL = ("trusted.overlay.", "user.overlay.")
_OPAQUE = (*(prefix + "opaque" for prefix in _KERNEL), "user.fuseoverlayfs.opaque")
_OVERRIDE = ("user.containers.override_stat", "user.fuseoverlayfs.override_stat")
_WHITEOUT_PREFIX = b".wh."
_WHITEOUT_OPAQUE = b".wh..wh..opq"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_XATTR = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EACCES, errno.ENOENT})


class UpperMalformed(MalformedError):
    """An upper directory that no overlay leaves behind, or one that is too large.

    Attributes:
        path: Below the upper directory.
        reason: What is wrong.
    """

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"staging directory, {os.fsdecode(path) or '.'!r}: {reason}")
        self.path = path
        self.reason = reason


class UpperUnreadable(KitfsError):
    """Something in an upper directory that can not be read.

    Attributes:
        path: Below the upper directory.
        reason: What the system says, or what is wrong.
    """

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"can not read {os.fsdecode(path) or '.'!r} in the staging directory: {reason}")
        self.path = path
        self.reason = reason


class UpperKind(enum.Enum):
    """What an entry is; OTHER is what a ModelKit can not hold: links, devices, pipes, sockets."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()
    WHITEOUT = enum.auto()
    OTHER = enum.auto()


@dataclass(slots=True)
class UpperEntry:
    """One entry.

    Attributes:
        kind: What it is.
        mode: ``st_mode``, as the overlay shows it.
        size: Bytes of a file.
        opaque: Whether a directory hides what the lower layer has there.
        redirect: Where a directory or metacopy lies in the lower layer, if not at its own path.
        metacopy: Whether a file's bytes are the lower layer's.
        children: What a directory holds, whiteouts among it.
    """

    kind: UpperKind
    mode: int
    size: int = 0
    opaque: bool = False
    redirect: bytes | None = None
    metacopy: bool = False
    children: dict[bytes, UpperEntry] = field(default_factory=dict)


_WHITEOUT = UpperEntry(UpperKind.WHITEOUT, stat.S_IFCHR)


def read_upper(upper: Path, *, overlay: Overlay | None = None, without: bytes = b"") -> UpperEntry:
    """The whole of an upper directory.

    Args:
        upper: The directory.
        overlay: What wrote it; None understands the marks of both.
        without: Name at its root that is passed over with all that it holds.

    Raises:
        UpperUnreadable: when something can not be read.
        UpperMalformed: when it is larger than an upper directory may be.
    """
    with _naming(b""):
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return _Scan(overlay, without).read(fd)


class _Level:
    """A directory that is being read; its descriptor is closed with it."""

    def __init__(self, fd: int, path: bytes, entry: UpperEntry) -> None:
        self.fd = fd
        self.path = path
        self.entry = entry
        self.directories: list[bytes] = []

    def child(self, name: bytes) -> bytes:
        return self.path + b"/" + name if self.path else name


class _Scan:
    """One walk through an upper directory."""

    def __init__(self, overlay: Overlay | None, without: bytes) -> None:
        self._reads_names = overlay != "overlay"
        self._without = without
        self._count = 0
        self._device = 0

    def read(self, fd: int) -> UpperEntry:
        status = os.fstat(fd)
        self._device = status.st_dev
        levels = [self._enter(fd, b"", status)]
        root = levels[0].entry
        try:
            while levels:
                level = levels[-1]
                if not level.directories:
                    os.close(levels.pop().fd)
                    continue
                name = level.directories.pop()
                path = level.child(name)
                if len(levels) >= DEPTH_MAX:
                    raise UpperMalformed(path, f"more than {DEPTH_MAX} directories inside each other")
                with _naming(path):
                    inner = os.open(name, _DIRECTORY_FLAGS, dir_fd=level.fd)
                levels.append(self._enter(inner, path, level.entry.children[name]))
        finally:
            for level in levels:
                os.close(level.fd)
        return root

    def _enter(self, fd: int, path: bytes, known: UpperEntry | os.stat_result) -> _Level:
        try:
            with _naming(path):
                entry = known if isinstance(known, UpperEntry) else _parse(known, f"/proc/self/fd/{fd}".encode(), False)
                level = _Level(fd, path, entry)
                for item in os.scandir(fd):
                    self._add(level, os.fsencode(item.name), item)
        except BaseException:
            os.close(fd)
            raise
        return level

    def _add(self, level: _Level, name: bytes, item: os.DirEntry[str]) -> None:
        path = level.child(name)
        self._count += 1
        if self._count > ENTRIES_MAX:
            raise UpperMalformed(path, f"more than {ENTRIES_MAX} entries")
        if len(path) > PATH_SIZE_MAX:
            raise UpperMalformed(path[:64], f"a path of more than {PATH_SIZE_MAX} bytes")
        if path == self._without:
            return
        children = level.entry.children
        if self._reads_names and name.startswith(_WHITEOUT_PREFIX):
            if name == _WHITEOUT_OPAQUE:
                level.entry.opaque = True
            else:
                children.setdefault(name.removeprefix(_WHITEOUT_PREFIX), _WHITEOUT)
            return
        with _naming(path):
            status = item.stat(follow_symlinks=False)
            entry = _parse(status, b"/proc/self/fd/%d/%s" % (level.fd, name), True)
        if entry.kind is UpperKind.DIRECTORY:
            if status.st_dev != self._device:
                raise UpperMalformed(path, "another file system is mounted there")
            level.directories.append(name)
        children[name] = entry


def _parse(status: os.stat_result, place: bytes, is_name: bool) -> UpperEntry:
    """An entry from its status and the xattrs at a place, which is a name in a directory or an open directory."""
    mode = status.st_mode
    if stat.S_ISCHR(mode) and status.st_rdev == 0:
        return _WHITEOUT
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return UpperEntry(UpperKind.OTHER, mode, status.st_size)
    marks = _read_marks(place, follow=not is_name)
    if stat.S_ISDIR(mode):
        opaque = any(marks.get(name) == b"y" for name in _OPAQUE)
        entry = UpperEntry(UpperKind.DIRECTORY, mode, opaque=opaque, redirect=_kernel(marks, "redirect"))
    elif not status.st_size and _kernel(marks, "whiteout") is not None:
        return _WHITEOUT
    else:
        is_metacopy = _kernel(marks, "metacopy") is not None
        redirect = _kernel(marks, "redirect") if is_metacopy else None
        entry = UpperEntry(UpperKind.FILE, mode, status.st_size, redirect=redirect, metacopy=is_metacopy)
    override = next((_parse_override(marks[name]) for name in _OVERRIDE if name in marks), None)
    if override is not None:
        entry.mode = (stat.S_IFMT(override) or stat.S_IFMT(mode)) | stat.S_IMODE(override)
        if stat.S_IFMT(entry.mode) != stat.S_IFMT(mode):
            entry.kind = UpperKind.OTHER
    return entry


def _kernel(marks: dict[str, bytes], name: str) -> bytes | None:
    return next((marks[prefix + name] for prefix in _KERNEL if prefix + name in marks), None)


_WANTED = frozenset({*_OPAQUE, *_OVERRIDE, *(p + n for p in _KERNEL for n in ("redirect", "metacopy", "whiteout"))})


def _read_marks(place: bytes, *, follow: bool) -> dict[str, bytes]:
    """The xattrs that mean something; none where the file system has none, or the file may not be read."""
    try:
        names = os.listxattr(place, follow_symlinks=follow)
        return {name: os.getxattr(place, name, follow_symlinks=follow) for name in names if name in _WANTED}
    except OSError as error:
        if error.errno in _NO_XATTR:
            return {}
        raise


def _parse_override(value: bytes) -> int | None:
    """The mode of ``uid:gid:mode``, octal, with whatever stands behind it; None when it is none."""
    fields = value.split(b":")
    try:
        return int(fields[2], 8) & 0xFFFF
    except (IndexError, ValueError):
        return None


@contextmanager
def open_file(upper: Path, path: bytes) -> Iterator[tuple[int, os.stat_result]]:
    """A file of an upper directory: its descriptor and status, taken together. No link is followed below ``upper``.

    Raises:
        UpperUnreadable: when it can not be opened, or is no regular file any more.
    """
    above, _, name = path.rpartition(b"/")
    with _naming(path):
        root = Directory(os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        directory = open_directory(root.fd, above) if above else root
        fd = os.open(name, _FILE_FLAGS, dir_fd=directory.fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UpperUnreadable(path, "it is no regular file any more")
        yield fd, status
    finally:
        os.close(fd)


@contextmanager
def _naming(path: bytes) -> Iterator[None]:
    """Turn the system's errors about ``path`` into ``UpperUnreadable``."""
    try:
        yield
    except OSError as error:
        raise UpperUnreadable(path, error.strerror or type(error).__name__) from error
