"""What can go wrong with the directory that a ModelKit is unpacked into."""

from __future__ import annotations

import errno

from kitfs.errors import KitfsError


class UnpackFailed(KitfsError):
    """A file or directory that could not be unpacked.

    Attributes:
        path: Relative to the target, or the target itself.
        reason: What is wrong, in words.
    """

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"failed to unpack {shown(path)}: {reason}")
        self.path = path
        self.reason = reason


class TargetFull(UnpackFailed):
    """No room for a file; what was unpacked before stays."""

    hint = "free space there, or unpack less of it: --filter"


class PathExists(UnpackFailed):
    """Something is there already."""

    hint = "-o replaces files that are there, -i leaves them as they are"

    def __init__(self, path: bytes, more: str = "") -> None:
        super().__init__(path, f"path '{shown(path)}' already exists{more}")
        if more:
            self.hint = ""


class PathNotDirectory(UnpackFailed):
    """A file is there where a directory is needed."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path, f"path '{shown(path)}' already exists and is not a directory")


class PathIsLink(UnpackFailed):
    """A symbolic link is there where a directory is needed."""

    hint = "move the link away, or name the directory behind it with -d"

    def __init__(self, path: bytes) -> None:
        super().__init__(path, f"path '{shown(path)}' is a symbolic link, and unpacking follows none")


def failure(path: bytes, error: OSError) -> UnpackFailed:
    """The error for what the system says."""
    reason = error.strerror or type(error).__name__
    return (TargetFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else UnpackFailed)(path, reason)


def shown(path: bytes) -> str:
    """A path as it is printed."""
    return path.decode("utf-8", "backslashreplace")
