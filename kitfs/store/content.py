"""A blob's published bytes, by ranges or in order, in whichever form the store keeps it.

Used by checks, and by whatever sends a blob on; a mount reads members instead. Nothing is verified here beyond the
recipe's own checksum: who must know that the bytes are the digest's hashes them. A content holds at most two
descriptors; one thread at a time uses it.
"""

from __future__ import annotations

import abc
import bisect
import os
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from kitfs.digest import Digest, Digester
from kitfs.store.errors import BlobCorrupt
from kitfs.store.layout import Layout
from kitfs.store.recipe import Recipe, RecipeMember, read_recipe

PIECE_SIZE = 1 << 20


class Content(abc.ABC):
    """An open blob; a context manager.

    Attributes:
        digest: The blob's.
        size: Its bytes.
    """

    digest: Digest
    size: int

    @abc.abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``, fewer only at the end.

        Raises:
            BlobCorrupt: when a member of a split blob is gone or too short.
            OSError: when the disk fails.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close its files; harmless when closed."""

    def iter_pieces(self, size: int = PIECE_SIZE) -> Iterator[bytes]:
        """All bytes in order, in pieces of at most ``size``.

        Raises:
            BlobCorrupt, OSError: as ``read``.
        """
        offset = 0
        while piece := self.read(offset, size):
            yield piece
            offset += len(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WholeContent(Content):
    """A blob that is one file; see ``Content``."""

    def __init__(self, digest: Digest, fd: int) -> None:
        """Take over a descriptor."""
        self.digest = digest
        self.size = os.fstat(fd).st_size
        self._fd = fd

    def read(self, offset: int, size: int) -> bytes:
        """See ``Content``."""
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        """See ``Content``."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Segment(NamedTuple):
    """A stretch of the blob: of a member, or of the rest from ``rest_offset`` on."""

    start: int
    stop: int
    member: Digest | None
    rest_offset: int


class SplitContent(Content):
    """A blob that is a recipe and members; see ``Content``."""

    def __init__(self, layout: Layout, recipe: Recipe) -> None:
        """Unpack the recipe's rest.

        Raises:
            BlobCorrupt: when that fails.
        """
        self.digest = recipe.digest
        self.size = recipe.size
        self._layout = layout
        self._rest = recipe.unpack_rest()
        self._segments = _segments(recipe)
        self._starts = [segment.start for segment in self._segments]
        self._opened: tuple[Digest, int] | None = None

    def read(self, offset: int, size: int) -> bytes:
        """See ``Content``."""
        stop = min(offset + size, self.size)
        if offset >= stop:
            return b""
        parts = []
        number = bisect.bisect_right(self._starts, offset) - 1
        while offset < stop:
            segment = self._segments[number]
            part_stop = min(stop, segment.stop)
            parts.append(self._read_segment(segment, offset - segment.start, part_stop - offset))
            offset, number = part_stop, number + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_segment(self, segment: _Segment, offset: int, size: int) -> bytes:
        if segment.member is None:
            start = segment.rest_offset + offset
            return self._rest[start : start + size]
        data = os.pread(self._open(segment.member), size, offset)
        while len(data) < size:
            more = os.pread(self._open(segment.member), size - len(data), offset + len(data))
            if not more:
                raise BlobCorrupt(self.digest, f"its member {segment.member} is cut short")
            data += more
        return data

    def _open(self, member: Digest) -> int:
        if self._opened is not None and self._opened[0] == member:
            return self._opened[1]
        self.close()
        try:
            fd = os.open(self._layout.member(member), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise BlobCorrupt(self.digest, f"its member {member} is not there") from None
        self._opened = member, fd
        return fd

    def close(self) -> None:
        """See ``Content``."""
        opened, self._opened = self._opened, None
        if opened is not None:
            os.close(opened[1])


def _segments(recipe: Recipe) -> list[_Segment]:
    segments = []
    at = rest = 0
    for member in (*recipe.members, RecipeMember(recipe.size, 0, recipe.digest)):
        if member.offset > at:
            segments.append(_Segment(at, member.offset, None, rest))
            rest += member.offset - at
        at = member.offset + member.size
        if member.size:
            segments.append(_Segment(member.offset, at, member.digest, 0))
    return segments


def open_content(layout: Layout, digest: Digest) -> Content:
    """Open a blob in whichever form is there; a file of its own is preferred.

    Raises:
        BlobNotFound: when there is neither file nor recipe.
        BlobCorrupt: when there is a recipe that does not verify.
    """
    try:
        fd = os.open(layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return SplitContent(layout, read_recipe(layout, digest))
    return WholeContent(digest, fd)


def hash_content(layout: Layout, digest: Digest) -> tuple[Digest, int]:
    """The digest that a split blob's bytes have, and how many there are.

    Raises:
        BlobNotFound, BlobCorrupt: when its recipe or a member is not there or is cut short.
        OSError: when the disk fails.
    """
    digester = Digester()
    with SplitContent(layout, read_recipe(layout, digest)) as content:
        for piece in content.iter_pieces():
            digester.update(piece)
    return digester.digest(), digester.size
