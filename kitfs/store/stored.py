"""The blobs and members that lie in the store as files, whatever the index says of them.

Used to make the index anew, when files are all there is. This is the one place that knows in which forms a blob's
bytes can lie on disk and how they are read whole: what has another form than one file of its own is listed and read
here. Reads only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kitfs.digest import Digest
from kitfs.store.errors import StoreWriteFailed
from kitfs.store.gc import iter_files
from kitfs.store.layout import Layout
from kitfs.store.records import BlobForm, Stamp
from kitfs.store.stamp import find_status
from kitfs.store.verify import hash_and_stamp

Watch = Callable[[memoryview], None]
"""Sees bytes as they pass; a view is overwritten once the call returns."""

_WRITE_BITS = 0o222


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A blob or a member that is there.

    Attributes:
        digest: What it should hold.
        form: How a blob is kept; ``whole`` for a member.
        size: Its bytes, as published.
        path: The file.
        changed_s: When its file was last changed, seconds since the epoch.
    """

    digest: Digest
    form: BlobForm
    size: int
    path: Path
    changed_s: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading all of a stored file told.

    Attributes:
        is_right: Whether its bytes are those that its digest names.
        stamp: What to trust it by from now on; None when its status did not stand still.
        problem: What is wrong with it, in words; empty when nothing is.
        is_readable: False when the disk would not give its bytes, which says nothing about what they are.
    """

    is_right: bool
    stamp: Stamp | None
    problem: str = ""
    is_readable: bool = True


def iter_blobs(layout: Layout) -> Iterator[StoredFile]:
    """All blobs, by digest."""
    for digest, _ in iter_files(layout, "blobs"):
        found = find_blob(layout, digest)
        if found is not None:
            yield found


def find_blob(layout: Layout, digest: Digest) -> StoredFile | None:
    """One blob, or None when it is not there.

    A file with more than one name, or with write permission, came by a hard link: the store's own are 0444 and have one
    name. One whose other name is gone counts as the store's: nobody else can open it any more.
    """
    path = layout.blob(digest)
    status = find_status(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    form: BlobForm = "linked" if status.st_nlink > 1 or status.st_mode & _WRITE_BITS else "whole"
    return StoredFile(digest, form, status.st_size, path, int(status.st_ctime))


def iter_members(layout: Layout) -> Iterator[StoredFile]:
    """All members, by digest."""
    for digest, file in iter_files(layout, "members"):
        yield StoredFile(digest, "whole", os.lstat(file.path).st_size, file.path, int(file.changed_s))


def read_head(stored: StoredFile, size: int) -> bytes:
    """The first bytes of a stored file, not verified.

    Raises:
        OSError: when it can not be read.
    """
    with open(stored.path, "rb", buffering=0) as file:
        return file.read(size)


def read_whole(stored: StoredFile, watch: Watch) -> Reading:
    """Hash a stored file once, from its first byte to its last.

    Args:
        stored: Which.
        watch: Sees the bytes.
    """
    try:
        is_right, stamp = hash_and_stamp(stored.path, stored.digest, watch)
    except StoreWriteFailed as error:
        return Reading(False, None, f"it can not be read: {error.reason}", is_readable=False)
    return Reading(is_right, stamp, "" if is_right else f"its {stored.size} bytes have another digest")
