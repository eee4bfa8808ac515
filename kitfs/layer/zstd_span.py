"""Decoding of one span of a zstd stream: whole frames, with nothing kept between spans but a thread's context.

`decoders` chooses it for the readers of zstd layers, beside `span_decode` for gzip. A span begins with a frame and
holds all frames up to the next span's, skippable ones too. Any thread; the interpreter lock is released while libzstd
works. Never more output than is asked for, whatever the data expands to; a frame that says how long its content is
needs no more memory than that, another its window. What comes out is compared with its checksum by the caller.
"""

from __future__ import annotations

import threading

import zstandard

from kitfs.layer.decode import DecodeLimits
from kitfs.layer.span_decode import SpanBroken


class _Context(threading.local):
    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=DecodeLimits().window_size)


_context = _Context()


def decode_frames(data: memoryview, shift: int, window: bytes, size: int) -> bytes:
    """The `size` decoded bytes of a span; arguments as of `span_decode.decode_span`.

    Args:
        data: Published bytes, from the first of a frame to the last before the next span.
        shift: 0: frames begin at whole bytes.
        window: Empty: frames refer to nothing before them.
        size: Decoded bytes.

    Raises:
        SpanBroken: when the data does not decode to so many bytes.
    """
    if shift or window:
        raise SpanBroken("a zstd frame does not begin between bytes, nor with a window")
    try:
        with _context.decompressor.stream_reader(data, read_across_frames=True, closefd=False) as reader:
            decoded = reader.read(size)
    except zstandard.ZstdError as error:
        raise SpanBroken(str(error)) from error
    if len(decoded) != size:
        raise SpanBroken(f"ends {size - len(decoded)} bytes early")
    return decoded
