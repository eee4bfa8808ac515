"""What an overlay's upper directory holds: files, directories, whiteouts, and which of them lie elsewhere below.

Used by ``merged``; what marks mean is in ``upper_marks``. One walk: nothing is followed through a symbolic link, no
file is opened, nothing is changed. What is read is bounded by the limits below.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kitfs.errors import KitfsError, MalformedError
from kitfs.modelkit import NODES_MAX
from kitfs.modelkit.beneath import Directory, open_directory
from kitfs.modelkit.entries import DEPTH_MAX
from kitfs.modelkit.upper_marks import (
    METACOPY,
    OPAQUE,
    OPAQUE_NAME,
    OVERRIDE,
    REDIRECT,
    WHITEOUT,
    WHITEOUT_PREFIX,
    MarkReader,
    Marks,
    Overlay,
    can_read_trusted,
    override_mode,
)

ENTRIES_MAX = NODES_MAX // 4
"""Entries of an upper directory, 300 bytes of memory each."""

PATH_SIZE_MAX = 4096
"""Bytes of a path, as in a layer."""

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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


class UpperVanished(UpperUnreadable):
    """It went while the directory was being read."""


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
        changed_ns: A file's ctime.
        children: What a directory holds, whiteouts among it.
    """

    kind: UpperKind
    mode: int
    size: int = 0
    opaque: bool = False
    redirect: bytes | None = None
    metacopy: bool = False
    changed_ns: int = 0
    children: dict[bytes, UpperEntry] = field(default_factory=dict)


_WHITEOUT = UpperEntry(UpperKind.WHITEOUT, stat.S_IFCHR)


def read_upper(upper: Path, *, overlay: Overlay | None = None, without: bytes = b"") -> UpperEntry:
    """The whole of an upper directory.

    Args:
        upper: The directory.
        overlay: What wrote it; None understands the marks of both.
        without: Name at its root that is passed over with all that it holds.

    Raises:
        UpperUnreadable: when something can not be read, marks that only root sees among it.
        UpperMalformed: when it is larger than an upper directory may be, or a mark is none.
    """
    if overlay == "overlay" and not can_read_trusted():
        raise UpperUnreadable(b"", "it was written through the kernel's overlayfs, whose marks only root may read")
    with naming(b""):
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    scan = _Scan(fd, without)
    try:
        return scan.read(overlay)
    finally:
        scan.close()


def _place(fd: int, name: bytes = b"") -> bytes:
    """A path to an open directory, or to a name in it."""
    return b"/proc/self/fd/%d" % fd + (b"/" + name if name else b"")


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory that is being read.

    Attributes:
        fd: Its descriptor.
        path: Below the upper directory.
        entry: Where its children go.
        directories: Names of those that are still to be read.
    """

    fd: int
    path: bytes
    entry: UpperEntry
    directories: list[bytes] = field(default_factory=list)


class _Scan:
    """One walk through an upper directory; owns the descriptors of the directories that it is in."""

    _marks: MarkReader

    def __init__(self, fd: int, without: bytes) -> None:
        self._without = without
        self._count = 0
        self._device = os.fstat(fd).st_dev
        self._levels = [_Level(fd, b"", UpperEntry(UpperKind.DIRECTORY, stat.S_IFDIR))]

    def close(self) -> None:
        for level in self._levels:
            os.close(level.fd)

    def read(self, overlay: Overlay | None) -> UpperEntry:
        top = self._levels[0]
        with naming(b""):
            self._marks = MarkReader(overlay, _place(top.fd))
            if self._marks.reads_names:  # fuse-overlayfs; the kernel merges the roots whatever they say
                top.entry.opaque = self._marks.read(_place(top.fd), follow=True).get(OPAQUE) == b"y"
        self._list(top)
        while self._levels:
            level = self._levels[-1]
            if not level.directories:
                os.close(self._levels.pop().fd)
                continue
            name = level.directories.pop()
            path = join(level.path, name)
            if len(self._levels) > DEPTH_MAX:
                raise UpperMalformed(path, f"more than {DEPTH_MAX} directories inside each other")
            try:
                with naming(path):
                    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=level.fd)
            except UpperVanished:
                del level.entry.children[name]
                continue
            self._levels.append(_Level(fd, path, level.entry.children[name]))
            self._list(self._levels[-1])
        return top.entry

    def _list(self, level: _Level) -> None:
        """Take in what a directory holds. A name beside its own whiteout is hidden, as by fuse-overlayfs."""
        children = level.entry.children
        hidden = set()
        for name in list(self._iter_names(level)):
            if self._marks.reads_names and name == OPAQUE_NAME:
                level.entry.opaque = True
            elif self._marks.reads_names and name.startswith(WHITEOUT_PREFIX):
                hidden.add(name.removeprefix(WHITEOUT_PREFIX))
            else:
                with suppress(UpperVanished):
                    children[name] = self._read_entry(level.fd, name, join(level.path, name))
        children.update(dict.fromkeys(hidden - {b""}, _WHITEOUT))
        level.directories.extend(name for name in children if children[name].kind is UpperKind.DIRECTORY)

    def _iter_names(self, level: _Level) -> Iterator[bytes]:
        with naming(level.path), os.scandir(level.fd) as items:
            for item in items:
                name = os.fsencode(item.name)
                path = join(level.path, name)
                self._count += 1
                if self._count > ENTRIES_MAX:
                    raise UpperMalformed(path, f"more than {ENTRIES_MAX} entries")
                if len(path) > PATH_SIZE_MAX:
                    raise UpperMalformed(path, f"a path of more than {PATH_SIZE_MAX} bytes")
                if path != self._without:
                    yield name

    def _read_entry(self, fd: int, name: bytes, path: bytes) -> UpperEntry:
        with naming(path):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                return _WHITEOUT
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                return UpperEntry(UpperKind.OTHER, status.st_mode, status.st_size)
            marks = self._marks.read(_place(fd, name))
        if stat.S_ISDIR(status.st_mode) and status.st_dev != self._device:
            raise UpperMalformed(path, "another file system is mounted there")
        try:
            return _parse(status, marks)
        except ValueError as error:
            raise UpperMalformed(path, f"the override of its mode is none: {error}") from error


def _parse(status: os.stat_result, marks: Marks) -> UpperEntry:
    """An entry from a file's or directory's status and marks.

    Raises:
        ValueError: when the override of its mode is none.
    """
    mode = override_mode(status.st_mode, marks[OVERRIDE]) if OVERRIDE in marks else status.st_mode
    if stat.S_IFMT(mode) != stat.S_IFMT(status.st_mode):
        return UpperEntry(UpperKind.OTHER, mode)
    if stat.S_ISDIR(mode):
        is_opaque = marks.get(OPAQUE) == b"y"
        return UpperEntry(UpperKind.DIRECTORY, mode, opaque=is_opaque, redirect=marks.get(REDIRECT))
    if not status.st_size and WHITEOUT in marks:
        return _WHITEOUT
    is_metacopy = METACOPY in marks
    redirect = marks.get(REDIRECT) if is_metacopy else None
    return UpperEntry(
        UpperKind.FILE, mode, status.st_size, redirect=redirect, metacopy=is_metacopy, changed_ns=status.st_ctime_ns
    )


@contextmanager
def open_file(upper: Path, path: bytes) -> Iterator[tuple[int, os.stat_result]]:
    """A file of an upper directory: its descriptor and status, taken together. No link is followed below ``upper``.

    Raises:
        UpperUnreadable: when it can not be opened, or is no regular file any more.
    """
    above, _, name = path.rpartition(b"/")
    with naming(path):
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
def naming(path: bytes) -> Iterator[None]:
    """Turn the system's errors about ``path`` into ``UpperUnreadable``."""
    try:
        yield
    except FileNotFoundError as error:
        raise UpperVanished(path, "it is not there any more") from error
    except OSError as error:
        raise UpperUnreadable(path, error.strerror or type(error).__name__) from error


def join(above: bytes, name: bytes) -> bytes:
    """The path of a name in a directory."""
    return above + b"/" + name if above else name
