"""A member of a lazy layer: ranges of it, from its own file once there is one, else from the spans of the layer.

`reader` makes these. A member's file is believed while its stamp holds when it is opened here; one that is there with
another stamp is hashed by the finisher, and the member is read from its layer meanwhile. A read notices a file that
this process has made at once, and within a second one that another has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Literal

from kitfs.digest import Digest
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.finisher import shared_finisher
from kitfs.layer.lazy_layer import LazyLayer
from kitfs.layer.member_partial import MemberPartial
from kitfs.layer.policy import MATERIALISED_SIZE_MIN, Materialise
from kitfs.layer.restamp import RestampJob
from kitfs.layer.span_pool import SpanPool, SpanTask, shared_pool
from kitfs.store.errors import MemberNotFound
from kitfs.store.records import TocMember
from kitfs.store.store import Store

_LOOK_S = 1.0
_STEP_SIZE = 4 << 20


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
    """

    def __init__(self, store: Store, layer: LazyLayer, member: TocMember, index: int, policy: Materialise) -> None:
        """Open it: a look at the index and at the member's file.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        assert member.digest is not None  # files have one
        self.size = member.size
        self._store = store
        self._layer = layer
        self._offset = member.offset
        self._digest = Digest.from_raw(member.digest)
        self._index = index
        self._read_ahead = layer.read_ahead(index)
        self._pool: SpanPool = shared_pool()
        self._look_s = 0.0
        self._file: Descriptor | None = None
        self._partial: MemberPartial | None = None
        self._look()
        is_large = self.size >= MATERIALISED_SIZE_MIN or policy is Materialise.ALWAYS
        if self._file is None and self.size and is_large and policy is not Materialise.NEVER:
            self._partial = layer.partial(index)
            self._partial.is_native = False
            if policy is Materialise.ALWAYS:
                shared_finisher().submit(self._partial)

    @property
    def state(self) -> Literal["lazy", "partial", "native"]:
        """``native`` once its file is open, ``partial`` while that is being made, else ``lazy``."""
        if self._file is not None or not self.size:
            return "native"
        if self._find_file() is not None:
            return "native"
        partial = self._partial
        is_begun = partial is not None and (partial.is_begun or self._layer.has_partial(self._index))
        return "partial" if is_begun else "lazy"

    def _look(self) -> None:
        """Open the member's file when there is one that can be believed; a look at the index, nothing is hashed."""
        self._look_s = time.monotonic()
        try:
            fd, is_trusted = self._store.open_member(self._digest)
        except MemberNotFound:
            return
        descriptor = Descriptor(fd)
        if is_trusted and os.fstat(fd).st_size == self.size:
            self._file, self._partial = descriptor, None
        else:
            shared_finisher().submit(RestampJob(self._store, self._layer, self._digest))

    def materialise(self, advance: Callable[[int], None] = lambda size: None) -> None:
        """Make the member a file now, whatever the policy; its spans are decoded by the pool.

        On disk when this returns: the member's file, verified and recorded, unless another process makes it at this
        moment or there is no room for it (`state` tells).

        Args:
            advance: Told of bytes that are done.

        Raises:
            LayerCorrupt: when the layer does not give the bytes.
            KitfsError, OSError: when the store or the disk fails.
        """
        if self._find_file() is not None:
            return
        self._partial = self._layer.partial(self._index)
        self._partial.is_native = False
        if self._partial.begin():
            for start in range(0, self.size, _STEP_SIZE):
                stop = min(start + _STEP_SIZE, self.size)
                self.read(start, stop)
                advance(stop - start)
            self._layer.partial(self._index).run()
        self._look()

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when their spans are decoded, else None.

        Raises:
            ValueError: when the range is not within the file.
        """
        spans = self._spans(start, stop)
        file = self._find_file()
        if file is not None:
            cached = file.read_cached(start, stop - start)
            return None if cached is None else memoryview(cached).toreadonly()
        self._note_read()
        parts = []
        for span in spans:
            data = self._pool.find(self._layer, span)
            if data is None:
                return None
            parts.append(data)
        if parts:
            self._decode_ahead(start, stop)
        return self._join(spans, parts, start, stop)

    def begin_read(self, start: int, stop: int) -> LazyRead | None:
        """Begin to decode the spans of a range; does not wait. None when the member has its file.

        Raises:
            ValueError: when the range is not within the file.
        """
        spans = self._spans(start, stop)
        self._note_read()
        if self._find_file() is not None:
            return None
        if time.monotonic() - self._look_s > _LOOK_S:
            self._look()
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
        pending = self.begin_read(start, stop)
        if pending is not None:
            return pending.result()
        file = self._file
        data = b"" if file is None else file.read(start, stop - start)
        if len(data) == stop - start:
            return data
        self._file = None  # it was cut; whoever did that moved its stamp
        return self.read(start, stop)

    def _note_read(self) -> None:
        if self._partial is not None:
            self._partial.last_read_s = time.monotonic()

    def _find_file(self) -> Descriptor | None:
        partial = self._partial
        if self._file is None and partial is not None and partial.is_native:
            self._look()
            partial.is_native = self._file is not None  # else it was changed since, and is hashed before the next look
        return self._file

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
