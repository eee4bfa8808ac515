"""Which decoder reads which compression, whole or span by span; the indexer and all readers start here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kitfs.layer.decode import DecodeLimits, Decoder
from kitfs.layer.gzip_stream import GzipDecoder
from kitfs.layer.span_decode import decode_span
from kitfs.layer.zstd_span import decode_frames
from kitfs.layer.zstd_stream import ZstdDecoder
from kitfs.oci.mediatype import Compression

SpanDecoder = Callable[[memoryview, int, bytes, int], bytes]
"""Published bytes, bit of the first, window, decoded size → the span; raises `SpanBroken`."""


class _PlainDecoder:
    """No compression: what comes in goes out."""

    def feed(self, data: memoryview) -> Iterator[memoryview]:
        yield data

    def close(self) -> None:
        return


def open_decoder(compression: Compression, limits: DecodeLimits | None = None) -> Decoder:
    """A decoder at the start of a stream.

    Args:
        compression: How the layer is compressed.
        limits: What it may cost, or None for the usual.
    """
    limits = limits or DecodeLimits()
    if compression is Compression.GZIP:
        return GzipDecoder(limits)
    if compression is Compression.ZSTD:
        return ZstdDecoder(limits)
    return _PlainDecoder()


def find_span_decoder(compression: Compression) -> SpanDecoder:
    """What decodes the spans of a compressed layer that has checkpoints.

    Args:
        compression: How the layer is compressed.
    """
    return decode_frames if compression is Compression.ZSTD else decode_span
