"""A member that lies uncompressed in its blob: ranges of it, each span compared with its checksum.

`reader` makes these. The blob may be linked, that is another program's file: nothing is taken on trust but the
checksums from the index. Where a span differs, the blob is opened anew once, since an import may have put the right
bytes in place under the same name; what differs still is `LayerCorrupt`, logged once per span.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from kitfs.digest import CHECKSUM_SIZE, Digest, checksum
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.spans import SPAN_SIZE
from kitfs.store.records import TocMember
from kitfs.store.stamp import find_status
from kitfs.store.store import Store

_REPORTED_MAX = 1000

_log = logging.getLogger(__name__)


class BlobSource:
    """The one descriptor of a blob that all open members of a layer share.

    Attributes:
        layer: The blob.
    """

    def __init__(self, store: Store, layer: Digest) -> None:
        self._store = store
        self.layer = layer
        self._descriptor: Descriptor | None = None
        self._reported: set[tuple[int, int]] = set()

    def open(self) -> Descriptor:
        """The descriptor. Two threads that come first at once open two; one of them is closed soon.

        Raises:
            BlobNotFound, BlobIsSplit: when the blob is gone, or has no file of its own.
        """
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = Descriptor(self._open())
        return descriptor

    def _path(self) -> Path:
        return self._store.layout.blob(self.layer)

    def _open(self) -> int:
        return self._store.open_blob(self.layer)

    def find_opened(self) -> Descriptor | None:
        """The descriptor, when there is one already."""
        return self._descriptor

    def reopen(self, descriptor: Descriptor) -> Descriptor | None:
        """A descriptor of what lies at the blob's place now, or None when that is the same file."""
        status = find_status(self._path())
        if status is None or os.path.samestat(status, os.fstat(descriptor.fd)):
            return None
        self._descriptor = None
        return self.open()

    def report(self, error: LayerCorrupt) -> None:
        """Log a mismatch, each span once."""
        place = (error.member or 0, error.span or 0)
        if place not in self._reported and len(self._reported) < _REPORTED_MAX:
            self._reported.add(place)
            _log.error("%s", error)


class SpanReader:
    """Reads one member; see `reader.MemberReader`.

    Attributes:
        size: Its bytes.
        state: ``lazy``; ``native`` when the blob is nothing but this member.
        checksums: Of its spans, 16 bytes each.
    """

    __slots__ = ("_index", "_offset", "_source", "checksums", "size", "state")

    def __init__(
        self,
        source: BlobSource,
        member: TocMember,
        index: int,
        checksums: memoryview,
        *,
        is_whole_blob: bool,
        offset: int | None = None,
    ) -> None:
        """Begin; ``offset`` is that of the member in the source's file, when this is not the layer."""
        self._source = source
        self._index = index
        self._offset = member.offset if offset is None else offset
        self.checksums = checksums
        self.size = member.size
        self.state: Literal["lazy", "partial", "native"] = "native" if is_whole_blob else "lazy"

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when their spans are in the page cache and right, else None.

        Raises:
            ValueError: when the range is not within the file.
        """
        first, last = self._spans(start, stop)
        descriptor = self._source.find_opened()
        if first == last:
            return b""
        if descriptor is None:
            return None
        base = first * SPAN_SIZE
        data = descriptor.read_cached(self._offset + base, min(last * SPAN_SIZE, self.size) - base)
        if data is None:
            return None
        view = memoryview(data).toreadonly()
        if self._find_mismatch(view, first, len(view)) is not None:
            return None  # `read` looks again and says what is wrong
        return view[start - base : stop - base]

    def begin_read(self, start: int, stop: int) -> None:
        """Nothing: `read` has to wait for the disk."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``, verified.

        Raises:
            LayerCorrupt: when a span they touch is not what was verified.
            BlobNotFound: when the blob is gone.
            OSError: when the disk fails.
            ValueError: when the range is not within the file.
        """
        return self._read(start, stop, Descriptor.read)

    def read_scratch(self, start: int, stop: int) -> memoryview | bytes:
        """As `read`, in memory that this thread's next call overwrites.

        Raises:
            LayerCorrupt, BlobNotFound, OSError, ValueError: as `read`.
        """
        return self._read(start, stop, Descriptor.read_scratch)

    def _read(
        self, start: int, stop: int, read: Callable[[Descriptor, int, int], bytes | memoryview]
    ) -> bytes | memoryview:
        first, last = self._spans(start, stop)
        if first == last:
            return b""
        base = first * SPAN_SIZE
        size = min(last * SPAN_SIZE, self.size) - base
        descriptor: Descriptor | None = self._source.open()
        error: LayerCorrupt | None = None
        while descriptor is not None:
            view = memoryview(read(descriptor, self._offset + base, size))
            error = self._find_mismatch(view, first, size)
            if error is None:
                return view[start - base : stop - base]
            descriptor = self._source.reopen(descriptor)
        assert error is not None
        self._source.report(error)
        raise error

    def _spans(self, start: int, stop: int) -> tuple[int, int]:
        """Numbers of the spans that a range touches, half open."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"range [{start}, {stop}) of a file of {self.size} bytes")
        return start // SPAN_SIZE, -(-stop // SPAN_SIZE) if stop > start else start // SPAN_SIZE

    def _find_mismatch(self, data: memoryview, first: int, size: int) -> LayerCorrupt | None:
        """The first span, counted from `first`, that is not what was verified."""
        for at in range(0, size, SPAN_SIZE):
            span = first + at // SPAN_SIZE
            expected = self.checksums[span * CHECKSUM_SIZE : (span + 1) * CHECKSUM_SIZE]
            piece = data[at : min(at + SPAN_SIZE, size)]
            if checksum(piece) != expected:
                reason = "checksum differs" if len(data) == size else f"{size - len(data)} bytes are missing"
                offset = self._offset + span * SPAN_SIZE
                return LayerCorrupt(self._source.layer, member=self._index, span=span, offset=offset, reason=reason)
        return None
