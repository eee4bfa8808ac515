"""A directory that is packed, as its files and directories lie on the disk.

Nothing is followed through a symbolic link: every step opens a name inside an open directory, and whatever is neither a
regular file nor a directory is passed over and reported. Used by pack and derive; reads the directory, changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from kitfs.archive.tar_toc import MemberKind
from kitfs.errors import BusyError, KitfsError, UsageError
from kitfs.modelkit.entries import META_NAME, Advance, PathUnreadable, Reading, iter_layer
from kitfs.modelkit.ignore import LayerRules
from kitfs.modelkit.nodes import MemberContent

_PIECE_SIZE = 1 << 20
_RAW_RULE = "a raw layer is the bytes of one file"
Check = Callable[[int, str], None]
"""What refuses a file once it is open."""

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileChanged(KitfsError):
    """A file that changed while it was being packed.

    Attributes:
        path: Relative to the packed directory.
    """

    hint = "pack again when nothing writes to the directory"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} changed while it was being packed")
        self.path = path


class FileOpenForWriting(BusyError):
    """A file that is to be committed, and that somebody is writing to.

    Attributes:
        path: Relative to the root.
    """

    hint = "commit again when it is closed; fuser -v shows who has it open"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} is open for writing")
        self.path = path


def refuse_writers(fd: int, path: str) -> None:
    """Refuse a file with a writer: the kernel gives no read lease of one (fcntl(2), ``F_SETLEASE``).

    A descriptor and a shared map that may be written to both count. Whoever opens the file for writing while the lease
    is there for a moment makes the kernel send a signal: SIGURG, which is ignored, not SIGIO, which kills.

    Raises:
        FileOpenForWriting: when it has one. A file system without leases, or a file of somebody else, tells nothing; a
            change is noticed by size and time then.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise FileOpenForWriting(path) from None


class PathsUnpackable(UsageError):
    """Paths of a Kitfile that are not there, or nothing that a layer can hold.

    Attributes:
        problems: One line for each.
    """

    hint = "paths in a Kitfile are relative to the directory that is packed"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("paths in the Kitfile can not be packed:\n" + "\n".join(f"  * {line}" for line in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class DiskEntry:
    """One file or directory on the disk; valid until the walk goes on.

    Attributes:
        path: Relative to the packed directory.
        directory_fd: The open directory it is in.
        status: As ``lstat`` gave it.
        check: Called with the descriptor and the path when it is opened.
    """

    path: str
    directory_fd: int
    status: os.stat_result
    check: Check

    @property
    def kind(self) -> MemberKind:
        """File or directory."""
        return MemberKind.DIRECTORY if stat.S_ISDIR(self.status.st_mode) else MemberKind.FILE

    @property
    def mode(self) -> int:
        """Permission bits."""
        return stat.S_IMODE(self.status.st_mode)

    @property
    def size(self) -> int:
        """Bytes of a file."""
        return self.status.st_size

    @property
    def member(self) -> MemberContent | None:
        """What lies on a disk is no layer's."""
        return None

    @contextmanager
    def open(self, advance: Advance) -> Iterator[Reading]:
        """The file's bytes, with its mode and size of the time when it was opened.

        Raises:
            PathUnreadable: when it can not be opened, or is no regular file any more.
        """
        with naming(self.path):
            fd = os.open(self.path.rpartition("/")[2], _FILE_FLAGS, dir_fd=self.directory_fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise PathUnreadable(self.path, "it is no regular file any more")
            self.check(fd, self.path)
            yield Reading(stat.S_IMODE(status.st_mode), status.st_size, iter_file(fd, status, self.path, advance))
        finally:
            os.close(fd)


def iter_file(fd: int, status: os.stat_result, path: str, advance: Advance) -> Iterator[bytes]:
    """The bytes of an open file, as long as it was when its status was taken.

    Raises:
        FileChanged: while iterating, when its size or time is not what the status says.
        PathUnreadable: when it can not be read.
    """
    left = status.st_size
    while left:
        with naming(path):
            data = os.read(fd, min(left, _PIECE_SIZE))
        if not data:
            raise FileChanged(path)
        advance(len(data))
        left -= len(data)
        yield data
    with naming(path):
        after = os.fstat(fd)
        has_more = bool(os.read(fd, 1))
    if has_more or (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise FileChanged(path)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn the system's errors about ``path`` into ``PathUnreadable``."""
    try:
        yield
    except OSError as error:
        raise PathUnreadable(path, error.strerror or type(error).__name__) from error


def find_problem(context_fd: int, path: str, *, wants_file: bool = False) -> str | None:
    """Why a layer can not be made of a cleaned path, or None when it can.

    Args:
        context_fd: The packed directory, open.
        path: Stays inside it.
        wants_file: Whether the layer is raw, the bytes of one file.
    """
    try:
        mode = _find_mode(context_fd, path)
    except _BehindLink as error:
        return f"{path} lies behind the symbolic link {error}"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return describe_problem(path, mode, wants_file=wants_file)


class _BehindLink(Exception):
    """Something above a path is a symbolic link."""


def _find_mode(context_fd: int, path: str) -> int | None:
    """The ``st_mode`` of what is at a cleaned path; None for nothing."""
    with ExitStack() as stack:
        fd = context_fd
        *parents, name = path.split("/")
        try:
            for parent in parents:
                if stat.S_ISLNK(os.stat(parent, dir_fd=fd, follow_symlinks=False).st_mode):
                    raise _BehindLink(parent)
                fd = os.open(parent, _DIRECTORY_FLAGS, dir_fd=fd)
                stack.callback(os.close, fd)
            return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None


def has_directory(context_fd: int, path: str) -> bool:
    """Whether there is a directory at a cleaned path, behind no symbolic link."""
    try:
        mode = _find_mode(context_fd, path)
    except (_BehindLink, OSError):
        return False
    return mode is not None and stat.S_ISDIR(mode)


def describe_problem(path: str, mode: int | None, *, wants_file: bool) -> str | None:
    """Why a layer can not be made of what has a mode (``st_mode``; None for nothing), or None when it can."""
    if mode is None:
        return f"{path} does not exist"
    if stat.S_ISLNK(mode):
        return f"{path} is a symbolic link"
    if wants_file and stat.S_ISDIR(mode):
        return f"{path} is a directory, and {_RAW_RULE}"
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else f"{path} is neither a file nor a directory"


class DiskFolder:
    """An open directory."""

    def __init__(self, fd: int, path: str, skipped: Callable[[str, int], None], check: Check) -> None:
        """Begin.

        Args:
            fd: Nobody else lists it meanwhile.
            path: Relative to the packed directory, empty for that itself.
            skipped: Called with path and ``st_mode`` of what is neither file nor directory.
            check: See ``DiskEntry``.
        """
        self._fd = fd
        self._path = path
        self._skipped = skipped
        self._check = check

    def get(self, name: str) -> DiskEntry:
        """One entry.

        Raises:
            PathUnreadable: when there is none.
        """
        path = self._join(name)
        with naming(path):
            return DiskEntry(path, self._fd, os.stat(name, dir_fd=self._fd, follow_symlinks=False), self._check)

    def iter_entries(self) -> Iterator[DiskEntry]:
        """Its files and directories, names in byte order.

        Raises:
            PathUnreadable: when they can not be read.
        """
        for name in _names(self._fd, self._path):
            if self._join(name) == META_NAME:
                continue
            entry = self.get(name)
            if stat.S_ISDIR(entry.status.st_mode) or stat.S_ISREG(entry.status.st_mode):
                yield entry
            else:
                self._skipped(entry.path, entry.status.st_mode)

    @contextmanager
    def enter(self, entry: DiskEntry) -> Iterator[DiskFolder]:
        """Open a directory of it.

        Raises:
            PathUnreadable: when it can not be opened.
        """
        with _opened(entry.path.rpartition("/")[2], self._fd, entry.path) as fd:
            yield DiskFolder(fd, entry.path, self._skipped, self._check)

    def _join(self, name: str) -> str:
        return f"{self._path}/{name}" if self._path else name


def iter_entries(
    context_fd: int,
    layer_path: str,
    rules: LayerRules,
    skipped: Callable[[str, int], None],
    check: Check = lambda _fd, _path: None,
) -> Iterator[DiskEntry]:
    """The files and directories of one layer of a directory, in order; see ``entries.iter_layer``.

    Args:
        context_fd: The packed directory, open.
        layer_path: Cleaned path of the layer.
        rules: What it leaves out.
        skipped: Called with path and ``st_mode`` of what is neither file nor directory.
        check: See ``DiskEntry``.

    Raises:
        PathUnreadable: when something can not be read, or lies too deep.
    """
    with _opened(".", context_fd, ".") as fd:  # listing moves the place of a descriptor
        yield from iter_layer(DiskFolder(fd, "", skipped, check), layer_path, rules)


def _names(fd: int, path: str) -> list[str]:
    with naming(path or "."):
        return sorted(os.listdir(fd), key=os.fsencode)


@contextmanager
def _opened(name: str, directory_fd: int, path: str) -> Iterator[int]:
    with naming(path):
        fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)
