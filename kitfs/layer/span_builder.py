"""Collects the checkpoints of one gzip or zstd layer while it is indexed: windows, span checksums, digests of ranges.

The indexer's hashing thread feeds it published and decoded bytes, each in order, the published ones first, and the
checkpoints of `block_inflater` and `zstd_stream` where they lie between decoded bytes. A layer of which a span would be
larger than `SPAN_SIZE_MAX` or `PUBLISHED_SIZE_MAX` gets none: its stream has no boundaries (igzip -0 writes one block,
zstd one frame), and is decoded once and whole. What is held is the published bytes of the span at hand and the last
decoded 32 KiB. One thread at a time.
"""

from __future__ import annotations

import hashlib
from collections import deque

from kitfs.digest import Checksummer
from kitfs.layer.block_inflater import WINDOW_SIZE, Checkpoint
from kitfs.layer.checkpoints import (
    PUBLISHED_SIZE_MAX,
    SPAN_SIZE_MAX,
    Entry,
    encode_checkpoints,
    published_range,
)
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.span_decode import SpanBroken
from kitfs.layer.sparse_window import WindowPacker

_HELD_SIZE_MAX = 2 * PUBLISHED_SIZE_MAX + (4 << 20)
"""Published bytes that are held, of pieces of 1 MiB. With so many, the span at hand or the one that begins at a place
not told of yet, for want of a byte behind it, is too large: whether a layer has checkpoints does not hang on pieces."""


class SpanBuilder:
    """What the store records of a layer's spans.

    Attributes:
        is_given_up: Whether the layer has a span that is too large.
    """

    def __init__(self) -> None:
        self._packer = WindowPacker()
        self._published: deque[tuple[int, memoryview]] = deque()  # with their offsets; what the span at hand needs
        self._published_size = 0  # offset of the next
        self._entries: list[Entry] = []
        self._checksums = bytearray()
        self._checkpoint: Checkpoint | None = None
        self._window = b""
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
        self._checkpoint = checkpoint
        self._window = bytes(self._tail[-checkpoint.window_size :]) if checkpoint.window_size else b""
        self._checksum = Checksummer()

    def take(self, data: memoryview) -> None:
        """Take the next decoded bytes."""
        if self.is_given_up:
            return
        self._offset += len(data)
        self._checksum.update(data)
        self._tail += data[-WINDOW_SIZE:]
        if len(self._tail) > 4 * WINDOW_SIZE:
            del self._tail[:-WINDOW_SIZE]
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
        start, stop = published_range(checkpoint.bit, next_bit)
        range_start = start if self._entries else 0
        if stop - range_start > PUBLISHED_SIZE_MAX:
            self._give_up()
            return
        data = self._take_range(range_start, stop)
        try:
            window = self._packer.pack(self._window, memoryview(data)[start - range_start :], checkpoint.bit % 8)
        except SpanBroken as error:
            reason = f"deflate data that is decoded by one library and not by another: {error}"
            raise LayerMalformed(None, start, reason) from error
        self._entries.append(Entry(checkpoint.bit, checkpoint.offset, window, hashlib.sha256(data).digest()))
        self._checksums += self._checksum.digest()
        while self._published and self._published[0][0] + len(self._published[0][1]) < stop:
            self._published.popleft()

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
