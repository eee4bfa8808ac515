"""A gzip or zstd layer that is read span by span from its published blob.

`reader` makes these, `lazy_member` reads members through them. A span is decoded from its checkpoint in a thread of the
pool and compared with the checksum from the index before anybody sees it, and goes to the partial files of the members
that are read. As with plain layers the blob is opened anew once when that fails, since an import may have put the right
bytes in place; what fails still is `LayerCorrupt`, logged once per span. All methods may be called from any thread.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

from kitfs.digest import CHECKSUM_SIZE, Digest, checksum
from kitfs.layer.checkpoints import CheckpointsBroken, SpanMap, count_directory_values
from kitfs.layer.decoders import find_span_decoder
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.finisher import shared_finisher
from kitfs.layer.member_partial import MemberPartial, partial_name
from kitfs.layer.read_ahead import ReadAhead
from kitfs.layer.span_decode import SpanBroken, decode_span_behind
from kitfs.layer.span_pool import shared_pool
from kitfs.layer.span_reader import BlobSource
from kitfs.layer.sparse_window import unpack
from kitfs.oci.mediatype import Compression
from kitfs.store.partials import find_partial
from kitfs.store.records import LayerRecord, TocMember
from kitfs.store.store import Store

_VALUES_MAX = 4  # of 256 KiB; one has the windows of 50 to 500 MB of a layer
_MEMBERS_MAX = 1024
_PARTIALS_MAX = 32  # two descriptors each


class LazyLayer:
    """Decodes the spans of one layer; see `span_pool.SpanSource`.

    Attributes:
        key: Equal for all layers that give the same bytes.
        layer: The layer's blob.
        spans: Where they are.
    """

    def __init__(self, store: Store, layer: Digest, record: LayerRecord, toc: Sequence[TocMember]) -> None:
        """Read the layer's directory of checkpoints.

        Raises:
            LayerCorrupt: when its checkpoints are not this layer's.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        self.key = layer.hex
        self.layer = layer
        self.source = BlobSource(store, layer)
        self._store = store
        self._toc = toc
        self._decode_span = find_span_decoder(Compression(record.compression))
        self._lock = threading.Lock()
        self._values: OrderedDict[int, bytes] = OrderedDict()
        self._read_aheads: OrderedDict[int, ReadAhead] = OrderedDict()
        self._partials: weakref.WeakValueDictionary[int, MemberPartial] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[int, MemberPartial] = OrderedDict()  # whose readers may have closed it at its end
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

    def find(self, span: int) -> bytes | None:
        """The verified bytes of a span from the partial file of a member that is read, or None; raises nothing."""
        for partial in self._partials_of(span):
            data = partial.find(span)
            if data is not None:
                partial.consider()
                return data
        return None

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
        corrupt = LayerCorrupt(self.layer, member=None, span=span, offset=start, reason=reason)
        self.source.report(corrupt)
        raise corrupt

    def _decode(self, descriptor: Descriptor, span: int) -> bytes:
        start, stop = self.spans.published_range(span)
        decoded_start, decoded_stop = self.spans.range(span)
        published = descriptor.read_once(start, stop - start)
        if len(published) != stop - start:
            raise SpanBroken(f"{stop - start - len(published)} bytes are missing")
        window = self._window(span)
        shift, lead = self.spans.bit(span) % 8, self.spans.lead(span)
        if lead[0]:
            data = decode_span_behind(published, shift, window, decoded_stop - decoded_start, lead)
        else:
            data = self._decode_span(published, shift, window, decoded_stop - decoded_start)
        if not self.is_right(span, data):
            raise SpanBroken("checksum differs")
        return data

    def keep(self, span: int, data: bytes) -> None:
        """Write a span to the partial files of the members that are read and have bytes of it; raises nothing."""
        for partial in self._partials_of(span):
            partial.keep(span, data)
            partial.consider()

    def _partials_of(self, span: int) -> list[MemberPartial]:
        return [partial for partial in list(self._partials.values()) if partial.covers(span)]

    def partial(self, index: int) -> MemberPartial:
        """What makes a member a file while it is read, for all who read it."""
        with self._lock:
            found = self._partials.get(index)
        made = found or MemberPartial(self._store, self, self._toc[index], index)
        with self._lock:
            found = self._partials.setdefault(index, made)
            self._recent[index] = found
            self._recent.move_to_end(index)
            if len(self._recent) > _PARTIALS_MAX:
                self._recent.popitem(last=False)
            return found

    def has_partial(self, index: int) -> bool:
        """Whether somebody has begun to make a member a file."""
        return find_partial(self._store.layout, partial_name(self.layer, index))

    def range(self, span: int) -> tuple[int, int]:
        """The decoded bytes of a span, half open."""
        return self.spans.range(span)

    def find_span(self, offset: int) -> int:
        """The span that holds a byte of the decoded layer."""
        return self.spans.find(offset)

    def is_right(self, span: int, data: bytes) -> bool:
        """Whether bytes are those of a span, by its checksum."""
        return checksum(data) == self._checksums[span * CHECKSUM_SIZE : (span + 1) * CHECKSUM_SIZE]

    def get(self, span: int) -> bytes:
        """The verified bytes of a span, from the pool's cache or decoded by it.

        Raises:
            LayerCorrupt, KitfsError, OSError: as `decode`.
        """
        return shared_pool().request(self, span).wait()

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
            value = self._store.get_checkpoint_value(self.layer, number)
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
        """Wait until nothing of it is being decoded or made a file."""
        shared_finisher().drop(self)
        shared_pool().drop(self)
        with self._lock:
            self._recent.clear()
