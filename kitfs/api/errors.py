"""Errors of the Python API that are Python's own too, so that ``except FileNotFoundError`` does what it says.

All others are those of the packages below, ``kitfs.errors.KitfsError`` the root of them.
"""

from __future__ import annotations

import errno
import os

from kitfs.errors import KitfsError, NotFoundError, UsageError


class FileMissing(NotFoundError, FileNotFoundError):
    """A ModelKit has nothing at a path.

    Attributes:
        filename: The path.
        reference: The ModelKit.
    """

    def __init__(self, path: str, reference: str) -> None:
        super().__init__(errno.ENOENT, f"not in {reference}", path)
        self.reference = reference


class FileRefused(UsageError, OSError):
    """A directory that was to be read, a file that was to be listed, or anything that was to be written.

    Attributes:
        errno: ``EISDIR``, ``ENOTDIR`` or ``EROFS``.
        filename: The path.
    """

    def __init__(self, number: int, path: str) -> None:
        super().__init__(number, os.strerror(number), path)


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
