"""Compresses a layer in pieces that stand alone, on several threads; the bytes do not depend on how many there are.

Used by pack. A reader enters what comes out at each piece: gzip is one ordinary member whose pieces end with a full
flush, zstd a frame a piece. So the indexer finds a checkpoint for each, of gzip without a window. A gzip piece is a
byte longer than `SPACING`, because the block that ends exactly where a checkpoint is due is not seen; a zstd frame has
`SPACING` bytes.

MB of bf16 weights per CPU-second, and what is left of them and of Python source, on one machine; in pieces of 16 MiB it
is as much of weights, of source 0.3 % less, by zstd 3.5 %:

==============  =============  =====  =======  =======
what            by             speed  weights  source
==============  =============  =====  =======  =======
gzip            isal level 2   323    0.7794   0.2728
gzip-fastest    isal level 1   389    0.7799   0.2765
zstd            zstd level 3   816    0.7798   0.2361
==============  =============  =====  =======  =======

isal's level 0 and zlib-ng's level 1 are not used: they make bf16 weights larger.
"""

from __future__ import annotations

import functools
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from enum import StrEnum
from typing import TypeVar

import zstandard
from isal import isal_zlib

from kitfs.layer.block_inflater import SPACING
from kitfs.oci.mediatype import Compression

PIECE_SIZE = SPACING + 1
"""Bytes of a gzip piece."""

_LEVELS = {"gzip": 2, "gzip-fastest": 1}
_ZSTD_LEVEL = 3
_RAW_WINDOW_BITS = -15
_LAST_BLOCK = b"\x03\x00"  # without content, and the last one
_UNKNOWN_SYSTEM = 255  # what Go writes

T = TypeVar("T")


class PackCompression(StrEnum):
    """How layers are compressed; the values are kit's words."""

    NONE = "none"
    GZIP = "gzip"
    GZIP_FASTEST = "gzip-fastest"
    ZSTD = "zstd"

    @property
    def compression(self) -> Compression:
        """What the media type says of it."""
        return Compression.GZIP if self is PackCompression.GZIP_FASTEST else Compression(self.value)


def compress(pieces: Iterator[bytes], how: PackCompression, pool: Executor, ahead: int) -> Iterator[bytes]:
    """Compress a stream.

    Args:
        pieces: Its bytes, in pieces of any size.
        how: Nothing is done for ``NONE``.
        pool: Where it is done.
        ahead: How many pieces are under way at most.

    Returns:
        What is to be published, in order; each piece is made when it is asked for, or a little before.
    """
    if how is PackCompression.NONE:
        return pieces
    if how is PackCompression.ZSTD:
        return _run_ahead(_zstd_frame, _cut(pieces, SPACING), pool, ahead)
    return _gzip(pieces, how, pool, ahead)


def _gzip(pieces: Iterator[bytes], how: PackCompression, pool: Executor, ahead: int) -> Iterator[bytes]:
    """One gzip member (RFC 1952) without name and time."""
    yield struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, 0, 0, 4 if how is PackCompression.GZIP_FASTEST else 0, _UNKNOWN_SYSTEM)
    crc = size = 0
    deflate = functools.partial(_deflate, _LEVELS[how.value])
    for data, piece_crc, piece_size in _run_ahead(deflate, _cut(pieces, PIECE_SIZE), pool, ahead):
        yield data
        crc = isal_zlib.crc32_combine(crc, piece_crc, piece_size)
        size += piece_size
    yield _LAST_BLOCK + struct.pack("<II", crc, size & 0xFFFFFFFF)


def _deflate(level: int, piece: bytes) -> tuple[bytes, int, int]:
    """A piece that refers to nothing before it and ends at a whole byte; its CRC and size."""
    if not piece:
        return b"", 0, 0
    deflater = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _RAW_WINDOW_BITS)
    data = deflater.compress(piece) + deflater.flush(isal_zlib.Z_FULL_FLUSH)
    return data, isal_zlib.crc32(piece), len(piece)


def _zstd_frame(piece: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True, write_content_size=True)
    return compressor.compress(piece)


def _cut(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of one size; the last may be shorter, and is the only one of an empty stream."""
    held: list[bytes] = []
    held_size = 0
    is_empty = True
    for piece in pieces:
        at = 0
        while held_size + len(piece) - at >= size:
            part = piece[at : at + size - held_size]
            yield b"".join([*held, part]) if held else part
            at += len(part)
            held, held_size, is_empty = [], 0, False
        if at < len(piece):
            held.append(piece[at:])
            held_size += len(piece) - at
    if held or is_empty:
        yield b"".join(held)


def _run_ahead(action: Callable[[bytes], T], items: Iterator[bytes], pool: Executor, ahead: int) -> Iterator[T]:
    """The results of an action in the order of the items, of which some are under way."""
    futures: deque[Future[T]] = deque()
    try:
        for item in items:
            futures.append(pool.submit(action, item))
            if len(futures) >= ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
