"""SHA-256 of each range of a plain layer as published: with them an image index verifies a layer that comes by ranges.

The indexer writes them; of compressed layers the directory of checkpoints has them instead. They are stored where other
layers have their checkpoints, as values of up to 256 KiB, all numbers big-endian::

    value   <kind u8 = 128> <bytes of a range u32> <ranges in this value u32> <ranges in all u64>
            then for each, in order, its digest, 32 bytes

No directory of checkpoints begins with 128. Ranges lie one behind another from byte 0; the last may be shorter. Pure; a
writer is one thread's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence

RANGE_SIZE = 4 << 20
"""Bytes of a range: 8 bytes of index for each MB, and a request that is large enough to be worth its round trip."""

DIGEST_SIZE = 32
"""Bytes of one of the digests."""

_KIND = 128
_HEADER = struct.Struct(">BIIQ")
_RANGES_MAX = 8000  # in a value: 250 KiB


class RangesBroken(ValueError):
    """Values that are no digests of ranges; the text says why."""


class RangeWriter:
    """Hashes the ranges of one layer, from pieces of any size."""

    __slots__ = ("_digests", "_hash", "_known", "_left")

    def __init__(self) -> None:
        self._digests = bytearray()
        self._hash = hashlib.sha256()
        self._known: dict[int, bytes] = {}
        self._left = RANGE_SIZE

    def expect(self, known: Mapping[int, bytes]) -> None:
        """Take digests of ranges, by number, whose first byte is yet to come: these are not hashed."""
        self._known |= known

    def update(self, data: memoryview) -> None:
        """Take the next published bytes."""
        at = 0
        while at < len(data):
            part = data[at : at + self._left]
            if self._number not in self._known:
                self._hash.update(part)
            at += len(part)
            self._left -= len(part)
            if self._left == 0:
                self._end_range()

    def finish(self) -> list[bytes]:
        """The values to store; none for an empty layer."""
        if self._left < RANGE_SIZE:
            self._end_range()
        return encode_ranges(bytes(self._digests))

    @property
    def _number(self) -> int:
        """Of the range at hand."""
        return len(self._digests) // DIGEST_SIZE

    def _end_range(self) -> None:
        self._digests += self._known.pop(self._number, b"") or self._hash.digest()
        self._hash = hashlib.sha256()
        self._left = RANGE_SIZE


def encode_ranges(digests: bytes) -> list[bytes]:
    """The values to store for digests of ranges, 32 bytes each."""
    size = _RANGES_MAX * DIGEST_SIZE
    parts = [digests[at : at + size] for at in range(0, len(digests), size)]
    total = len(digests) // DIGEST_SIZE
    return [_HEADER.pack(_KIND, RANGE_SIZE, len(part) // DIGEST_SIZE, total) + part for part in parts]


def parse_ranges(values: Sequence[bytes]) -> tuple[int, bytes]:
    """Bytes of a range, and the digests of all, 32 bytes each.

    Raises:
        RangesBroken: when the values are no ranges, or not all of a layer's.
    """
    parts = []
    range_size = expected = 0
    for value in values:
        if len(value) < _HEADER.size:
            raise RangesBroken(f"a value of {len(value)} bytes")
        kind, range_size, count, expected = _HEADER.unpack_from(value)
        if kind != _KIND or range_size == 0 or len(value) != _HEADER.size + count * DIGEST_SIZE:
            raise RangesBroken(f"a value of kind {kind} with {len(value)} bytes for {count} ranges")
        parts.append(value[_HEADER.size :])
    digests = b"".join(parts)
    if len(digests) != expected * DIGEST_SIZE:
        raise RangesBroken(f"{len(digests)} bytes of digests for {expected} ranges")
    return range_size, digests
