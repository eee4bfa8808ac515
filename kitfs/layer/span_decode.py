"""Decoding of one span of a gzip stream, from a checkpoint, with nothing kept between spans.

A checkpoint is at any bit, and isal starts at bytes. So empty deflate blocks go in front, as many bits of them as bring
the byte in which the span begins into line; that byte's own bits are OR-ed into their last byte. A fixed block has 10
bits, which gives the even numbers modulo 8; a dynamic block of 91 gives the odd ones; 16 bytes at most. Pure, any
thread; the interpreter lock is released while isal works. What comes out is compared with its checksum by the caller.
"""

from __future__ import annotations

from isal import igzip_lib

from kitfs.layer.gzip_header import TRAILER_SIZE, HeaderRefused, find_header_end, has_magic

DeflateError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]  # the stubs say it is a value
"""Deflate data that isal does not decode."""

_NO_WINDOW = bytes(32 << 10)
_SLICE_SIZE = 32 << 10  # what follows a member in a slice is copied at its end


class SpanBroken(ValueError):
    """Published bytes that do not decode to a span; the text says why."""


class _Bits:
    """Bits in the order in which deflate fills bytes: lowest first (RFC 1951, section 3.1.1)."""

    def __init__(self) -> None:
        self.value = 0
        self.count = 0

    def add(self, value: int, count: int) -> None:
        """Append `count` bits of a number, lowest first; Huffman codes are given reversed."""
        self.value |= value << self.count
        self.count += count

    def add_fixed_block(self) -> None:
        """An empty block of fixed codes: not final, type 1, end of block (7 zero bits)."""
        self.add(0b010, 3)
        self.add(0, 7)

    def add_dynamic_block(self) -> None:
        """An empty block of its own codes (section 3.2.7), 91 bits.

        Literal 0 and the end of block have codes of one bit, and so has one distance; of the code lengths, 18 (a run
        of zeros) has the code 1 and 1 has the code 0.
        """
        self.add(0b100, 3)  # not final, type 2
        self.add(0, 5)  # 257 literal and length codes
        self.add(0, 5)  # 1 distance code
        self.add(14, 4)  # 18 code lengths, in the order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1
        for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1):
            self.add(1 if symbol in (18, 1) else 0, 3)
        self.add(0, 1)  # literal 0: one bit
        for run in (138, 117):  # literals 1 to 255: none
            self.add(1, 1)
            self.add(run - 11, 7)
        self.add(0, 2)  # end of block, and the distance: one bit each
        self.add(1, 1)  # the end of the block


def _aligner(shift: int) -> tuple[bytes, int]:
    """Whole bytes, and the bits of one more byte, of empty blocks that end at bit `shift` of it."""
    bits = _Bits()
    if shift % 2:
        bits.add_dynamic_block()
    while bits.count % 8 != shift:
        bits.add_fixed_block()
    whole = bits.count // 8
    return (bits.value & ((1 << 8 * whole) - 1)).to_bytes(whole, "little"), bits.value >> 8 * whole


_ALIGNERS = [_aligner(shift) for shift in range(8)]


def open_span(data: memoryview, shift: int, window: bytes) -> igzip_lib.IgzipDecompressor:
    """A decompressor that has the aligner and the first byte of the data, and wants the second next.

    Args:
        data: Published bytes, from the one in which the span begins.
        shift: The bit of that byte at which it does.
        window: What it may refer to.

    Raises:
        SpanBroken: when there is no data.
    """
    if not len(data):
        raise SpanBroken("no published bytes")
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE, zdict=window)
    head, rest = _ALIGNERS[shift]
    inflater.decompress(head + bytes((data[0] >> shift << shift | rest,)), 0)
    return inflater


def peek_span(data: memoryview, shift: int, window: bytes, size: int) -> bytes:
    """The first `size` decoded bytes, fewer when the member ends before; arguments as of `open_span`.

    Raises:
        SpanBroken: when the data does not decode.
    """
    try:
        inflater = open_span(data, shift, window)
        return bytes(inflater.decompress(data[1:], size))
    except DeflateError as error:
        raise SpanBroken(str(error)) from error


def decode_span(data: memoryview, shift: int, window: bytes, size: int) -> bytes:
    """The `size` decoded bytes of a span, which may go on in the members that follow.

    Args:
        data: Published bytes, from the one in which the span begins to the one in which it ends.
        shift: The bit of the first at which it begins.
        window: What it may refer to.
        size: Decoded bytes.

    Raises:
        SpanBroken: when the data does not decode to so many bytes.
    """
    try:
        return _decode(data, shift, window, size)
    except DeflateError as error:
        raise SpanBroken(str(error)) from error


def decode_span_behind(data: memoryview, shift: int, window: bytes, size: int, lead: tuple[int, int]) -> bytes:
    """The `size` decoded bytes of a span that begins a little behind the place where decoding does.

    Args:
        data: Published bytes, from the one in which decoding begins to the one in which the span ends.
        shift: The bit of the first at which it begins.
        window: What the span refers to; what the lead alone refers to is of no account, but has to be somewhere.
        size: Decoded bytes of the span.
        lead: Decoded bytes and published bits before the span.

    Raises:
        SpanBroken: when the data does not decode to so many bytes.
    """
    lead_size, lead_bits = lead
    stop = (shift + lead_bits) // 8
    try:
        inflater = open_span(data, shift, window or _NO_WINDOW)
        # What is given whole is not copied: the bytes before the one in which the span begins, then the others.
        left = lead_size - len(inflater.decompress(data[1:stop], lead_size + 1))
        if left < 0:
            raise SpanBroken("more bytes than expected before the span")
        decoded = _decode_on(inflater, data, max(stop, 1), left + size)
    except DeflateError as error:
        raise SpanBroken(str(error)) from error
    return decoded[left:] if left else decoded


def _decode(data: memoryview, shift: int, window: bytes, size: int) -> bytes:
    return _decode_on(open_span(data, shift, window), data, 1, size)


def _decode_on(inflater: igzip_lib.IgzipDecompressor, data: memoryview, start: int, size: int) -> bytes:
    """The next `size` bytes, which may go on in the members that follow; the byte at `start` is wanted next."""
    first = inflater.decompress(data[start:], size)
    if len(first) == size:
        return first
    parts = [first]
    left = size - len(first)
    at = len(data) - len(inflater.unused_data)
    while left:
        if not inflater.eof:
            raise SpanBroken(f"ends {left} bytes early")
        inflater, at = _next_member(data, at + TRAILER_SIZE)
        while left and at < len(data) and not inflater.eof:
            part = inflater.decompress(data[at : at + _SLICE_SIZE], left)
            at = min(at + _SLICE_SIZE, len(data)) - len(inflater.unused_data)
            parts.append(part)
            left -= len(part)
            while left and part and not inflater.needs_input and not inflater.eof:
                part = inflater.decompress(b"", left)
                parts.append(part)
                left -= len(part)
    return b"".join(parts)


def _next_member(data: memoryview, at: int) -> tuple[igzip_lib.IgzipDecompressor, int]:
    """A decompressor for the member whose header is at a byte of the data, and where its deflate data begins."""
    head = bytes(data[at : at + _SLICE_SIZE])
    try:
        size = find_header_end(head) if head and has_magic(head) else None
    except HeaderRefused as error:
        raise SpanBroken(str(error)) from error
    if size is None:
        raise SpanBroken("no gzip header where a member should follow")
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE), at + size
