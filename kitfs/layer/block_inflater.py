"""Decodes deflate data and says where it can be entered again: a checkpoint about every `spacing` decoded bytes.

The indexer's gzip decoder runs on it (`gzip_stream.Body`). A checkpoint is the start of a gzip member, or the end of a
deflate block, which is at any bit. Which ones are chosen follows from the stream alone, not from the pieces in which it
comes: up to the byte where one is due zlib runs without looking at blocks, and may have passed one that ends exactly
there; so the first block that ends *after* that byte is taken, or the first member that starts at it or after.
Likewise the *lead* of a checkpoint, where decoding may begin a little earlier instead: the first block that ends after
the byte `LEAD_SIZE` before the due one, or the first member that starts there or later, in the checkpoint's own member;
of a small spacing the second byte of the span.
One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kitfs.layer.checkpoints import LEAD_SIZE_MAX
from kitfs.layer.decode import OUTPUT_SIZE
from kitfs.layer.gzip_stream import BodyBroken
from kitfs.layer.inflate import (
    BUFFER_ERROR,
    INPUT_SIZE,
    NO_FLUSH,
    OK,
    STOP_AT_BLOCK,
    STREAM_END,
    InflateLibrary,
    Inflater,
    OutputBuffer,
)

SPACING = 512 << 10
"""Decoded bytes after which a checkpoint is due: a random read of 4 KiB takes 3.3 ms at 0.6 MB a span, 5.6 at 1.2."""

WINDOW_SIZE = 32 << 10
"""How far back a match may reach (RFC 1951, section 2)."""

LEAD_SIZE = 44 << 10
"""Decoded bytes from a lead to its checkpoint on average: gzip -6 makes blocks of 42 KB of weights, so there is one."""

_STUCK_MAX = 3

_STOPS_MAX = 64
"""Stops at one byte, of 2 µs each: a hostile stream has millions of blocks without content, and 5 bytes each."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place where decoding can begin.

    Attributes:
        bit: Of the published stream: where the block's header is, counted from the lowest bit of the first byte.
        offset: Of the decoded stream.
        window_size: Decoded bytes before `offset` that what follows may refer to; 0 at the start of a member.
        lead: An earlier place from which it can be reached, in the same member.
    """

    bit: int
    offset: int
    window_size: int
    lead: Checkpoint | None = None


class BlockInflater:
    """The deflate data of one gzip stream's members; see `gzip_stream.Body`.

    Attributes:
        slice_size_max: Published bytes to be given at once.
        is_ended: Whether the member's data is at its end.
        unused_size: Bytes of the last input behind that end.
    """

    slice_size_max = INPUT_SIZE

    def __init__(
        self, library: InflateLibrary, on_checkpoint: Callable[[Checkpoint], None], spacing: int = SPACING
    ) -> None:
        """Begin a stream.

        Args:
            library: What decodes.
            on_checkpoint: Told of each checkpoint, before the first byte behind it comes out.
            spacing: Decoded bytes from one to where the next is due.

        Raises:
            InflateUnusable: when the library refuses.
        """
        self._inflater = Inflater(library)
        self._on_checkpoint = on_checkpoint
        self._spacing = spacing
        self._buffer = OutputBuffer(OUTPUT_SIZE)
        self._offset = 0  # decoded bytes
        self._due = 0
        self._lead_due = 0
        self._stops = 0  # at blocks that end at this byte and are not wanted
        self._lead: Checkpoint | None = None
        self._candidate: Checkpoint | None = None  # told of when a byte follows it
        self._member_start = 0
        self._body_start = 0
        self._consumed = 0  # published bytes of the body
        self.is_ended = False
        self.unused_size = 0

    def begin(self, offset: int) -> None:
        """Say that a member's deflate data begins at a byte of the published stream."""
        self._inflater.reset()
        self.is_ended = False
        self._body_start = offset
        self._consumed = 0
        self._member_start = self._offset
        self._lead = None
        if self._candidate is not None:
            return
        start = Checkpoint(offset * 8, self._offset, 0)
        if self._offset >= self._due:
            self._candidate = start
        elif self._offset >= self._lead_due:
            self._lead = start

    def inflate(self, data: memoryview) -> Iterator[memoryview]:
        """Decode the next bytes; the iterator must be run to its end.

        Raises:
            BodyBroken: while iterating, when the data is not deflate's.
        """
        self._inflater.load(data)
        stuck = 0
        while True:
            due = self._lead_due if self._lead is None else self._due
            is_due = self._offset >= due
            if self._candidate is not None or self._stops > _STOPS_MAX:
                is_due, size = False, 1
            else:
                size = self._buffer.room if is_due else min(self._buffer.room, due - self._offset)
            code, consumed, produced = self._run(size, STOP_AT_BLOCK if is_due else NO_FLUSH)
            if is_due and self._is_boundary(code):
                if self._offset > self._due:
                    yield from self._take()
                    self._set_candidate()
                elif self._lead is None and self._offset > self._lead_due:
                    self._lead = self._boundary()
                else:
                    self._stops += 1
            if code == STREAM_END:
                self.is_ended = True
                self.unused_size = self._inflater.input_left
                break
            if self._inflater.input_left == 0 and produced < size and not self._inflater.is_after_last_block:
                break
            stuck = 0 if consumed or produced else stuck + 1
            if stuck > _STUCK_MAX:
                raise BodyBroken("inflate makes no progress")
            if self._buffer.room == 0:
                yield from self._take()
                self._buffer = OutputBuffer(OUTPUT_SIZE)
        yield from self._take()

    def _run(self, size: int, flush: int) -> tuple[int, int, int]:
        """One call: its return code, the bytes it consumed and produced."""
        left, before = self._inflater.input_left, self._buffer.stop
        code = self._inflater.run(self._buffer, size, flush)
        if code not in (OK, STREAM_END, BUFFER_ERROR):
            raise BodyBroken(self._inflater.message)
        consumed = left - self._inflater.input_left
        produced = self._buffer.stop - before
        self._consumed += consumed
        self._offset += produced
        if produced:
            self._stops = 0
        if produced and self._candidate is not None:
            self._due = self._candidate.offset + self._spacing
            self._lead_due = max(self._due - LEAD_SIZE, self._candidate.offset + 1)
            self._lead = None
            self._on_checkpoint(self._candidate)
            self._candidate = None
        return code, consumed, produced

    def _is_boundary(self, code: int) -> bool:
        return code == OK and self._candidate is None and self._inflater.block_bits is not None

    def _set_candidate(self) -> None:
        lead = self._lead
        if lead is not None and not 0 < self._offset - lead.offset <= LEAD_SIZE_MAX:
            lead = None
        self._candidate = self._boundary(lead)

    def _boundary(self, lead: Checkpoint | None = None) -> Checkpoint:
        bits = self._inflater.block_bits
        assert bits is not None
        bit = (self._body_start + self._consumed) * 8 - bits
        return Checkpoint(bit, self._offset, min(self._offset - self._member_start, WINDOW_SIZE), lead)

    def _take(self) -> Iterator[memoryview]:
        if self._buffer.pending:
            yield self._buffer.take()
