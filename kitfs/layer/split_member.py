"""A member of a split layer: its own file in the store, which nothing else can make anew.

`reader` makes these. A file is served as it is while its stamp held at the moment it was opened (design: trust by
stamp). One whose stamp differs is read through the span checksums of the layer, and hashed once, at the first read:
right bytes get a new stamp, wrong ones are noted as damaged. Of a damaged member the spans that are right are still
served; the others are `LayerCorrupt` until an import puts the right file in place, which the next read then opens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.span_reader import BlobSource, SpanReader
from kitfs.store.errors import MemberNotFound, RecordCorrupt
from kitfs.store.records import TocMember
from kitfs.store.store import Store


class MemberSource(BlobSource):
    """The descriptor of a member's file that one reader of it uses; see `BlobSource`."""

    def __init__(self, store: Store, layer: Digest, digest: Digest, index: int) -> None:
        super().__init__(store, layer)
        self._digest = digest
        self._index = index

    def _path(self) -> Path:
        return self._store.layout.member(self._digest)

    def _open(self) -> int:
        try:
            return self._store.open_member(self._digest)[0]
        except MemberNotFound:
            reason = "its member file is not there"
            raise LayerCorrupt(self.layer, member=self._index, span=None, offset=0, reason=reason) from None


class SplitMember:
    """Reads one member; see `reader.MemberReader`.

    Attributes:
        size: Its bytes.
    """

    def __init__(self, store: Store, layer: Digest, member: TocMember, index: int, checksums: memoryview) -> None:
        assert member.digest is not None  # files have one
        self.size = member.size
        self._store = store
        self._digest = Digest.from_raw(member.digest)
        source = MemberSource(store, layer, self._digest, index)
        self._spans = SpanReader(source, member, index, checksums, is_whole_blob=False, offset=0)
        self._is_hashed = False
        self._descriptor = self._look() if member.size else None

    @property
    def state(self) -> Literal["lazy", "partial", "native"]:
        """``native`` while the file is trusted, else ``lazy``."""
        return "native" if self._descriptor is not None or self.size == 0 else "lazy"

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when they are in the page cache, and right where the file is not trusted.

        Raises:
            ValueError: when the range is not within the file.
        """
        descriptor = self._descriptor
        if descriptor is None or start == stop:
            return self._spans.read_ready(start, stop)
        self._check(start, stop)
        data = descriptor.read_cached(start, stop - start)
        return None if data is None else memoryview(data).toreadonly()

    def begin_read(self, start: int, stop: int) -> None:
        """Nothing: `read` has to wait for the disk."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``; the first read of a file that is not trusted waits until it is hashed.

        Raises:
            LayerCorrupt: when they are not what was verified, or the file is not there.
            KitfsError, OSError: when the store or the disk fails.
            ValueError: when the range is not within the file.
        """
        self._check(start, stop)
        if self._descriptor is None and not self._is_hashed and start < stop:
            self._is_hashed = True
            self._restamp()
        descriptor = self._descriptor
        if descriptor is not None:
            data = descriptor.read(start, stop - start)
            if len(data) == stop - start:
                return data
            self._descriptor = None
        return self._spans.read(start, stop)

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"range [{start}, {stop}) of a file of {self.size} bytes")

    def _look(self) -> Descriptor | None:
        """The member's file when its stamp holds; nothing is hashed."""
        try:
            fd, is_trusted = self._store.open_member(self._digest)
        except (MemberNotFound, RecordCorrupt):
            return None
        descriptor = Descriptor(fd)
        return descriptor if is_trusted and os.fstat(fd).st_size == self.size else None

    def _restamp(self) -> None:
        """Trust the file again when its bytes are right; who fails leaves it to the spans."""
        try:
            self._descriptor = self._look()
            if self._descriptor is not None:
                return
            record = self._store.find_member(self._digest)
            if record is not None and record.state != "damaged" and self._store.restamp_member(self._digest):
                self._descriptor = self._look()
        except KitfsError:
            return


def is_split(store: Store, layer: Digest) -> bool:
    """Whether a blob is kept split; where its record is damaged, what is on disk tells.

    Raises:
        IndexFailed, IndexCorrupt: when the index can not tell.
    """
    try:
        record = store.find_blob(layer)
    except RecordCorrupt:
        record = None
    if record is not None:
        return record.form == "split"
    return store.layout.recipe(layer).exists() and not store.layout.blob(layer).exists()
