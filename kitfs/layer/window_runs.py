"""Windows of an image index: what is not zero in them, as runs, with no compressor in between.

`image_index` uses it. The window of a span is up to 32 KiB of decoded bytes, those that nothing refers to set to zero
(`sparse_window`). Numbers are little-endian::

    size u16      bytes of the window, at most 32768; 0 for none
    count u16     runs
    offset u16    for each run, from the window's first byte
    length u16    for each run
    bytes         of all runs, one behind another

A run begins and ends with a byte that is not zero, and has no five zeros one behind another; between two runs are five
or more. So a window has one encoding, and none with fewer bytes. Pure.
"""

from __future__ import annotations

import re
import struct
from itertools import accumulate

from kitfs.layer.block_inflater import WINDOW_SIZE
from kitfs.layer.columns import Cursor, ImageIndexMalformed, encode_column

_HEADER = struct.Struct("<HH")
_RUN = re.compile(rb"[^\0]+(?:\0{1,4}[^\0]+)*")
_GAP = bytes(5)
_LONG_GAP = bytes(64)  # splitting at these first is five times faster than the pattern is with zeros


def encode_window(window: bytes) -> bytes:
    """A window as runs; empty for none."""
    found = []
    start = 0
    for part in window.split(_LONG_GAP):
        if part:
            found += [(start + match.start(), match.group()) for match in _RUN.finditer(part)]
        start += len(part) + len(_LONG_GAP)
    return b"".join(
        (
            _HEADER.pack(len(window), len(found)),
            encode_column("H", [offset for offset, _ in found]),
            encode_column("H", [len(run) for _, run in found]),
            *(run for _, run in found),
        )
    )


def parse_window(cursor: Cursor) -> bytes:
    """The next window.

    Raises:
        ImageIndexMalformed: when it is cut short, too large, or encoded in another way than `encode_window` does.
    """
    start = cursor.offset
    size, count = _HEADER.unpack(cursor.take(_HEADER.size, "a window"))
    if size > WINDOW_SIZE:
        raise ImageIndexMalformed(start, f"a window of {size} bytes, at most {WINDOW_SIZE}")
    offsets = cursor.take_column("H", count, "offsets of runs")
    lengths = cursor.take_column("H", count, "lengths of runs")
    joined = cursor.take(sum(lengths), "bytes of runs")
    window = bytearray(size)
    stop = -len(_GAP)
    for offset, length, end in zip(offsets, lengths, accumulate(lengths), strict=True):
        run = joined[end - length : end]
        if offset < stop + len(_GAP) or not run or not run[0] or not run[-1] or _GAP in run:
            raise ImageIndexMalformed(start, f"a run of {length} bytes at byte {offset} of a window is no run")
        stop = offset + length
        if stop > size:
            raise ImageIndexMalformed(start, f"a run ends at byte {stop} of a window of {size}")
        window[offset:stop] = run
    return bytes(window)
