"""Strict decoding of Zstandard (RFC 8878): frames and blocks are walked here, their content is libzstd's.

Walking tells where a frame ends, and bounds the output of one call: a compressed block holds 128 KiB at most, whatever
its few bytes expand to. Accepted: several frames, skippable frames. Refused: an empty or cut stream, anything else
between frames, dictionaries, reserved bits, a window above the limit, bombs. Used through `decoders.open_decoder`, and
by the indexer, which is told of frames at which decoding can begin: about every `spacing` decoded bytes the first frame
that starts at the byte where one is due, or after it. Which ones follows from the stream alone.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from itertools import pairwise

import zstandard

from kitfs.layer.block_inflater import SPACING, Checkpoint
from kitfs.layer.decode import OUTPUT_SIZE, DecodeLimits, Meter
from kitfs.layer.errors import LayerMalformed

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50  # with any low four bits
_SKIPPABLE_HEADER_SIZE = 8
_BLOCK_HEADER_SIZE = 3
_BLOCK_SIZE_MAX = 128 << 10
_CHECKSUM_SIZE = 4
_RAW, _RLE, _COMPRESSED = 0, 1, 2


class _State(enum.Enum):
    HEADER = enum.auto()
    SKIPPABLE = enum.auto()
    BLOCK_HEADER = enum.auto()
    BLOCK = enum.auto()
    CHECKSUM = enum.auto()


class ZstdDecoder:
    """Decodes one zstd stream; see `decode.Decoder`.

    Attributes:
        frame_count: Frames so far that hold bytes.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        on_checkpoint: Callable[[Checkpoint], None] = lambda _: None,
        spacing: int = SPACING,
    ) -> None:
        """Begin a stream.

        Args:
            limits: What it may cost.
            on_checkpoint: Told of each checkpoint, before the first byte behind it comes out.
            spacing: Decoded bytes from one to where the next is due.
        """
        self._limits = limits
        self._meter = Meter(limits)
        self._context = zstandard.ZstdDecompressor(max_window_size=limits.window_size)
        self._frame = self._context.decompressobj()
        self._state = _State.HEADER
        self._buffer = bytearray()  # a frame or block header in part
        self._left = 0  # bytes ahead of the block, checksum or skippable frame
        self._is_last_block = False
        self._has_checksum = False
        self._borders: list[int] = []  # between the blocks that are decoded together
        self._on_checkpoint = on_checkpoint
        self._spacing = spacing
        self._due = 0
        self._candidate: Checkpoint | None = None  # told of when a byte follows it
        self._is_frame_empty = True
        self.frame_count = 0

    @property
    def stream_stop(self) -> int:
        """Byte of the published stream behind all frames so far; there is nothing else in it."""
        return self._meter.read_size

    def feed(self, data: memoryview) -> Iterator[bytes]:
        """Decode the next published bytes; the iterator must be run to its end.

        Raises:
            LayerMalformed: while iterating.
        """
        at = 0
        while at < len(data):
            start = self._meter.read_size
            if self._state is _State.HEADER:
                self._take_header(data[at:])
            elif self._state is _State.SKIPPABLE:
                self._take_skippable(data[at:])
            else:
                size = self._walk_blocks(data[at:])
                yield from self._decode(data[at : at + size])
            at += self._meter.read_size - start

    def close(self) -> None:
        """Say that there are no more bytes.

        Raises:
            LayerMalformed: when the stream is empty or cut short.
        """
        if self._meter.read_size == 0:
            raise self._meter.refuse("empty: not a zstd stream")
        if self._state is not _State.HEADER or self._buffer:
            raise self._meter.refuse("zstd stream is cut short")

    def _take_header(self, data: memoryview) -> None:
        """Collect a frame header byte by byte; it has 18 bytes at most."""
        for byte in data:
            self._buffer.append(byte)
            self._meter.read_size += 1
            size = self._header_size()
            if size == len(self._buffer):
                self._start_frame(bytes(self._buffer))
                self._buffer.clear()
                return

    def _header_size(self) -> int:
        """Bytes of the header that is being collected, as far as the ones at hand tell."""
        head = self._buffer
        if len(head) < 4:
            return 5
        magic = int.from_bytes(head[:4], "little")
        if magic & 0xFFFFFFF0 == _SKIPPABLE:
            return _SKIPPABLE_HEADER_SIZE
        if magic != _MAGIC:
            raise self._meter.refuse("garbage after a zstd frame" if self._meter.parts else "not a zstd stream")
        if len(head) < 5:
            return 5
        window_size, dictionary_size, content_size = _field_sizes(head[4])
        return 5 + window_size + dictionary_size + content_size

    def _start_frame(self, header: bytes) -> None:
        self._meter.add_part()
        if len(header) == _SKIPPABLE_HEADER_SIZE and header[0] & 0xF0 == _SKIPPABLE & 0xF0:
            self._left = int.from_bytes(header[4:], "little")
            self._state = _State.SKIPPABLE if self._left else _State.HEADER
            return
        descriptor = header[4]
        window_end = 5 + _field_sizes(descriptor)[0]
        dictionary_end = window_end + _field_sizes(descriptor)[1]
        content = int.from_bytes(header[dictionary_end:], "little")
        window = content if window_end == 5 else _window_size(header[5])
        if descriptor & 0x08 or any(header[window_end:dictionary_end]):
            raise self._meter.refuse("zstd frame with a reserved bit or a dictionary")
        if window > self._limits.window_size:
            raise self._meter.refuse(f"zstd frame with a window of {window} bytes (limit {self._limits.window_size})")
        self._has_checksum = bool(descriptor & 0x04)
        self._frame = self._context.decompressobj()
        self._run(header)
        self._is_frame_empty = True
        if self._meter.decoded_size >= self._due and self._candidate is None:
            self._candidate = Checkpoint(8 * (self._meter.read_size - len(header)), self._meter.decoded_size, 0)
        self._state = _State.BLOCK_HEADER

    def _take_skippable(self, data: memoryview) -> None:
        used = min(self._left, len(data))
        self._meter.read_size += used
        self._left -= used
        if self._left == 0:
            self._state = _State.HEADER

    def _walk_blocks(self, data: memoryview) -> int:
        """How much of the data to decode at once: to the end of the frame, at most `OUTPUT_SIZE` of output."""
        at = 0
        self._borders.clear()
        output_size = _BLOCK_SIZE_MAX  # a block that an earlier call began
        while at < len(data) and self._state is not _State.HEADER and output_size <= OUTPUT_SIZE - _BLOCK_SIZE_MAX:
            if self._state is _State.BLOCK_HEADER:
                used = min(_BLOCK_HEADER_SIZE - len(self._buffer), len(data) - at)
                self._buffer += data[at : at + used]
                if len(self._buffer) == _BLOCK_HEADER_SIZE:
                    output_size += self._start_block(int.from_bytes(self._buffer, "little"))
                    self._buffer.clear()
            else:
                used = min(self._left, len(data) - at)
                self._left -= used
            at += used
            if self._left == 0 and not self._buffer:
                self._end_part()
                self._borders.append(at)
        self._meter.read_size += at
        return at

    def _start_block(self, header: int) -> int:
        """Take a block header; the block's output at most."""
        self._meter.add_part()
        self._is_last_block = bool(header & 1)
        kind, size = header >> 1 & 3, header >> 3
        if kind > _COMPRESSED or size > _BLOCK_SIZE_MAX:
            raise self._meter.refuse(f"zstd block of kind {kind} with {size} bytes")
        self._left = 1 if kind == _RLE else size
        self._state = _State.BLOCK
        return _BLOCK_SIZE_MAX if kind == _COMPRESSED else size

    def _end_part(self) -> None:
        """A block or a checksum is whole: what comes next."""
        if self._state is _State.BLOCK and not self._is_last_block:
            self._state = _State.BLOCK_HEADER
        elif self._state is _State.BLOCK and self._has_checksum:
            self._left = _CHECKSUM_SIZE
            self._state = _State.CHECKSUM
        else:
            self._state = _State.HEADER

    def _decode(self, data: memoryview) -> Iterator[bytes]:
        """Decode block by block: what lies before a broken one is good, and comes out."""
        parts: list[bytes] = []
        broken: LayerMalformed | None = None
        for start, stop in pairwise(sorted({0, *self._borders, len(data)})):
            try:
                parts.append(self._run(data[start:stop]))
            except LayerMalformed as error:
                broken = error
                break
        piece = b"".join(parts)
        if broken is None and self._state is _State.HEADER and not self._frame.eof:
            raise self._meter.refuse("zstd frame that does not end with its last block")
        if piece:
            self._note_content()
            self._meter.add_decoded(len(piece))
            yield piece
        if broken is not None:
            raise broken

    def _note_content(self) -> None:
        self.frame_count += self._is_frame_empty
        self._is_frame_empty = False
        if self._candidate is not None:
            self._due = self._candidate.offset + self._spacing
            self._on_checkpoint(self._candidate)
            self._candidate = None

    def _run(self, data: bytes | memoryview) -> bytes:
        try:
            return self._frame.decompress(data)
        except zstandard.ZstdError as error:
            raise self._meter.refuse(f"broken zstd data: {error}") from error


def _field_sizes(descriptor: int) -> tuple[int, int, int]:
    """Bytes of window descriptor, dictionary id and content size that a frame header descriptor announces."""
    is_single_segment = descriptor >> 5 & 1
    content_size = (is_single_segment, 2, 4, 8)[descriptor >> 6]
    return 1 - is_single_segment, (0, 1, 2, 4)[descriptor & 3], content_size


def _window_size(descriptor: int) -> int:
    base = 1 << 10 + (descriptor >> 3)
    return base + (base >> 3) * (descriptor & 7)
