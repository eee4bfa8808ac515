"""Collects the checkpoints of one gzip or zstd layer while it is indexed: windows, span checksums, digests of ranges.

The indexer's hashing thread feeds it published and decoded bytes, each in order, the published ones first, and the
checkpoints of `block_inflater` and `zstd_stream` where they lie between decoded bytes. A layer of which a span would be
larger than `SPAN_SIZE_MAX` or `PUBLISHED_SIZE_MAX` gets none: its stream has no boundaries (igzip -0 writes one block,
zstd one frame), and is decoded once and whole. What is held is the published bytes of the span at hand and the last
decoded 160 KiB. One thread at a time.

Where a window is large although little is copied, decoding begins at the checkpoint's lead (`block_inflater`) instead:
of what a span copies from the 32 KiB before it the lead has made most, out of its own bytes. For weights by gzip -6,
where 1120 bytes of a window are referred to, that is 2.6 MB of index less to the GB for 8 % more to decode; for text,
which is made of copies, it gains little, and is tried ever more seldom.
"""

from __future__ import annotations

import hashlib
from collections import deque

from kitfs.digest import Checksummer
from kitfs.layer.block_inflater import WINDOW_SIZE, Checkpoint
from kitfs.layer.checkpoints import (
    LEAD_SIZE_MAX,
    PUBLISHED_SIZE_MAX,
    SPAN_SIZE_MAX,
    Entry,
    encode_checkpoints,
    published_range,
)
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.span_decode import SpanBroken
from kitfs.layer.sparse_window import SparseWindow, make_sparse, pack_window

_HELD_SIZE_MAX = 2 * PUBLISHED_SIZE_MAX + (4 << 20)
"""Published bytes that are held, of pieces of 1 MiB. With so many, the span at hand or the one that begins at a place
not told of yet, for want of a byte behind it, is too large: whether a layer has checkpoints does not hang on pieces."""

_TAIL_SIZE = LEAD_SIZE_MAX + WINDOW_SIZE
_WINDOW_LIGHT = 384
"""Bytes of a window that are referred to, with so few of which no lead is tried. They are counted and not compressed:
zstd's sizes differ from version to version, and which checkpoints a layer has is to follow from its bytes."""

_LEAD_GAIN = 2
"""How many times fewer bytes of the lead's window must be referred to."""

_PAUSE_MAX = 64
"""Spans for which no lead is tried after one that gained too little; the first time 1, then twice as many each time."""


class SpanBuilder:
    """What the store records of a layer's spans.

    Attributes:
        is_given_up: Whether the layer has a span that is too large.
    """

    def __init__(self) -> None:
        self._published: deque[tuple[int, memoryview]] = deque()  # with their offsets; what the span at hand needs
        self._published_size = 0  # offset of the next
        self._entries: list[Entry] = []
        self._checksums = bytearray()
        self._checkpoint: Checkpoint | None = None
        self._windows = b"", b""  # the checkpoint's and its lead's
        self._prefers_lead = False
        self._pause = self._pause_left = 0
        self._tail = bytearray()  # decoded
        self._checksum = Checksummer()
        self._offset = 0  # decoded
        self.is_given_up = False

    def take_published(self, data: memoryview) -> None:
        """Take the next published bytes; they stay as they are."""
        if self.is_given_up:
            return
        self._published.append((self._published_size, data))
        self._published_size += len(data)
        if self._published_size - self._published[0][0] > _HELD_SIZE_MAX:
            self._give_up()

    def begin_span(self, checkpoint: Checkpoint) -> None:
        """The next decoded byte is the first of a span.

        Raises:
            LayerMalformed: when the span before does not decode from its checkpoint.
        """
        if self.is_given_up:
            return
        self._end_span(checkpoint.bit)
        if self.is_given_up:
            return
        if self._checkpoint is not None:
            self._drop_published((checkpoint.lead or checkpoint).bit // 8)
        self._checkpoint = checkpoint
        self._windows = self._take_window(checkpoint), self._take_window(checkpoint.lead)
        self._checksum = Checksummer()

    def take(self, data: memoryview) -> None:
        """Take the next decoded bytes."""
        if self.is_given_up:
            return
        self._offset += len(data)
        self._checksum.update(data)
        self._tail += data[-_TAIL_SIZE:]
        if len(self._tail) > 4 * _TAIL_SIZE:
            del self._tail[:-_TAIL_SIZE]
        if self._checkpoint is not None and self._offset - self._checkpoint.offset > SPAN_SIZE_MAX:
            self._give_up()

    def finish(self, stop: int) -> tuple[bytes, list[bytes]]:
        """Span checksums and the values of `checkpoints`; both empty when there are none.

        Args:
            stop: Byte of the published layer behind its last member.

        Raises:
            LayerMalformed: when the last span does not decode from its checkpoint.
        """
        if self.is_given_up:
            return b"", []
        self._end_span(8 * stop)
        if self.is_given_up:
            return b"", []
        return bytes(self._checksums), encode_checkpoints(self._entries, stop)

    def _end_span(self, next_bit: int) -> None:
        checkpoint = self._checkpoint
        if checkpoint is None:
            return
        stop = published_range(checkpoint.bit, next_bit)[1]
        if stop - (checkpoint.bit // 8 if self._entries else 0) > PUBLISHED_SIZE_MAX:
            self._give_up()
            return
        chosen, window = self._choose(checkpoint, stop)
        data = self._take_range(chosen.bit // 8 if self._entries else 0, stop)
        lead, lead_bits = checkpoint.offset - chosen.offset, checkpoint.bit - chosen.bit
        digest = hashlib.sha256(data).digest()
        packed = pack_window(window.data)
        self._entries.append(Entry(checkpoint.bit, checkpoint.offset, packed, digest, lead, lead_bits))
        self._checksums += self._checksum.digest()

    def _drop_published(self, start: int) -> None:
        while self._published and self._published[0][0] + len(self._published[0][1]) <= start:
            self._published.popleft()

    def _take_window(self, checkpoint: Checkpoint | None) -> bytes:
        """The decoded bytes before a place that is at hand, or a lead before it."""
        if checkpoint is None or not checkpoint.window_size:
            return b""
        stop = len(self._tail) - (self._offset - checkpoint.offset)
        return bytes(self._tail[stop - checkpoint.window_size : stop])

    def _choose(self, checkpoint: Checkpoint, stop: int) -> tuple[Checkpoint, SparseWindow]:
        """Where the decoding of the span at hand is to begin, and the window there."""
        lead = checkpoint.lead
        if lead is None:
            return checkpoint, self._make_sparse(checkpoint, checkpoint, stop, self._windows[0])
        led: SparseWindow | None = None
        if self._prefers_lead:
            led = self._make_sparse(lead, checkpoint, stop, self._windows[1])
            if led.reference_count <= _WINDOW_LIGHT:
                return lead, led
        direct = self._make_sparse(checkpoint, checkpoint, stop, self._windows[0])
        if direct.reference_count <= _WINDOW_LIGHT:
            self._prefers_lead = False
            return checkpoint, direct
        if led is None and self._pause_left:
            self._pause_left -= 1
            return checkpoint, direct
        if led is None:
            led = self._make_sparse(lead, checkpoint, stop, self._windows[1])
        self._prefers_lead = _LEAD_GAIN * led.reference_count <= direct.reference_count
        if self._prefers_lead:
            self._pause = 0
            return lead, led
        self._pause = self._pause_left = min(2 * self._pause or 1, _PAUSE_MAX)
        return checkpoint, direct

    def _make_sparse(self, place: Checkpoint, checkpoint: Checkpoint, stop: int, window: bytes) -> SparseWindow:
        """The window to decode with from a checkpoint or its lead.

        Raises:
            LayerMalformed: when the span does not decode from there.
        """
        start = place.bit // 8
        data = memoryview(self._take_range(start, stop))
        try:
            return make_sparse(window, data, place.bit % 8, checkpoint.offset - place.offset)
        except SpanBroken as error:
            reason = f"deflate data that is decoded by one library and not by another: {error}"
            raise LayerMalformed(None, start, reason) from error

    def _take_range(self, start: int, stop: int) -> bytes:
        pieces = [
            piece[max(start - offset, 0) : stop - offset]
            for offset, piece in self._published
            if offset < stop and offset + len(piece) > start
        ]
        return b"".join(pieces)

    def _give_up(self) -> None:
        self.is_given_up = True
        self._published.clear()
        self._entries.clear()
        self._checksums.clear()
