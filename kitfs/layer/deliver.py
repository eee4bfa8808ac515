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

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from kitfs.digest import Digest, Digester, DigestMismatch
from kitfs.layer.crew import THREADS, Crew, Task
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.decoders import open_decoder
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerCorrupt, LayerMalformed
from kitfs.layer.lazy_layer import LazyLayer
from kitfs.layer.pipeline import Pipeline
from kitfs.layer.policy import MATERIALISED_SIZE_MIN
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import Compression
from kitfs.store.errors import MemberNotFound, RecordCorrupt
from kitfs.store.records import KIND_FILE, TocMember
from kitfs.store.store import Store

PIECE_SIZE = 256 << 10
"""Bytes that a thread reads and writes at once: they stay in its core's cache between the two."""

STRETCH_SIZE = 16 << 20
"""Bytes of one file that a thread writes before it looks what is next."""

_COPIED_SIZE = 64 << 20  # by one task: an interrupt waits for it
_BATCH_COUNT = 64
_READ_SIZE = 512 << 10


class File(Protocol):
    """Where a member's bytes go; its methods raise what its maker says."""

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes; any thread, any order."""

    def copy(self, fd: int, start: int, stop: int) -> int:
        """Copy a range of another file to the same place; how many bytes there were."""

    def place(self) -> None:
        """All is written, and verified."""

    def discard(self) -> None:
        """It will never be; raises nothing."""


Create = Callable[[int, TocMember], File | None]
"""Begins the file of a member, by its place in the TOC; None when it is not wanted. Called in any thread."""

Advance = Callable[[int], None]
"""Told of bytes that are done, or passed over; called in any thread."""


class _Begun:
    """A file that tasks write; the one that writes its last bytes places it."""

    __slots__ = ("_advance", "_delivery", "_left", "_lock", "file", "member")

    def __init__(self, delivery: Delivery, file: File, member: TocMember, advance: Advance) -> None:
        self.file = file
        self.member = member
        self._delivery = delivery
        self._advance = advance
        self._left = member.size
        self._lock = threading.Lock()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write verified bytes."""
        self.file.write(data, offset)
        self.note(len(data))

    def note(self, size: int) -> None:
        """So many bytes more are written."""
        with self._lock:
            self._left -= size
            is_last = self._left == 0
        if is_last:
            self._delivery.forget(self.file)
            self.file.place()
        self._advance(size)


class Delivery:
    """Writes members of layers; one thread at a time uses it, for one layer after another.

    All is in place when the crew has been drained. `close` discards what was begun and is not placed.
    """

    def __init__(self, store: Store, crew: Crew) -> None:
        """Begin.

        Args:
            store: Where members may have files of their own.
            crew: Who works.
        """
        self.store = store
        self.crew = crew
        self._begun: set[File] = set()
        self._lock = threading.Lock()

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
            _Stream(self, reader, create, advance).run()
        elif reader.spans is not None:
            _Spans(self, reader, create, advance).run(reader.spans)
        else:
            _Pieces(self, reader, create, advance).run()

    def remember(self, file: File) -> None:
        """A file is begun."""
        with self._lock:
            self._begun.add(file)

    def forget(self, file: File) -> None:
        """A file is about to be placed."""
        with self._lock:
            self._begun.discard(file)

    def close(self) -> None:
        """Discard what is not placed; the crew has ended."""
        with self._lock:
            begun, self._begun = self._begun, set()
        for file in begun:
            file.discard()


class _Job:
    """The files of one layer."""

    def __init__(self, delivery: Delivery, reader: LayerReader, create: Create, advance: Advance) -> None:
        self._delivery = delivery
        self._reader = reader
        self._create = create
        self._advance = advance

    def iter_files(self) -> Iterator[tuple[int, TocMember]]:
        """Files whose bytes are to be had from the layer, in its order."""
        for index, member in enumerate(self._reader.toc):
            if member.kind == KIND_FILE and not self._copy_own(index, member):
                yield index, member

    def begin(self, index: int, member: TocMember) -> _Begun | None:
        """Begin a member's file; None when it is not wanted, or empty and so placed already."""
        file = self._create(index, member)
        if file is None:
            self._advance(member.size)
            return None
        if not member.size:
            file.place()
            return None
        self._delivery.remember(file)
        return _Begun(self._delivery, file, member, self._advance)

    def submit(self, task: Callable[[], None]) -> None:
        self._delivery.crew.submit(task)

    def _copy_own(self, index: int, member: TocMember) -> bool:
        """Have a member's own file copied, where the store has one that can be trusted."""
        own = self._find_own(member) if member.size >= MATERIALISED_SIZE_MIN else None
        if own is None:
            return False
        begun = self.begin(index, member)
        for start in range(0, member.size if begun else 0, _COPIED_SIZE):
            assert begun is not None
            stop = min(start + _COPIED_SIZE, member.size)
            self.submit(partial(self._copy, begun, own, index, start, stop))
        return True

    def _find_own(self, member: TocMember) -> Descriptor | None:
        assert member.digest is not None  # files have one
        try:
            fd, is_trusted = self._delivery.store.open_member(Digest.from_raw(member.digest))
        except (MemberNotFound, RecordCorrupt):
            return None
        own = Descriptor(fd)
        return own if is_trusted and os.fstat(fd).st_size == member.size else None

    def _copy(self, begun: _Begun, own: Descriptor, index: int, start: int, stop: int) -> None:
        size = begun.file.copy(own.fd, start, stop)
        if size != stop - start:
            raise self._corrupt(f"the file of its own was cut to {start + size} bytes", index, start + size)
        begun.note(size)

    def _corrupt(self, reason: str, index: int | None, offset: int) -> LayerCorrupt:
        return LayerCorrupt(self._reader.layer, member=index, span=None, offset=offset, reason=reason)


class _Pieces(_Job):
    """From a plain layer: large members by stretches, small ones several at a time.

    Writes to one file wait for each other in the kernel, so threads are given stretches of several.
    """

    def run(self) -> None:
        large: deque[Iterator[Task]] = deque()
        batch: list[tuple[int, TocMember]] = []
        size = 0
        for index, member in self.iter_files():
            if member.size > STRETCH_SIZE:
                large.append(self._iter_stretches(index, member))
                if len(large) == THREADS:
                    self._submit_one_each(large)
                continue
            batch.append((index, member))
            size += member.size
            if size >= STRETCH_SIZE or len(batch) == _BATCH_COUNT:
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
        read = self._open(index)
        for start in range(0, member.size, STRETCH_SIZE):
            yield partial(_read_stretch, begun, read, start, min(start + STRETCH_SIZE, member.size))

    def _read_batch(self, batch: list[tuple[int, TocMember]]) -> None:
        for index, member in batch:
            begun = self.begin(index, member)
            if begun is not None:
                _read_stretch(begun, self._open(index), 0, member.size)

    def _open(self, index: int) -> Callable[[int, int], bytes | memoryview]:
        spans = self._reader.open_spans(index)
        return self._reader.open_member(index).read if spans is None else spans.read_once


def _read_stretch(begun: _Begun, read: Callable[[int, int], bytes | memoryview], start: int, stop: int) -> None:
    for at in range(start, stop, PIECE_SIZE):
        begun.write(read(at, min(at + PIECE_SIZE, stop)), at)


class _Spans(_Job):
    """From a compressed layer with checkpoints: span by span."""

    def run(self, layer: LazyLayer) -> None:
        at = -1
        whole: list[tuple[int, TocMember]] = []  # members that lie in span `at`
        parts: list[_Begun] = []  # files that have bytes of it and of those before
        for index, member in self.iter_files():
            if not member.size:
                self.begin(index, member)
                continue
            first, last = layer.find_span(member.offset), layer.find_span(member.offset + member.size - 1)
            if first != at:
                self._submit(layer, at, whole, parts)
                at, whole, parts = first, [], []
            if first == last:
                whole.append((index, member))
            elif (begun := self.begin(index, member)) is not None:
                for span in range(first, last):
                    self._submit(layer, span, whole, [*parts, begun])
                    whole, parts = [], []
                at, parts = last, [begun]
        self._submit(layer, at, whole, parts)

    def _submit(self, layer: LazyLayer, span: int, whole: list[tuple[int, TocMember]], parts: list[_Begun]) -> None:
        if whole or parts:
            self.submit(partial(self._decode, layer, span, whole, parts))

    def _decode(self, layer: LazyLayer, span: int, whole: list[tuple[int, TocMember]], parts: list[_Begun]) -> None:
        data: bytes | None = None
        begun: _Begun | None
        for begun in parts:
            data = data or layer.decode(span)
            _write_part(begun, data, *layer.range(span))
        for index, member in whole:
            begun = self.begin(index, member)
            if begun is not None:
                data = data or layer.decode(span)
                _write_part(begun, data, *layer.range(span))


def _write_part(begun: _Begun, data: bytes, start: int, stop: int) -> None:
    """Write what a range of the decoded layer has of a member."""
    offset = begun.member.offset
    first, last = max(start, offset), min(stop, offset + begun.member.size)
    begun.write(memoryview(data)[first - start : last - start], first - offset)


class _Stream(_Job):
    """From a compressed layer without checkpoints: all of it in order, on two threads."""

    def __init__(self, delivery: Delivery, reader: LayerReader, create: Create, advance: Advance) -> None:
        super().__init__(delivery, reader, create, advance)
        self._files = self.iter_files()
        self._at = 0  # of the next decoded byte
        self._index = 0
        self._member: TocMember | None = None
        self._begun: _Begun | None = None
        self._digester = Digester()

    def run(self) -> None:
        self._next()
        pipeline = Pipeline("kitfs-unpack")
        try:
            size = self._feed(pipeline)
        except LayerMalformed as error:
            raise self._corrupt(error.reason, None, error.offset) from error
        finally:
            pipeline.close()
        if self._member is not None:
            raise self._corrupt("decodes to less than its table of contents says", None, size)

    def _feed(self, pipeline: Pipeline) -> int:
        """Decode the whole layer; the bytes of its blob."""
        record = self._reader.record
        decoder = open_decoder(Compression(record.compression), DecodeLimits(free_size=record.size_decoded))
        blob = Descriptor(self._delivery.store.open_blob(self._reader.layer))
        offset = 0
        while data := blob.read(offset, _READ_SIZE):
            for piece in decoder.feed(memoryview(data)):
                self._delivery.crew.check()
                pipeline.submit(self._take, memoryview(piece))
            offset += len(data)
        decoder.close()
        pipeline.drain()
        return offset

    def _next(self) -> None:
        """Go on to the next member that has bytes."""
        self._member = None
        for index, member in self._files:
            begun = self.begin(index, member)
            if member.size:
                self._index, self._member, self._begun, self._digester = index, member, begun, Digester()
                return

    def _take(self, data: memoryview) -> None:
        start, stop = self._at, self._at + len(data)
        self._at = stop
        while (member := self._member) is not None and member.offset < stop:
            first, last = max(start, member.offset), min(stop, member.offset + member.size)
            part = data[first - start : last - start]
            is_last = last == member.offset + member.size
            if self._begun is not None:
                self._digester.update(part)
                if is_last:
                    self._verify(member)
                self._begun.write(part, first - member.offset)
            if not is_last:
                return
            self._next()

    def _verify(self, member: TocMember) -> None:
        assert member.digest is not None  # files have one
        expected, actual = Digest.from_raw(member.digest), self._digester.digest()
        if actual != expected:
            raise self._corrupt(str(DigestMismatch(expected, actual)), self._index, member.offset)
