"""Bytes of a layer's members, verified: what the mount, unpack and diff read files with.

A `LayerReader` opens members of one layer; where the bytes come from depends on the layer::

    none          ranges of the blob, cut at spans; each span's checksum is compared before a byte leaves
    none, split   the member's own file, trusted by its stamp when it is opened, else read by spans likewise
                  (`split_member`)
    gzip, zstd    spans decoded from checkpoints (`lazy_layer`), compared likewise; the member's own file where the
                  store has one
    the same, without checkpoints
                  the member's own file in the store, made by decoding the whole layer once (`materialise`); trusted by
                  its stamp when it is opened, else hashed once, then stamped anew or made anew

`read_ready` never waits for a disk, a lock or another thread, and says None instead; `read` may. Both give exactly
the bytes asked for or raise. All methods may be called from any thread. A reader holds at most one descriptor of the
blob and one of each opened member of a compressed layer; they are closed with the last object that uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, Self

from kitfs.digest import CHECKSUM_SIZE, Digest
from kitfs.errors import UsageError
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.finisher import shared_finisher
from kitfs.layer.lazy_layer import LazyLayer
from kitfs.layer.lazy_member import LazyMember
from kitfs.layer.materialise import Materialiser
from kitfs.layer.member_file import MemberFileReader
from kitfs.layer.plain_member import PlainMember
from kitfs.layer.policy import Materialise
from kitfs.layer.span_pool import shared_pool
from kitfs.layer.span_reader import BlobSource, SpanReader
from kitfs.layer.spans import first_spans
from kitfs.layer.split_member import SplitMember, is_split
from kitfs.oci.mediatype import Compression
from kitfs.store.backing import Backing
from kitfs.store.errors import BlobIsSplit, BlobNotFound, LayerNotIndexed
from kitfs.store.records import KIND_FILE, TocMember
from kitfs.store.store import Store

State = Literal["lazy", "partial", "native"]
"""How a member is read: from its layer; from its layer while its own file is being made; from a plain file."""


class NotAFile(UsageError):
    """A member that was to be read is a directory.

    Attributes:
        layer: The layer's blob.
        index: Which member.
    """

    def __init__(self, layer: Digest, index: int) -> None:
        super().__init__(f"member {index} of layer {layer} is a directory")
        self.layer = layer
        self.index = index


class PendingRead(Protocol):
    """A read under way."""

    def call_when_done(self, callback: Callable[[], None]) -> None:
        """Run a short callback, which raises nothing, in any thread, when `result` need not wait."""
        ...

    def result(self) -> bytes | memoryview:
        """What `MemberReader.read` returns; waits for it.

        Raises:
            LayerCorrupt, KitfsError, OSError: as there.
        """
        ...


class MemberReader(Protocol):
    """One file of a layer.

    Attributes:
        size: Its bytes.
    """

    @property
    def size(self) -> int: ...  # noqa: D102  # see the class

    @property
    def state(self) -> State:
        """How it is read just now."""
        ...

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when they can be had at once, verified, else None.

        Raises:
            ValueError: when the range is not within the file.
        """
        ...

    def begin_read(self, start: int, stop: int) -> PendingRead | None:
        """Begin a read without waiting; None where only `read` can do it.

        Raises:
            ValueError: when the range is not within the file.
        """
        ...

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``, verified; may wait for the disk, or for a layer to be decoded.

        Raises:
            LayerCorrupt: when the stored bytes are not those that were verified.
            KitfsError, OSError: when the store or the disk fails.
            ValueError: when the range is not within the file.
        """
        ...


class LayerReader:
    """Opens the members of one layer; a context manager.

    Attributes:
        layer: The layer's blob.
        record: What the store knows of it.
        toc: Its members.
        materialise: When its members get files of their own.
    """

    def __init__(self, store: Store, layer: Digest, *, materialise: Materialise = Materialise.AUTO) -> None:
        """Read the layer's table of contents.

        Raises:
            LayerNotIndexed: when it has none.
            LayerCorrupt: when its checksums or checkpoints are not those of its table of contents.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        record = store.find_layer(layer)
        if record is None:
            raise LayerNotIndexed(layer)
        self.layer = layer
        self.record = record
        self.toc = store.open_toc(layer)
        self.materialise = materialise
        self._store = store
        self._materialiser: Materialiser | None = None
        self._source: BlobSource | None = None
        self._lazy: LazyLayer | None = None
        if record.compression != Compression.NONE:
            self._materialiser = Materialiser(store, layer, record, self.toc)
            if record.checkpoint_values:
                self._lazy = LazyLayer(store, layer, record, self.toc)
            return
        self._first_spans = first_spans(self.toc)
        self._checksums = store.span_checksums(layer)
        if len(self._checksums) != self._first_spans[-1] * CHECKSUM_SIZE:
            reason = f"{len(self._checksums)} bytes of span checksums for {self._first_spans[-1]} spans"
            raise LayerCorrupt(layer, member=None, span=None, offset=0, reason=reason)
        self._source = BlobSource(store, layer)
        self._is_split = record.format == "tar" and is_split(store, layer)

    def open_member(self, index: int) -> MemberReader:
        """Open a file for reading; a short look at the index at most, nothing is decoded.

        Raises:
            NotAFile: when it is a directory.
            IndexError: when there is no such member.
            BlobNotFound: when the layer is gone.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        member = self.toc[index]
        if member.kind != KIND_FILE:
            raise NotAFile(self.layer, index)
        if self._source is not None:
            spans = self._open_plain(self._source, member, index)
            if isinstance(spans, SplitMember) or self.record.format == "raw":
                return spans
            return PlainMember(self._store, self, member, spans, self.materialise)
        if self._lazy is not None:
            return LazyMember(self._store, self._lazy, member, index, self.materialise)
        assert self._materialiser is not None
        file = MemberFileReader(self._store, self._materialiser, self.layer, member, index)
        if self.materialise is Materialise.ALWAYS and file.state == "lazy" and member.digest is not None:
            self._materialiser.begin(Digest.from_raw(member.digest))
        return file

    def open_spans(self, index: int, *, is_sequential: bool = False) -> SpanReader | None:
        """Open a file of a plain layer to read it from the layer's blob alone; None where it does not lie in one.

        Args:
            index: Which.
            is_sequential: Whether it is read from its start to its end: then with a descriptor of its own, for the
                kernel reads ahead by descriptor, and two files read in turn through one are two that jump.

        Raises:
            BlobNotFound: when the layer is gone.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        source = BlobSource(self._store, self.layer) if is_sequential and self._source else self._source
        spans = None if source is None else self._open_plain(source, self.toc[index], index)
        return spans if isinstance(spans, SpanReader) else None

    def open_checked(self, index: int) -> SpanReader | None:
        """Open a file of a plain layer so that all is compared with its checksums, a trusted file's bytes too.

        None where there are none: the layer is compressed.

        Raises:
            NotAFile: when it is a directory.
            BlobNotFound: when the layer is gone.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        if self._source is None:
            return None
        member = self.toc[index]
        if member.kind != KIND_FILE:
            raise NotAFile(self.layer, index)
        opened = self._open_plain(self._source, member, index)
        return opened.spans if isinstance(opened, SplitMember) else opened

    @property
    def is_split(self) -> bool:
        """Whether each member has a file of its own, and the layer none."""
        return self._source is not None and self._is_split

    def _open_plain(self, source: BlobSource, member: TocMember, index: int) -> SpanReader | SplitMember:
        first = self._first_spans[index] * CHECKSUM_SIZE
        stop = self._first_spans[index + 1] * CHECKSUM_SIZE
        checksums = memoryview(self._checksums)[first:stop]
        if not self._is_split:
            self._open_blob(source)
        if self._is_split:
            return SplitMember(self._store, self.layer, member, index, checksums)
        return SpanReader(source, member, index, checksums, is_whole_blob=self.record.format == "raw")

    def warm(self) -> None:
        """Start the threads that decode, where the layer needs them: the first reader need not wait for that."""
        if self._lazy is not None:
            shared_pool().start()

    def find_state(self, index: int) -> State:
        """How a member would be read now; nothing is opened or begun.

        Raises:
            IndexError: when there is no such member.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        member = self.toc[index]
        if self._source is not None and not self._is_split:
            return "native" if self.record.format == "raw" or not member.size else "lazy"
        if not member.size or (member.digest and self._store.is_member_trusted(Digest.from_raw(member.digest))):
            return "native"
        if self._lazy is not None:
            return "partial" if self._lazy.has_partial(index) else "lazy"
        return "partial" if self._materialiser is not None and self._materialiser.is_running else "lazy"

    def find_backing(self, index: int, *, renew: bool = False) -> Backing | None:
        """The plain file that holds a member and nothing else, as long as it is trusted; counts as a use of it.

        Args:
            index: Which.
            renew: Whether a member's file that is not as it was when it was verified is hashed, which takes its time,
                and trusted again when its bytes are right.

        Raises:
            IndexError: when there is no such member.
            RecordCorrupt, IndexFailed, IndexCorrupt, StoreWriteFailed: when the index can not tell.
        """
        member = self.toc[index]
        if self._source is not None and self.record.format == "raw":
            return self._store.find_backing("blobs", self.layer)
        if member.digest is None:
            return None
        digest = Digest.from_raw(member.digest)
        found = self._store.find_backing("members", digest)
        if found is None and renew and self._store.restamp_member(digest):
            found = self._store.find_backing("members", digest)
        if found is not None:
            self._store.note_use(digest)
        return found

    @property
    def is_materialisable(self) -> bool:
        """Whether members get files of their own; those of a plain layer are read from its blob."""
        return self._materialiser is not None

    @property
    def spans(self) -> LazyLayer | None:
        """What decodes its spans, where it is compressed and has checkpoints."""
        return self._lazy

    @property
    def is_decoded_whole(self) -> bool:
        """Whether materialising one member means to decode the layer from its start, and makes files of all."""
        return self._materialiser is not None and self._lazy is None

    def materialise_member(self, index: int, advance: Callable[[int], None]) -> None:
        """Make a member of a compressed layer a file now, whatever the policy; may be interrupted between spans.

        On disk when this returns: the member's file, verified and recorded, unless there was no room for it or it
        was evicted since (`open_member` tells).

        Args:
            index: The member.
            advance: Told of bytes that are done.

        Raises:
            LayerCorrupt: when the layer does not give the member's bytes.
            KitfsError, OSError: when the store or the disk fails.
        """
        member = self.toc[index]
        if self._lazy is not None:
            LazyMember(self._store, self._lazy, member, index, self.materialise).materialise(advance)
            return
        assert self._materialiser is not None  # see is_materialisable
        assert member.digest is not None  # files have one
        self._materialiser.materialise(Digest.from_raw(member.digest))
        advance(member.size)

    def _open_blob(self, source: BlobSource) -> None:
        try:
            source.open()
        except (BlobIsSplit, BlobNotFound):
            self._is_split = self.record.format == "tar" and is_split(self._store, self.layer)
            if not self._is_split:  # else an import has stored it anew, in parts
                raise

    def close(self) -> None:
        """Stop decoding, unless another reader of the layer waits for it; open members can still be read.

        A member of a compressed layer that is not stored yet can not be read any more.
        """
        if self._lazy is not None:
            self._lazy.close()
        if self._source is not None:
            shared_finisher().drop(self)
        if self._materialiser is not None:
            self._materialiser.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
