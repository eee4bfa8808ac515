"""Decoding spans: permanent threads, one decoding for all who want a span, and a bounded cache of decoded ones.

One pool per process, shared by all layers, members and handles (`shared_pool`). What a reader waits for goes to the
urgent queue, what it will want next to the ahead queue, which is looked at when the first is empty and is cut at its
old end when it grows too long. There is no decoder state between spans, so the only lock here guards the queues and
the cache; nothing is read, decoded or waited for under it. Two threads per core, because they also wait for the disk.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

CACHE_SIZE = 64 << 20
"""Decoded bytes kept; the kernel's page cache has what was answered, so this is for spans read in parts and ahead."""

THREADS = max(2, 2 * (os.cpu_count() or 1))
_AHEAD_MAX = 96
_EXIT_TIMEOUT_S = 5.0


class SpanSource(Protocol):
    """A layer that can decode its spans.

    Attributes:
        key: Equal for all sources that give the same bytes.
    """

    @property
    def key(self) -> Hashable: ...  # noqa: D102  # see the class

    def find(self, span: int) -> bytes | None:
        """The verified bytes of a span that was decoded before, where they are kept; may wait for the disk."""
        ...

    def decode(self, span: int) -> bytes:
        """The verified bytes of a span; may wait for the disk.

        Raises:
            LayerCorrupt: when they are not what was verified.
            KitfsError, OSError: when the store or the disk fails.
        """
        ...

    def keep(self, span: int, data: bytes) -> None:
        """Take the bytes of a span that `decode` gave, after whoever waited for them; raises nothing."""
        ...


class SpanTask:
    """A span that is wanted, being decoded, or decoded.

    Attributes:
        source: Who decodes it.
        span: Which one.
        waiters: How many wait for it, under the pool's lock.
        is_queued: Whether no thread has begun with it, under the pool's lock.
    """

    __slots__ = ("_callbacks", "_data", "_done", "_error", "is_queued", "source", "span", "waiters")

    def __init__(self, source: SpanSource, span: int) -> None:
        self.source = source
        self.span = span
        self.waiters = 0
        self.is_queued = True
        self._done = threading.Event()
        self._callbacks: deque[Callable[[], None]] = deque()
        self._data: bytes | None = None
        self._error: BaseException | None = None

    def wait(self) -> bytes:
        """The span's bytes, when they are decoded.

        Raises:
            LayerCorrupt: when they are not what was verified.
            KitfsError, OSError: when the store or the disk failed.
        """
        self._done.wait()
        return self.result()

    def result(self) -> bytes:
        """The span's bytes; it is done.

        Raises:
            LayerCorrupt, KitfsError, OSError: as `wait`.
        """
        if self._error is not None:
            raise self._error
        assert self._data is not None
        return self._data

    def call_when_done(self, callback: Callable[[], None]) -> None:
        """Run a short callback, which raises nothing, in the thread that decodes; at once when it is done."""
        self._callbacks.append(callback)
        if self._done.is_set():
            self._call()

    def finish(self, data: bytes | None, error: BaseException | None) -> None:
        """Say what came out."""
        self._data, self._error = data, error
        self._done.set()
        self._call()

    def _call(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return  # the other thread took it
            callback()


_Key = tuple[Hashable, int]


class SpanPool:
    """Threads, queues and cache. Methods may be called from any thread; only `drop` and `close` wait.

    Attributes:
        decoded_count: Spans decoded so far; those that a source had kept are not counted.
    """

    def __init__(self, *, threads: int = THREADS, cache_size: int = CACHE_SIZE) -> None:
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._tasks: dict[_Key, SpanTask] = {}
        self._urgent: deque[SpanTask] = deque()
        self._ahead: deque[SpanTask] = deque()
        self._cache: OrderedDict[_Key, bytes] = OrderedDict()
        self._cached_size = 0
        self._cache_size = cache_size
        self._thread_count = threads
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self.decoded_count = 0

    def find(self, source: SpanSource, span: int) -> bytes | None:
        """The span's bytes when they are at hand."""
        key = (source.key, span)
        with self._lock:
            data = self._cache.get(key)
            if data is not None:
                self._cache.move_to_end(key)
            return data

    def request(self, source: SpanSource, span: int) -> SpanTask:
        """A task for a span that somebody waits for; it is not lost before it is done."""
        key = (source.key, span)
        with self._lock:
            task = self._tasks.get(key)
            if task is None:
                data = self._cache.get(key)
                if data is not None:
                    self._cache.move_to_end(key)
                    task = SpanTask(source, span)
                    task.finish(data, None)
                    return task
                task = self._tasks[key] = SpanTask(source, span)
            if task.waiters == 0 and task.is_queued:
                self._urgent.append(task)
                self._wake()
            task.waiters += 1
            return task

    def decode_ahead(self, source: SpanSource, spans: Iterable[int]) -> None:
        """Decode spans that nobody waits for yet, when nothing else is to be done."""
        with self._lock:
            for span in spans:
                key = (source.key, span)
                if key not in self._tasks and key not in self._cache:
                    task = self._tasks[key] = SpanTask(source, span)
                    self._ahead.append(task)
                    self._wake()
            while len(self._ahead) > _AHEAD_MAX:
                self._forget(self._ahead.popleft())

    def drop(self, source: SpanSource) -> None:
        """Give up what nobody waits for of a source, and wait until no thread uses it."""
        with self._lock:
            for task in [task for task in self._ahead if task.source is source]:
                self._ahead.remove(task)
                self._forget(task)
            self._ended.wait_for(lambda: all(task.source is not source for task in self._tasks.values()))

    def forget(self, source: SpanSource) -> None:
        """Drop what is cached of a source."""
        with self._lock:
            for key in [key for key in self._cache if key[0] == source.key]:
                self._cached_size -= len(self._cache.pop(key))

    def pending(self, source: SpanSource) -> int:
        """How many spans of a source are wanted or being decoded."""
        with self._lock:
            return sum(task.source is source for task in self._tasks.values())

    @property
    def is_idle(self) -> bool:
        """Whether no span is wanted or being decoded."""
        return not self._tasks

    def close(self, timeout_s: float = _EXIT_TIMEOUT_S) -> None:
        """End the threads after the span at hand."""
        with self._lock:
            self._is_closed = True
            self._wanted.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def start(self) -> None:
        """Start the threads; who does not call it has them started by the first span that is wanted."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if not self._threads:
            names = (f"kitfs-span-{number}" for number in range(self._thread_count))
            self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]
            for thread in self._threads:
                thread.start()

    def _wake(self) -> None:
        self._start()
        self._wanted.notify()

    def _forget(self, task: SpanTask) -> None:
        """Drop a task that left the ahead queue, unless it was wanted or begun meanwhile."""
        if task.is_queued and task.waiters == 0:
            del self._tasks[task.source.key, task.span]

    def _run(self) -> None:
        while (task := self._take()) is not None:
            data: bytes | None = None
            error: BaseException | None = None
            is_new = False
            try:
                data = task.source.find(task.span)
                is_new = data is None
                if data is None:
                    data = task.source.decode(task.span)
            except BaseException as caught:  # noqa: BLE001  # whoever waits gets it
                error = caught
            if data is not None:
                self._remember(task, data, is_new=is_new)
            task.finish(data, error)
            if data is not None and is_new:
                task.source.keep(task.span, data)
            self._end(task)
            del task, data, error

    def _take(self) -> SpanTask | None:
        """The next task; waits for one. None when the pool is closed."""
        with self._lock:
            while not self._is_closed:
                queue = self._urgent or self._ahead
                if not queue:
                    self._wanted.wait()
                    continue
                task = queue.popleft()
                if task.is_queued:  # a task that became urgent is in both queues
                    task.is_queued = False
                    return task
            return None

    def _remember(self, task: SpanTask, data: bytes, *, is_new: bool) -> None:
        with self._lock:
            self.decoded_count += is_new
            self._cache[task.source.key, task.span] = data
            self._cached_size += len(data)
            while self._cached_size > self._cache_size:
                _, evicted = self._cache.popitem(last=False)
                self._cached_size -= len(evicted)

    def _end(self, task: SpanTask) -> None:
        with self._lock:
            del self._tasks[task.source.key, task.span]
            self._ended.notify_all()


_shared: SpanPool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> SpanPool:
    """The pool of this process."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = SpanPool()
        return _shared


def _close_shared() -> None:
    """At exit: no thread is left in the middle of a transaction."""
    if _shared is not None:
        _shared.close()


def _forget_shared() -> None:
    """In a forked child the threads are the parent's."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(_close_shared)
os.register_at_fork(after_in_child=_forget_shared)
