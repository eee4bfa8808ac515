"""Strict decoding of gzip (RFC 1952): headers, lengths and checksums are looked at here, deflate is isal's.

Accepted: any number of members, zero bytes after the last one (tape padding). Refused: an empty or cut stream,
anything else after a member, reserved flags, a header above its limit, a wrong CRC or ISIZE, bombs. Used through
`decoders.open_decoder`. isal against zlib-ng and zlib, raw deflate in pieces of 128 KiB, MB of output per CPU-second on
one machine: bf16 weights 334, 274, 225; JSON lines 600, 300, 240. All give the same bytes; isal has no strictness
knob, so the CRC is what finds a damaged stream.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from isal import igzip_lib, isal_zlib

from kitfs.layer.decode import OUTPUT_SIZE, DecodeLimits, Meter
from kitfs.layer.errors import LayerMalformed

# isal's stubs declare the exception as a value, not as a class.
_DeflateError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
_MAGIC = b"\x1f\x8b"
_FIXED_SIZE = 10
_TRAILER_SIZE = 8
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 0x02, 0x04, 0x08, 0x10
_RESERVED = 0xE0
_SLICE_SIZE_MIN = 4 << 10
_SLICE_SIZE_MAX = 128 << 10


class _State(enum.Enum):
    HEADER = enum.auto()
    BODY = enum.auto()
    TRAILER = enum.auto()
    PADDING = enum.auto()


class GzipDecoder:
    """Decodes one gzip stream; see `decode.Decoder`."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._meter = Meter(limits)
        self._state = _State.HEADER
        self._buffer = bytearray()  # a header or trailer in part
        self._inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
        self._slice_size = _SLICE_SIZE_MIN
        self._crc = 0
        self._member_size = 0

    def feed(self, data: memoryview) -> Iterator[bytes]:
        """Decode the next published bytes; the iterator must be run to its end.

        Raises:
            LayerMalformed: while iterating.
        """
        at = 0
        while at < len(data):
            start = self._meter.read_size
            if self._state is _State.BODY:
                yield from self._inflate(data[at : at + self._slice_size])
            elif self._state is _State.HEADER:
                self._take_header(data[at:])
            elif self._state is _State.TRAILER:
                self._take_trailer(data[at:])
            else:
                self._take_padding(data[at:])
            at += self._meter.read_size - start

    def close(self) -> None:
        """Say that there are no more bytes.

        Raises:
            LayerMalformed: when the stream is empty or cut short.
        """
        if self._meter.parts == 0 and not self._buffer:
            raise self._meter.refuse("empty: not a gzip stream")
        if self._state is not _State.PADDING and not (self._state is _State.HEADER and not self._buffer):
            raise self._meter.refuse("gzip stream is cut short")

    def _take_header(self, data: memoryview) -> None:
        if self._meter.parts and not self._buffer and data[0] == 0:
            self._state = _State.PADDING
            return
        before = len(self._buffer)
        self._buffer += data[: self._limits.header_size + 1 - before]
        size = self._find_header_end()
        if size is None:
            self._meter.read_size += len(self._buffer) - before
            if len(self._buffer) > self._limits.header_size:
                raise self._meter.refuse(f"gzip header above {self._limits.header_size} bytes")
            return
        self._buffer.clear()
        self._meter.add_part()
        self._meter.read_size += size - before
        self._inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
        self._slice_size = _SLICE_SIZE_MIN
        self._crc = self._member_size = 0
        self._state = _State.BODY

    def _find_header_end(self) -> int | None:
        """Bytes of the header in the buffer, or None when more are needed."""
        head = self._buffer
        if not _MAGIC.startswith(head[:2]):
            what = "garbage after the end of the gzip stream" if self._meter.parts else "not a gzip stream"
            raise self._meter.refuse(what)
        if len(head) < _FIXED_SIZE:
            return None
        flags = head[3]
        if head[2] != 8 or flags & _RESERVED:
            raise self._meter.refuse(f"gzip header with method {head[2]} and flags 0x{flags:02x}")
        end = _FIXED_SIZE
        if flags & _FEXTRA:
            end += 2 + int.from_bytes(head[end : end + 2], "little")
        for flag in (_FNAME, _FCOMMENT):
            if flags & flag:
                end = head.find(0, end) + 1 if end < len(head) else 0
                if end == 0:
                    return None
        if flags & _FHCRC:
            end += 2
            if end > len(head):
                return None
            if int.from_bytes(head[end - 2 : end], "little") != isal_zlib.crc32(head[: end - 2]) & 0xFFFF:
                raise self._meter.refuse("gzip header with a wrong checksum")
        return end if end <= len(head) else None

    def _inflate(self, data: memoryview) -> Iterator[bytes]:
        inflater = self._inflater
        self._meter.read_size += len(data)
        while True:
            try:
                piece = inflater.decompress(data, OUTPUT_SIZE)
            except _DeflateError as error:
                raise self._meter.refuse(f"broken deflate data: {error}") from error
            if piece:
                self._crc = isal_zlib.crc32(piece, self._crc)
                self._member_size += len(piece)
                self._meter.add_decoded(len(piece))
                yield piece
            if inflater.eof:
                self._meter.read_size -= len(inflater.unused_data)
                self._state = _State.TRAILER
                return
            if inflater.needs_input:
                # A member that ends in a slice has its rest copied: short slices keep that below its own size.
                self._slice_size = min(2 * self._slice_size, _SLICE_SIZE_MAX)
                return
            data = memoryview(b"")

    def _take_trailer(self, data: memoryview) -> None:
        used = min(_TRAILER_SIZE - len(self._buffer), len(data))
        self._buffer += data[:used]
        self._meter.read_size += used
        if len(self._buffer) < _TRAILER_SIZE:
            return
        crc = int.from_bytes(self._buffer[:4], "little")
        size = int.from_bytes(self._buffer[4:], "little")
        self._buffer.clear()
        if crc != self._crc or size != self._member_size & 0xFFFFFFFF:
            raise self._meter.refuse("gzip member whose CRC or length is not that of its content")
        self._state = _State.HEADER

    def _take_padding(self, data: memoryview) -> None:
        zeros = bytes(data)
        if zeros.count(0) != len(zeros):
            self._meter.read_size += len(zeros) - len(zeros.lstrip(b"\0"))
            raise LayerMalformed(None, self._meter.read_size, "garbage after the end of the gzip stream")
        self._meter.read_size += len(zeros)
