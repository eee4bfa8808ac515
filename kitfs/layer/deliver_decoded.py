"""Members delivered from a compressed layer: span by span on all cores, or, without checkpoints, from its start.

`deliver` chooses. A span is compared with its checksum before its bytes are written, a member that is decoded in a
stream with its digest before it is placed.
"""

from __future__ import annotations

from functools import partial

from kitfs.digest import Digest, Digester, DigestMismatch
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.decoders import open_decoder
from kitfs.layer.delivery import Advance, Begun, Create, Job, OpenFiles
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.lazy_layer import LazyLayer
from kitfs.layer.pipeline import Pipeline
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import Compression
from kitfs.store.records import TocMember

_READ_SIZE = 512 << 10


class SpanJob(Job):
    """From a compressed layer with checkpoints: span by span."""

    def run(self, layer: LazyLayer) -> None:
        """Submit its spans.

        Raises:
            LayerCorrupt, KitfsError, OSError: as `Deliverer.deliver`.
        """
        at = -1
        whole: list[tuple[int, TocMember]] = []  # members that lie in span `at`
        parts: list[Begun] = []  # files that have bytes of it and of those before
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

    def _submit(self, layer: LazyLayer, span: int, whole: list[tuple[int, TocMember]], parts: list[Begun]) -> None:
        if whole or parts:
            self.submit(partial(self._decode, layer, span, whole, parts))

    def _decode(self, layer: LazyLayer, span: int, whole: list[tuple[int, TocMember]], parts: list[Begun]) -> None:
        data: bytes | None = None
        begun: Begun | None
        for begun in parts:
            data = data or layer.decode(span)
            _write_part(begun, data, *layer.range(span))
        for index, member in whole:
            begun = self.begin(index, member)
            if begun is not None:
                data = data or layer.decode(span)
                _write_part(begun, data, *layer.range(span))


def _write_part(begun: Begun, data: bytes, start: int, stop: int) -> None:
    """Write what a range of the decoded layer has of a member."""
    offset = begun.member.offset
    first, last = max(start, offset), min(stop, offset + begun.member.size)
    begun.write(memoryview(data)[first - start : last - start], first - offset)


class StreamJob(Job):
    """From a compressed layer without checkpoints: all of it in order, on two threads."""

    def __init__(self, files: OpenFiles, reader: LayerReader, create: Create, advance: Advance) -> None:
        super().__init__(files, reader, create, advance)
        self._members = self.iter_files()
        self._at = 0  # of the next decoded byte
        self._index = 0
        self._member: TocMember | None = None
        self._begun: Begun | None = None
        self._digester = Digester()

    def run(self) -> None:
        """Decode it; all is in place when this returns.

        Raises:
            LayerCorrupt, KitfsError, OSError: as `Deliverer.deliver`.
        """
        self._next()
        pipeline = Pipeline("kitfs-unpack")
        try:
            size = self._feed(pipeline)
        except LayerMalformed as error:
            raise self.corrupt(error.reason, None, error.offset) from error
        finally:
            pipeline.close()
        if self._member is not None:
            raise self.corrupt("decodes to less than its table of contents says", None, size)

    def _feed(self, pipeline: Pipeline) -> int:
        """Decode the whole layer; the bytes of its blob."""
        record = self.reader.record
        decoder = open_decoder(Compression(record.compression), DecodeLimits(free_size=record.size_decoded))
        blob = Descriptor(self._files.store.open_blob(self.reader.layer))
        offset = 0
        while data := blob.read(offset, _READ_SIZE):
            for piece in decoder.feed(memoryview(data)):
                self._files.crew.check()
                pipeline.submit(self._take, memoryview(piece))
            offset += len(data)
        decoder.close()
        pipeline.drain()
        return offset

    def _next(self) -> None:
        """Go on to the next member that has bytes."""
        self._member = None
        for index, member in self._members:
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
            raise self.corrupt(str(DigestMismatch(expected, actual)), self._index, member.offset)
