"""Which decoder reads which compression; the indexer and the materialiser start here."""

from __future__ import annotations

from collections.abc import Iterator

from kitfs.layer.decode import DecodeLimits, Decoder
from kitfs.layer.gzip_stream import GzipDecoder
from kitfs.layer.zstd_stream import ZstdDecoder
from kitfs.oci.mediatype import Compression


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
