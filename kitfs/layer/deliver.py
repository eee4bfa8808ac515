"""Members of a layer into files elsewhere, each byte verified, on all cores, with nothing written to the store.

`unpack` uses it. How a member is read depends on what is there of it::

    a file of its own               copied by the kernel (shared, where the file system can), trusted by its stamp
    plain tar, raw layer            ranges of the blob, compared with their checksums (`reader`)
    gzip, zstd with checkpoints     each span of the layer decoded once, compared with its checksum, and written to
                                    the members that it has bytes of
    the same, without               decoded from the layer's start, compared with the member's digest

A file is placed when all of it is written and verified, so one that is in place is right. Memory is a few pieces or
spans a thread. The order of files is not kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from kitfs.layer.crew import THREADS, Crew, Task
from kitfs.layer.deliver_decoded import SpanJob, StreamJob
from kitfs.layer.delivery import Advance, Begun, Create, Job, OpenFiles
from kitfs.layer.reader import LayerReader
from kitfs.store.records import TocMember
from kitfs.store.store import Store

PIECE_SIZE = 1 << 20
"""Bytes that a thread reads and writes at once, in its core's cache: 768 MiB took 0.30 CPU-seconds of the kernel's warm
and 0.50 cold, with 256 KiB 0.40 and 0.59 (2 cores, 2 threads, a busy machine; 4 threads took more)."""

STRETCH_SIZE = 64 << 20
"""Bytes of one file that a thread writes before it looks what is next."""

_BATCH_SIZE = 16 << 20
"""Bytes of smaller files that a thread is given at once; a larger file is given by stretches."""

_BATCH_COUNT = 64


class Deliverer:
    """Writes members of layers; one thread at a time uses it, for one layer after another.

    All is in place when the crew has been drained; what is begun and not whole when the crew ends is discarded.
    """

    def __init__(self, store: Store, crew: Crew) -> None:
        """Begin.

        Args:
            store: Where members may have files of their own.
            crew: Who works.
        """
        self._files = OpenFiles(store, crew)
        crew.on_end(self._files.discard)

    def deliver(self, reader: LayerReader, create: Create, advance: Advance) -> None:
        """Begin to write all files of a layer; `Crew.drain` waits for the end.

        Args:
            reader: The layer; it may be closed when this returns.
            create: Makes the files.
            advance: Told how far it is.

        Raises:
            LayerCorrupt: when the layer does not give its bytes; or the crew's next call does.
            KitfsError, OSError: whatever else went wrong, with this layer or one before.
        """
        if reader.is_decoded_whole:
            StreamJob(self._files, reader, create, advance).run()
        elif reader.spans is not None:
            SpanJob(self._files, reader, create, advance).run(reader.spans)
        else:
            _PieceJob(self._files, reader, create, advance).run()


class _PieceJob(Job):
    """From a plain layer: large members by stretches, small ones several at a time.

    Writes to one file wait for each other in the kernel, so threads are given stretches of several.
    """

    def run(self) -> None:
        large: deque[Iterator[Task]] = deque()
        batch: list[tuple[int, TocMember]] = []
        size = 0
        for index, member in self.iter_files():
            if member.size > _BATCH_SIZE:
                large.append(self._iter_stretches(index, member))
                if len(large) == THREADS:
                    self._submit_one_each(large)
                continue
            batch.append((index, member))
            size += member.size
            if size >= _BATCH_SIZE or len(batch) == _BATCH_COUNT:
                self.submit(partial(self._read_batch, batch))
                batch, size = [], 0
        if batch:
            self.submit(partial(self._read_batch, batch))
        while large:
            self._submit_one_each(large)

    def _submit_one_each(self, large: deque[Iterator[Task]]) -> None:
        """Submit one stretch of each until one of them is through."""
        while True:
            for _ in range(len(large)):
                task = next(large[0], None)
                if task is None:
                    large.popleft()
                    return
                self.submit(task)
                large.rotate(-1)

    def _iter_stretches(self, index: int, member: TocMember) -> Iterator[Task]:
        begun = self.begin(index, member)
        if begun is None:
            return
        read = self._open(index, is_sequential=True)
        for start in range(0, member.size, STRETCH_SIZE):
            yield partial(_read_stretch, begun, read, start, min(start + STRETCH_SIZE, member.size))

    def _read_batch(self, batch: list[tuple[int, TocMember]]) -> None:
        for index, member in batch:
            begun = self.begin(index, member)
            if begun is not None:
                _read_stretch(begun, self._open(index), 0, member.size)

    def _open(self, index: int, *, is_sequential: bool = False) -> Callable[[int, int], bytes | memoryview]:
        spans = self.reader.open_spans(index, is_sequential=is_sequential)
        return self.reader.open_member(index).read if spans is None else spans.read_scratch


def _read_stretch(begun: Begun, read: Callable[[int, int], bytes | memoryview], start: int, stop: int) -> None:
    for at in range(start, stop, PIECE_SIZE):
        begun.write(read(at, min(at + PIECE_SIZE, stop)), at)
