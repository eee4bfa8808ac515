"""A member of a split layer: its own file in the store, which nothing else can make anew.

`reader` makes these. A file is served as it is while its stamp held at the moment it was opened (design: trust by
stamp). One whose stamp differs is read through the span checksums of the layer, and hashed once, at the first read:
right bytes get a new stamp, wrong ones are noted as damaged. Of a damaged member the spans that are right are still
served; the others are `LayerCorrupt` until an import puts the right file in place, which the next read then opens.
"""

from __future__ import annotations

from pathlib import Path

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.file_or_spans import FileOrSpans
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


class SplitMember(FileOrSpans):
    """Reads one member; see `reader.MemberReader`."""

    def __init__(self, store: Store, layer: Digest, member: TocMember, index: int, checksums: memoryview) -> None:
        assert member.digest is not None  # files have one
        source = MemberSource(store, layer, Digest.from_raw(member.digest), index)
        super().__init__(store, member, SpanReader(source, member, index, checksums, is_whole_blob=False, offset=0))
        self._is_hashed = False

    @property
    def spans(self) -> SpanReader:
        """What reads the file and compares all of it with checksums, whether it is trusted or not."""
        return self._spans

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``; the first read of a file that is not trusted waits until it is hashed.

        Raises:
            LayerCorrupt, KitfsError, OSError, ValueError: as `FileOrSpans.read`.
        """
        if self._descriptor is None and not self._is_hashed and start < stop:
            self._check(start, stop)
            self._is_hashed = True
            self._restamp()
        return super().read(start, stop)

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
