"""Windows of checkpoints without the bytes that nothing refers to.

A checkpoint needs up to 32 KiB of decoded bytes before it, of which what follows refers to few, of weights to 1 in 30.
Which, two decodings of the 32 KiB after it show, with dictionaries that hold for each place a number of its own: a
byte that is not zero in the first, and how the second's differs from it. A decoded byte that differs between the two
comes from the window, and both say from where. The others are set to zero, and the whole is compressed: 1.5 KB for bf16
weights by zlib's level 6, 2.5 KB for source code. Pure, any thread. (Bytes that hold `i & 255`,
`i >> 8` and `~i & 255` say the same in three decodings, and can not be picked out at once by `translate`: 1.6 against
0.6 ms a window.)
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import NamedTuple

import zstandard

from kitfs.layer.block_inflater import WINDOW_SIZE
from kitfs.layer.span_decode import SpanBroken, peek_span

_LEVEL = 3
_NUMBERS = 255  # that one byte holds beside 0

_ALL_BITS = bytes((0, *(255,) * 255))  # for `translate`: 255 where a byte is not zero


class _Numbers(NamedTuple):
    first: bytes  # a dictionary
    second: bytes  # the other
    places: dict[int, int]  # by what the first holds and how the second differs, as one number


@functools.cache
def _number_places() -> _Numbers:
    """Made when the first window is, and not in a worker that only reads: it takes 20 ms."""
    first = bytes(place % _NUMBERS + 1 for place in range(WINDOW_SIZE))
    difference = bytes(place // _NUMBERS + 1 for place in range(WINDOW_SIZE))
    pairs = list(zip(first, difference, strict=True))
    places = {int.from_bytes(bytes(pair), sys.byteorder): place for place, pair in enumerate(pairs)}
    return _Numbers(first, bytes(one ^ other for one, other in pairs), places)


class SparseWindow(NamedTuple):
    """A window without what nothing refers to.

    Attributes:
        data: The window with zeros; empty when nothing in it is referred to.
        reference_count: How many of its bytes are referred to.
    """

    data: bytes
    reference_count: int


def make_sparse(window: bytes, data: memoryview, shift: int, lead: int = 0) -> SparseWindow:
    """Set to zero what a span does not refer to.

    Args:
        window: All of it.
        data: Published bytes, from the one in which decoding begins.
        shift: The bit of that byte at which it does.
        lead: Decoded bytes at first that need not be right.

    Raises:
        SpanBroken: when the data does not decode.
    """
    places = find_references(data, shift, len(window), lead) if window else set()
    if not places:
        return SparseWindow(b"", 0)
    sparse = bytearray(len(window))
    for place in places:
        sparse[place] = window[place]
    return SparseWindow(bytes(sparse), len(places))


class _Context(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_context = _Context()


def pack_window(sparse: bytes) -> bytes:
    """What is stored of a sparse window; empty for none."""
    if not sparse:
        return b""
    # A copy: what `compress` returns keeps 32 KiB of memory, and a layer of 100 GB has 200 000 windows.
    return bytes(memoryview(_context.compressor.compress(sparse)))


def unpack(packed: bytes) -> bytes:
    """The window to decode with, from what was stored of it.

    Raises:
        ValueError: when it is not what `pack_window` made.
    """
    if not packed:
        return b""
    try:
        return _context.decompressor.decompress(packed, max_output_size=WINDOW_SIZE)
    except zstandard.ZstdError as error:
        raise ValueError(f"a window that does not decompress: {error}") from error


def find_references(data: memoryview, shift: int, size: int, lead: int = 0) -> set[int]:
    """Places of a window of `size` bytes that the span refers to, or that what it refers to in the lead comes from.

    Raises:
        SpanBroken: when the data does not decode.
    """
    table = _number_places()
    first, second = (
        peek_span(data, shift, dictionary[:size], lead + WINDOW_SIZE)[lead:]
        for dictionary in (table.first, table.second)
    )
    length = len(first)
    if len(second) != length:
        raise SpanBroken("two decodings of one span differ in length")
    numbers = int.from_bytes(first, "little")
    difference = (numbers ^ int.from_bytes(second, "little")).to_bytes(length, "little")
    mask = int.from_bytes(difference.translate(_ALL_BITS), "little")
    picked = (numbers & mask).to_bytes(length, "little").translate(None, b"\0")
    pairs = bytearray(2 * len(picked))
    pairs[0::2], pairs[1::2] = picked, difference.translate(None, b"\0")
    return {table.places[pair] for pair in set(memoryview(pairs).cast("H"))}
