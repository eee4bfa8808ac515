"""What of a directory belongs into one layer, in the order of kit's tars.

The order is that of Go's ``filepath.Walk``: a directory before what it holds, names of a directory in byte order.
Directories above the layer's path come first, then the path itself, then all below it. Nothing is followed through
a symbolic link: every step opens a name inside an open directory, and whatever is neither a regular file nor a
directory is passed over and reported. Used by pack; reads the directory, changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from kitfs.archive.tar_toc import MemberKind
from kitfs.errors import KitfsError, UsageError
from kitfs.modelkit.ignore import LayerRules

DEPTH_MAX = 200
"""Directories inside each other; each keeps one descriptor open while it is walked."""

META_NAME = ".kitfs"
"""The folder that a mount shows at its root; never packed."""

_RAW_RULE = "a raw layer is the bytes of one file"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class PathUnreadable(KitfsError):
    """A file or directory that can not be packed.

    Attributes:
        path: Relative to the packed directory.
        reason: What the system says, or what is wrong.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"can not pack {path!r}: {reason}")
        self.path = path
        self.reason = reason


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
class Entry:
    """One file or directory of a layer; valid until the walk goes on.

    Attributes:
        path: Relative to the packed directory.
        directory_fd: The open directory it is in.
        status: As ``lstat`` gave it.
    """

    path: str
    directory_fd: int
    status: os.stat_result

    @property
    def kind(self) -> MemberKind:
        """File or directory."""
        return MemberKind.DIRECTORY if stat.S_ISDIR(self.status.st_mode) else MemberKind.FILE

    @contextmanager
    def open(self) -> Iterator[tuple[int, os.stat_result]]:
        """The file's descriptor and status, taken together.

        Raises:
            PathUnreadable: when it can not be opened, or is no regular file any more.
        """
        with naming(self.path):
            fd = os.open(self.path.rpartition("/")[2], _FILE_FLAGS, dir_fd=self.directory_fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise PathUnreadable(self.path, "it is no regular file any more")
            yield fd, status
        finally:
            os.close(fd)


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
    if path == ".":
        return f"{path} is a directory, and {_RAW_RULE}" if wants_file else None
    with ExitStack() as stack:
        fd = context_fd
        *parents, name = path.split("/")
        try:
            for parent in parents:
                if stat.S_ISLNK(os.stat(parent, dir_fd=fd, follow_symlinks=False).st_mode):
                    return f"{path} lies behind the symbolic link {parent}"
                fd = os.open(parent, _DIRECTORY_FLAGS, dir_fd=fd)
                stack.callback(os.close, fd)
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return f"{path} does not exist"
        except OSError as error:
            return f"{path}: {error.strerror}"
    if stat.S_ISLNK(mode):
        return f"{path} is a symbolic link"
    if wants_file and stat.S_ISDIR(mode):
        return f"{path} is a directory, and {_RAW_RULE}"
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else f"{path} is neither a file nor a directory"


def iter_entries(
    context_fd: int, layer_path: str, rules: LayerRules, skipped: Callable[[str, int], None]
) -> Iterator[Entry]:
    """The files and directories of one layer, in order.

    Args:
        context_fd: The packed directory, open.
        layer_path: Cleaned path of the layer.
        rules: What it leaves out.
        skipped: Called with path and ``st_mode`` of what is neither file nor directory.

    Raises:
        PathUnreadable: when something can not be read, or lies too deep.
    """
    with ExitStack() as stack:
        fd, above = stack.enter_context(_opened(".", context_fd, ".")), ""  # listing moves the place of a descriptor
        for name in [] if layer_path == "." else layer_path.split("/"):
            path = f"{above}/{name}" if above else name
            with naming(path):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            is_directory = stat.S_ISDIR(status.st_mode)
            if not rules.leaves_out(path):
                yield Entry(path, fd, status)
            elif rules.prunes or not is_directory:
                return
            if not is_directory:
                return
            fd = stack.enter_context(_opened(name, fd, path))
            above = path
        yield from _walk(fd, above, rules, skipped)


def _walk(fd: int, top: str, rules: LayerRules, skipped: Callable[[str, int], None]) -> Iterator[Entry]:
    with ExitStack() as stack:
        levels = [(fd, top, iter(_names(fd, top)), stack)]
        while levels:
            fd, above, names, _ = levels[-1]
            name = next(names, None)
            if name is None:
                levels.pop()[3].close()
                continue
            path = f"{above}/{name}" if above else name
            if path == META_NAME:
                continue
            with naming(path):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            is_directory = stat.S_ISDIR(status.st_mode)
            if not is_directory and not stat.S_ISREG(status.st_mode):
                skipped(path, status.st_mode)
                continue
            left_out = rules.leaves_out(path)
            if not left_out:
                yield Entry(path, fd, status)
            if is_directory and not (left_out and rules.prunes):
                if len(levels) >= DEPTH_MAX:
                    raise PathUnreadable(path, f"more than {DEPTH_MAX} directories inside each other")
                level = stack.enter_context(ExitStack())
                inner = level.enter_context(_opened(name, fd, path))
                levels.append((inner, path, iter(_names(inner, path)), level))


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
