"""The blobs and members that lie in the store as files, whatever the index says of them.

Used to make the index anew, when files are all there is. This is the one place that knows in which forms a blob's
bytes can lie on disk and how they are read whole: what has another form than one file of its own is listed and read
here. Reads only.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kitfs.digest import Digest, Digester
from kitfs.store.errors import BlobCorrupt, BlobNotFound, StoreWriteFailed
from kitfs.store.gc import iter_files
from kitfs.store.layout import Layout
from kitfs.store.recipe import Recipe, find_recipe, read_recipe
from kitfs.store.records import BlobForm, Stamp
from kitfs.store.stamp import find_status, is_settled, matches, settle, stamp_of
from kitfs.store.verify import hash_and_stamp

Watch = Callable[[memoryview], None]
"""Sees bytes as they pass; a view is overwritten once the call returns."""

_WRITE_BITS = 0o222
_READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A blob or a member that is there.

    Attributes:
        digest: What it should hold.
        form: How a blob is kept; ``whole`` for a member.
        size: Its bytes, as published; 0 when its recipe does not verify.
        path: The file; of a split blob, its recipe.
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
        recipe: Of a split blob, when it verified.
        members: Of a split blob, those that have as many bytes as its recipe says, with their stamps; for others
            zeros were shown. That their bytes are right is for who watched them to say.
    """

    is_right: bool
    stamp: Stamp | None
    problem: str = ""
    is_readable: bool = True
    recipe: Recipe | None = None
    members: Mapping[Digest, Stamp | None] = field(default_factory=dict)


def iter_blobs(layout: Layout) -> Iterator[StoredFile]:
    """All blobs, each in one form: a file of its own is preferred to a recipe."""
    seen = set()
    for digest, _ in iter_files(layout, "blobs"):
        found = _find_file(layout, digest)
        if found is not None:
            seen.add(digest)
            yield found
    for digest, _ in iter_files(layout, "recipes"):
        found = find_split(layout, digest) if digest not in seen else None
        if found is not None:
            yield found


def find_blob(layout: Layout, digest: Digest) -> StoredFile | None:
    """One blob, or None when it is not there; a file of its own is preferred to a recipe."""
    return _find_file(layout, digest) or find_split(layout, digest)


def find_split(layout: Layout, digest: Digest) -> StoredFile | None:
    """One blob as a recipe and its members, or None when there is no recipe, right or wrong."""
    path = layout.recipe(digest)
    status = find_status(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    recipe = find_recipe(layout, digest)
    return StoredFile(digest, "split", recipe.size if recipe is not None else 0, path, int(status.st_ctime))


def _find_file(layout: Layout, digest: Digest) -> StoredFile | None:
    """One blob as one file.

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
    """The first bytes of a stored file, not verified; of a split blob, of its recipe.

    Raises:
        OSError: when it can not be read.
    """
    with open(stored.path, "rb", buffering=0) as file:
        return file.read(size)


def read_whole(layout: Layout, stored: StoredFile, watch: Watch) -> Reading:
    """Hash a stored file once, from its first byte to its last, or a split blob's parts in the blob's order.

    Args:
        layout: Where the members of a split blob lie.
        stored: Which.
        watch: Sees the bytes.
    """
    if stored.form == "split":
        return _read_split(layout, stored, watch)
    try:
        is_right, stamp = hash_and_stamp(stored.path, stored.digest, watch)
    except StoreWriteFailed as error:
        return Reading(False, None, f"it can not be read: {error.reason}", is_readable=False)
    return Reading(is_right, stamp, "" if is_right else f"its {stored.size} bytes have another digest")


def _read_split(layout: Layout, stored: StoredFile, watch: Watch) -> Reading:
    before = find_status(stored.path)
    try:
        recipe = read_recipe(layout, stored.digest)
        rest = memoryview(recipe.unpack_rest())
    except BlobCorrupt as error:
        return Reading(False, None, error.reason)
    except BlobNotFound:
        return Reading(False, None, "its recipe is not there")
    digester = Digester()

    def show(data: memoryview) -> None:
        digester.update(data)
        watch(data)

    buffer = memoryview(bytearray(_READ_SIZE))
    members: dict[Digest, Stamp | None] = {}
    cut = set()
    at = rest_at = 0
    for member in recipe.members:
        gap = member.offset - at
        _show_pieces(rest[rest_at : rest_at + gap], show)
        is_whole, stamp = _show_member(layout.member(member.digest), member.size, buffer, show)
        members[member.digest] = stamp
        if not is_whole:
            cut.add(member.digest)
        at, rest_at = member.offset + member.size, rest_at + gap
    _show_pieces(rest[rest_at:], show)
    problem = ""
    if cut:
        problem = f"{len(cut)} of its {len(members)} members are not there, or have another size"
    elif digester.digest() != stored.digest:
        problem = "its recipe and members give other bytes"
    kept = {digest: stamp for digest, stamp in members.items() if digest not in cut}
    return Reading(not problem, _find_stamp(before, stored.path), problem, recipe=recipe, members=kept)


def _show_pieces(data: memoryview, show: Watch) -> None:
    for start in range(0, len(data), _READ_SIZE):
        show(data[start : start + _READ_SIZE])


def _show_member(path: Path, size: int, buffer: memoryview, show: Watch) -> tuple[bool, Stamp | None]:
    """Show as many bytes of a member as its recipe says, zeros in place of those that can not be had."""
    before = find_status(path)
    done = 0
    is_whole = False
    if before is not None and stat.S_ISREG(before.st_mode):  # opening a pipe would wait for ever
        settle(stamp_of(before))
        try:
            with open(path, "rb", buffering=0) as file:
                while done < size and (count := file.readinto(buffer[: size - done])):
                    show(buffer[:count])
                    done += count
                is_whole = done == size and os.fstat(file.fileno()).st_size == size
        except OSError:
            is_whole = False
    while done < size:
        zeros = memoryview(bytes(min(_READ_SIZE, size - done)))
        show(zeros)
        done += len(zeros)
    return is_whole, _find_stamp(before, path)


def _find_stamp(before: os.stat_result | None, path: Path) -> Stamp | None:
    """The stamp of a file that was read since ``before``; None when its status did not stand still."""
    if before is None:
        return None
    stamp = stamp_of(before)
    return stamp if matches(stamp, find_status(path)) and is_settled(stamp, time.time_ns()) else None
