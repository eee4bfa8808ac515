"""A gzip or zstd layer that is read span by span from its published blob; and its members.

`reader` makes these. A span is decoded from its checkpoint in a thread of the pool and compared with the checksum from
the index before anybody sees it. As with plain layers the blob is opened anew once when that fails, since an import
may have put the right bytes in place; what fails still is `LayerCorrupt`, logged once per span. All methods may be
called from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from kitfs.digest import CHECKSUM_SIZE, Digest, checksum
from kitfs.layer.checkpoints import CheckpointsBroken, SpanMap, count_directory_values
from kitfs.layer.decoders import find_span_decoder
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.read_ahead import ReadAhead
from kitfs.layer.span_decode import SpanBroken
from kitfs.layer.span_pool import SpanPool, SpanTask, shared_pool
from kitfs.layer.span_reader import BlobSource
from kitfs.layer.sparse_window import unpack
from kitfs.oci.mediatype import Compression
from kitfs.store.records import LayerRecord, TocMember
from kitfs.store.store import Store

_VALUES_MAX = 4  # of 256 KiB; one has the windows of 50 to 500 MB of a layer
_MEMBERS_MAX = 1024
_SCRATCH_SIZE = 1 << 20


class _Scratch(threading.local):
    """Published bytes that a thread decodes: fresh memory for each span would cost a page fault for each 4 KiB."""

    memory = bytearray()


_scratch = _Scratch()


class LazyLayer:
    """Decodes the spans of one layer; see `span_pool.SpanSource`.

    Attributes:
        key: Equal for all layers that give the same bytes.
        spans: Where they are.
    """

    def __init__(self, store: Store, layer: Digest, record: LayerRecord) -> None:
        """Read the layer's directory of checkpoints.

        Raises:
            LayerCorrupt: when its checkpoints are not this layer's.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        self.key = layer.hex
        self.source = BlobSource(store, layer)
        self._store = store
        self._layer = layer
        self._decode_span = find_span_decoder(Compression(record.compression))
        self._lock = threading.Lock()
        self._values: OrderedDict[int, bytes] = OrderedDict()
        self._read_aheads: OrderedDict[int, ReadAhead] = OrderedDict()
        try:
            directory = [store.get_checkpoint_value(layer, 0)]
            for number in range(1, count_directory_values(directory[0])):
                directory.append(store.get_checkpoint_value(layer, number))
            self.spans = SpanMap(directory, record.size_decoded)
            self._checksums = store.span_checksums(layer)
            if len(self._checksums) != self.spans.count * CHECKSUM_SIZE:
                raise CheckpointsBroken(f"{len(self._checksums)} bytes of checksums for {self.spans.count} spans")
        except CheckpointsBroken as error:
            raise LayerCorrupt(layer, member=None, span=None, offset=0, reason=str(error)) from error

    def decode(self, span: int) -> bytes:
        """The verified bytes of a span; may wait for the disk.

        Raises:
            LayerCorrupt: when they are not what was verified.
            BlobNotFound: when the blob is gone.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not give the window.
            OSError: when the disk fails.
        """
        start, _ = self.spans.published_range(span)
        descriptor: Descriptor | None = self.source.open()
        reason = ""
        while descriptor is not None:
            try:
                return self._decode(descriptor, span)
            except SpanBroken as error:
                reason = str(error)
            descriptor = self.source.reopen(descriptor)
        corrupt = LayerCorrupt(self._layer, member=None, span=span, offset=start, reason=reason)
        self.source.report(corrupt)
        raise corrupt

    def _decode(self, descriptor: Descriptor, span: int) -> bytes:
        start, stop = self.spans.published_range(span)
        decoded_start, decoded_stop = self.spans.range(span)
        size = stop - start
        if len(_scratch.memory) < size:
            _scratch.memory = bytearray(max(size, _SCRATCH_SIZE))
        published = memoryview(_scratch.memory)[:size]
        done = descriptor.read_into(published, start)
        if done != size:
            raise SpanBroken(f"{size - done} bytes are missing")
        window = self._window(span)
        data = self._decode_span(published, self.spans.bit(span) % 8, window, decoded_stop - decoded_start)
        if checksum(data) != self._checksums[span * CHECKSUM_SIZE : (span + 1) * CHECKSUM_SIZE]:
            raise SpanBroken("checksum differs")
        return data

    def _window(self, span: int) -> bytes:
        found = self.spans.window_place(span)
        if found is None:
            return b""
        number, place, size = found
        try:
            return unpack(self._value(number)[place : place + size])
        except ValueError as error:
            raise SpanBroken(str(error)) from error

    def _value(self, number: int) -> bytes:
        with self._lock:
            value = self._values.get(number)
        if value is None:
            value = self._store.get_checkpoint_value(self._layer, number)
        with self._lock:
            self._values[number] = value
            self._values.move_to_end(number)
            if len(self._values) > _VALUES_MAX:
                self._values.popitem(last=False)
        return value

    def read_ahead(self, index: int) -> ReadAhead:
        """The runs of a member, for all who read it."""
        with self._lock:
            found = self._read_aheads.get(index)
            if found is None:
                found = self._read_aheads[index] = ReadAhead()
                if len(self._read_aheads) > _MEMBERS_MAX:
                    self._read_aheads.popitem(last=False)
            return found

    def close(self) -> None:
        """Wait until nothing of it is being decoded."""
        shared_pool().drop(self)


class LazyRead:
    """A read under way; see `reader.PendingRead`."""

    __slots__ = ("_callback", "_join", "_tasks", "_waiting")

    def __init__(self, tasks: list[SpanTask], join: Callable[[list[bytes]], bytes | memoryview]) -> None:
        self._tasks = tasks
        self._join = join
        self._waiting = iter(tasks)
        self._callback: Callable[[], None] = lambda: None

    def call_when_done(self, callback: Callable[[], None]) -> None:
        """Run a callback when all spans are decoded, in one of the threads that decode."""
        self._callback = callback
        self._step()

    def _step(self) -> None:
        task = next(self._waiting, None)
        if task is None:
            self._callback()
        else:
            task.call_when_done(self._step)

    def result(self) -> bytes | memoryview:
        """The bytes; waits for them.

        Raises:
            LayerCorrupt, KitfsError, OSError: as `LazyMember.read`.
        """
        return self._join([task.wait() for task in self._tasks])


class LazyMember:
    """Reads one member; see `reader.MemberReader`.

    Attributes:
        size: Its bytes.
        state: ``lazy``.
    """

    state: Literal["lazy", "partial", "native"] = "lazy"

    def __init__(self, layer: LazyLayer, member: TocMember, index: int) -> None:
        self.size = member.size
        self._layer = layer
        self._offset = member.offset
        self._read_ahead = layer.read_ahead(index)
        self._pool: SpanPool = shared_pool()

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when their spans are decoded, else None.

        Raises:
            ValueError: when the range is not within the file.
        """
        spans = self._spans(start, stop)
        parts = []
        for span in spans:
            data = self._pool.find(self._layer, span)
            if data is None:
                return None
            parts.append(data)
        if parts:
            self._decode_ahead(start, stop)
        return self._join(spans, parts, start, stop)

    def begin_read(self, start: int, stop: int) -> LazyRead:
        """Begin to decode the spans of a range; does not wait.

        Raises:
            ValueError: when the range is not within the file.
        """
        spans = self._spans(start, stop)
        tasks = [self._pool.request(self._layer, span) for span in spans]
        if tasks:
            self._decode_ahead(start, stop)
        return LazyRead(tasks, lambda parts: self._join(spans, parts, start, stop))

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``, verified.

        Raises:
            LayerCorrupt: when a span they touch is not what was verified.
            KitfsError, OSError: when the store or the disk fails.
            ValueError: when the range is not within the file.
        """
        return self.begin_read(start, stop).result()

    def _spans(self, start: int, stop: int) -> range:
        """The spans that a range touches."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"range [{start}, {stop}) of a file of {self.size} bytes")
        if start == stop:
            return range(0)
        find = self._layer.spans.find
        return range(find(self._offset + start), find(self._offset + stop - 1) + 1)

    def _decode_ahead(self, start: int, stop: int) -> None:
        ahead_start, ahead_stop = self._read_ahead.note(start, stop)
        ahead_stop = min(ahead_stop, self.size)
        if ahead_start < ahead_stop:
            self._pool.decode_ahead(self._layer, self._spans(ahead_start, ahead_stop))

    def _join(self, spans: range, parts: list[bytes], start: int, stop: int) -> bytes | memoryview:
        """The range, without a copy where it lies in one span."""
        if not parts:
            return b""
        base = self._layer.spans.range(spans[0])[0]
        begin, end = self._offset + start - base, self._offset + stop - base
        if len(parts) == 1:
            return memoryview(parts[0])[begin:end]
        views = [memoryview(part) for part in parts]
        views[-1] = views[-1][: len(views[-1]) - (sum(map(len, views)) - end)]
        views[0] = views[0][begin:]
        return b"".join(views)
