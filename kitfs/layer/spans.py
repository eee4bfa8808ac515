"""Spans of members that lie uncompressed in a layer: where they are, and the checksums that find rot in them.

Spans count from the member's first byte, not the blob's: the kernel asks for page-aligned ranges of the *file*, so a
READ of 128 KiB is one span. A layer's span checksums are those of its files in TOC order, 16 bytes each. The indexer
writes them, the reader compares them before a byte leaves. Pure; not thread safe.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

from kitfs.digest import checksum
from kitfs.store.records import KIND_FILE, TocMember

SPAN_SIZE = 128 << 10
"""Bytes of a span, except a member's last: the largest READ of a kernel whose read-ahead nobody raised."""


def span_count(size: int) -> int:
    """Spans of a member of `size` bytes."""
    return -(-size // SPAN_SIZE)


def first_spans(toc: Sequence[TocMember]) -> array[int]:
    """For each member, how many spans the files before it have; one number more at the end, the total."""
    counts = (span_count(member.size) if member.kind == KIND_FILE else 0 for member in toc)
    return array("Q", accumulate(counts, initial=0))


class SpanWriter:
    """Checksums the spans of one member after another, from pieces of any size.

    Attributes:
        checksums: The checksums so far.
    """

    __slots__ = ("_partial", "checksums")

    def __init__(self) -> None:
        self.checksums = bytearray()
        self._partial = bytearray()

    def update(self, data: memoryview) -> None:
        """Take the next bytes of the member."""
        at = 0
        if self._partial:
            at = min(SPAN_SIZE - len(self._partial), len(data))
            self._partial += data[:at]
            if len(self._partial) < SPAN_SIZE:
                return
            self.end_member()
        while len(data) - at >= SPAN_SIZE:
            self.checksums += checksum(data[at : at + SPAN_SIZE])
            at += SPAN_SIZE
        self._partial += data[at:]

    def add_member(self, data: memoryview) -> None:
        """Take the bytes of a whole member."""
        if len(data) > SPAN_SIZE:
            self.update(data)
            self.end_member()
        elif data:
            self.checksums += checksum(data)

    def add_known(self, checksums: bytes) -> None:
        """Take the checksums of a whole member that was compared with them."""
        self.checksums += checksums

    def end_member(self) -> None:
        """The member is whole: its short last span counts."""
        if self._partial:
            self.checksums += checksum(self._partial)
            self._partial.clear()
