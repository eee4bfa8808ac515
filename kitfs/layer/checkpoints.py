"""How the checkpoints of a layer are stored: a directory of fixed columns, and the windows it points into.

The store keeps them as a list of values of about 256 KiB, which it does not look into. `span_builder` encodes, readers
parse; pure. All numbers are big-endian::

    directory value   header  <version u8 = 3> <entries in this value u32> <entries in all u64> <stop u64>
                      then a column each, one item an entry:
                      bit u64          where in the published layer, in bits from the lowest of its first byte
                      offset u64       where in the decoded layer; the first is 0, each is above the one before
                      value u32        the window value that holds its window, counted from the first of them
                      place u32        where in that value
                      size u32         bytes of the window as stored (`sparse_window`); 0 for none
                      lead u32         decoded bytes before `offset` at which decoding begins
                      lead_bits u32    how many bits before `bit` that is
                      digest 32 bytes  SHA-256 of the published range of the span
    window value      packed windows one after another

Directory values come first, each full but the last; `stop` is the byte of the published layer behind the last gzip
member or zstd frame. Entries of zstd are at the first bits of frames and have no windows. Span *n* goes from entry *n*
to the next one, the last to the end of the decoded layer. Its published range begins at the byte that holds the bit at
which decoding begins, the first one's at 0, and ends behind the byte that holds the last bit before the next entry, the
last one's at `stop`; what follows is zero padding of gzip. So ranges overlap, by a byte or by a lead. The window is of
the decoded bytes before the place where decoding begins.

Version 2 is the same, but where decoding begins was chosen by how far zstd compressed the windows, which is not a
function of the layer alone: it is read as 3 is, and an image index is not made of it.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import gt

SPAN_SIZE_MAX = 16 << 20
"""Decoded bytes of a span: 16384 symbols, a block of zlib's, are 4 MiB of zeros, and twice that in GNU gzip."""

PUBLISHED_SIZE_MAX = 24 << 20
"""Published bytes of a span: a stream of empty blocks has many for few decoded ones."""

LEAD_SIZE_MAX = 128 << 10
"""Decoded bytes that are decoded before a span, to have more of its window."""

_VERSION = 3
_VERSIONS_READ = (2, _VERSION)
_HEADER = struct.Struct(">BIQQ")
_ENTRIES_MAX = 3840  # in a directory value: 255 KiB
_VALUE_SIZE = 256 << 10
_DIGEST_SIZE = 32
_COLUMNS = (("Q", 8), ("Q", 8), ("I", 4), ("I", 4), ("I", 4), ("I", 4), ("I", 4))


class CheckpointsBroken(ValueError):
    """Values that are no checkpoints; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint as it is recorded.

    Attributes:
        bit: Where in the published layer.
        offset: Where in the decoded layer.
        window: As `sparse_window` packs it.
        digest: SHA-256 of the span's published range.
        lead: Decoded bytes before `offset` at which decoding begins.
        lead_bits: How many bits before `bit` that is.
    """

    bit: int
    offset: int
    window: bytes
    digest: bytes
    lead: int = 0
    lead_bits: int = 0


def encode_checkpoints(entries: Sequence[Entry], stop: int) -> list[bytes]:
    """The values to store for a layer's checkpoints; none for none.

    Args:
        entries: The checkpoints, in order.
        stop: Byte of the published layer behind its last gzip member or zstd frame.
    """
    windows: list[bytearray] = [bytearray()]
    places: list[tuple[int, int]] = []
    for entry in entries:
        if windows[-1] and len(windows[-1]) + len(entry.window) > _VALUE_SIZE:
            windows.append(bytearray())
        places.append((len(windows) - 1, len(windows[-1])))
        windows[-1] += entry.window
    values = []
    for start in range(0, len(entries), _ENTRIES_MAX):
        part = entries[start : start + _ENTRIES_MAX]
        columns = (
            [entry.bit for entry in part],
            [entry.offset for entry in part],
            [value for value, _ in places[start : start + _ENTRIES_MAX]],
            [place for _, place in places[start : start + _ENTRIES_MAX]],
            [len(entry.window) for entry in part],
            [entry.lead for entry in part],
            [entry.lead_bits for entry in part],
        )
        encoded = [_encode_column(code, column) for (code, _), column in zip(_COLUMNS, columns, strict=True)]
        header = _HEADER.pack(_VERSION, len(part), len(entries), stop)
        values.append(b"".join((header, *encoded, *(entry.digest for entry in part))))
    return values + [bytes(window) for window in windows if window]


def _encode_column(code: str, numbers: list[int]) -> bytes:
    column = array(code, numbers)
    if sys.byteorder == "little":
        column.byteswap()
    return column.tobytes()


def count_directory_values(first: bytes) -> int:
    """How many directory values a layer has, from the first of them.

    Raises:
        CheckpointsBroken: when it is none.
    """
    return -(-_parse_header(first)[1] // _ENTRIES_MAX)


def is_current(first: bytes) -> bool:
    """Whether a layer has the checkpoints that indexing it today would give, from the first directory value."""
    return first[:1] == bytes((_VERSION,))


def _parse_header(value: bytes) -> tuple[int, int, int]:
    if len(value) < _HEADER.size:
        raise CheckpointsBroken(f"a directory value of {len(value)} bytes")
    version, count, total, stop = _HEADER.unpack_from(value)
    if version not in _VERSIONS_READ:
        raise CheckpointsBroken(f"version {version} of checkpoints is not known")
    expected = _HEADER.size + count * (sum(size for _, size in _COLUMNS) + _DIGEST_SIZE)
    if len(value) != expected:
        raise CheckpointsBroken(f"a directory value of {len(value)} bytes, expected {expected}")
    return count, total, stop


class SpanMap:
    """Where the spans of a layer are, decoded and published.

    Attributes:
        count: Spans.
        stop: Byte of the published layer behind the last.
        directory_values: How many values the directory takes; windows follow.
    """

    __slots__ = (
        "_bits",
        "_digests",
        "_lead_bits",
        "_leads",
        "_offsets",
        "_places",
        "_sizes",
        "_values",
        "count",
        "directory_values",
        "stop",
    )

    def __init__(self, directory: Sequence[bytes], size_decoded: int) -> None:
        """Read a directory.

        Args:
            directory: All its values.
            size_decoded: Bytes of the decoded layer.

        Raises:
            CheckpointsBroken: when it is none, or not this layer's.
        """
        columns = [array(code) for code, _ in _COLUMNS]
        digests = []
        total = self.stop = 0
        for value in directory:
            count, total, self.stop = _parse_header(value)
            at = _HEADER.size
            for column, (code, size) in zip(columns, _COLUMNS, strict=True):
                part = array(code, value[at : at + count * size])
                if sys.byteorder == "little":
                    part.byteswap()
                column.extend(part)
                at += count * size
            digests.append(value[at:])
        self._bits, self._offsets, self._values, self._places, self._sizes, self._leads, self._lead_bits = columns
        self._digests = b"".join(digests)
        self.count = len(self._bits)
        self.directory_values = len(directory)
        if self.count != total or not self.count or self._offsets[0] != 0:
            raise CheckpointsBroken(f"{self.count} checkpoints of {total}")
        if max(8 * self.stop, size_decoded) >= 1 << 64:
            raise CheckpointsBroken(f"they end at byte {self.stop}, and {size_decoded} of the decoded layer")
        self._offsets.append(size_decoded)
        self._bits.append(8 * self.stop)
        for column, limit in ((self._offsets, SPAN_SIZE_MAX), (self._bits, 8 * PUBLISHED_SIZE_MAX + 8)):
            if not all(0 < after - before <= limit for before, after in pairwise(column)):
                raise CheckpointsBroken("checkpoints are not in order, or too far from each other")
        for leads, column in ((self._leads, self._offsets), (self._lead_bits, self._bits)):
            if any(map(gt, leads, column)):
                raise CheckpointsBroken("decoding begins before the layer does")
        if max(self._leads) > LEAD_SIZE_MAX or max(self._lead_bits) > 16 * LEAD_SIZE_MAX:
            raise CheckpointsBroken("decoding begins too far from where it should")

    def find(self, offset: int) -> int:
        """The span that holds a byte of the decoded layer."""
        return bisect_right(self._offsets, offset) - 1

    def range(self, span: int) -> tuple[int, int]:
        """The decoded bytes of a span, half open."""
        return self._offsets[span], self._offsets[span + 1]

    def bit(self, span: int) -> int:
        """The bit of the published layer at which decoding of a span begins."""
        return self._bits[span] - self._lead_bits[span]

    def lead(self, span: int) -> tuple[int, int]:
        """What is decoded before a span, in decoded bytes and published bits; mostly nothing."""
        return self._leads[span], self._lead_bits[span]

    def published_range(self, span: int) -> tuple[int, int]:
        """The published bytes that a span is decoded from, half open."""
        return published_range(self.bit(span), self._bits[span + 1])

    def range_digest(self, span: int) -> bytes:
        """SHA-256 of the published range of a span, as recorded; the first one's begins at byte 0."""
        return self._digests[span * _DIGEST_SIZE : (span + 1) * _DIGEST_SIZE]

    def window_place(self, span: int) -> tuple[int, int, int] | None:
        """The value that holds a span's window, counted from the first of all values, its place there and its size."""
        if not self._sizes[span]:
            return None
        return self.directory_values + self._values[span], self._places[span], self._sizes[span]


def published_range(bit: int, next_bit: int) -> tuple[int, int]:
    """Whole bytes that hold the bits ``[bit, next_bit)``, half open."""
    return bit // 8, -(-next_bit // 8)
