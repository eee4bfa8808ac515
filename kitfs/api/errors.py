"""Errors of the Python API that are Python's own too, so that ``except FileNotFoundError`` does what it says.

All others are those of the packages below, ``kitfs.errors.KitfsError`` the root of them.
"""

from __future__ import annotations

import errno
import os

from kitfs.errors import KitfsError, NotFoundError, UsageError


class PathMissing(NotFoundError, FileNotFoundError):
    """A ModelKit has nothing at a path.

    Attributes:
        filename: The path.
        reference: The ModelKit.
    """

    def __init__(self, path: str, reference: str) -> None:
        super().__init__(errno.ENOENT, f"not in {reference}", path)
        self.reference = reference


class PathIsDirectory(UsageError, IsADirectoryError):
    """A directory was to be read.

    Attributes:
        filename: The path.
    """

    def __init__(self, path: str) -> None:
        super().__init__(errno.EISDIR, os.strerror(errno.EISDIR), path)


class PathIsFile(UsageError, NotADirectoryError):
    """A file was to be listed.

    Attributes:
        filename: The path.
    """

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


class ModelKitReadOnly(UsageError, OSError):
    """A file was to be written.

    Attributes:
        filename: The path.
    """

    hint = "a changed ModelKit is another one: kitfs mount --writable and kitfs commit make it"

    def __init__(self, path: str) -> None:
        super().__init__(errno.EROFS, os.strerror(errno.EROFS), path)


class ModelKitClosed(UsageError, ValueError):
    """A ModelKit, or one of its files, was used after it was closed."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"{reference} is closed")
        self.reference = reference


class ModelKitForked(KitfsError, RuntimeError):
    """A ModelKit was used in a process that was forked after it had been opened."""

    hint = "open it in the process that uses it"

    def __init__(self, reference: str) -> None:
        super().__init__(f"{reference} was opened before a fork, and can not be used after it")
        self.reference = reference
