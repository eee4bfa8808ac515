"""The blobs of one ModelKit on their way into the store: verified, linked, split or copied, and indexed in one pass.

Used by ``importer``. Nothing of it is visible before the caller commits the change; what lies on disk until then
is held by the lease, and GC's afterwards. A blob that the store holds already, recorded and untouched since it
was verified, is held and not read; one whose file looks different is read from the source and put in its place,
which heals it (reliability.md 1, I7). One thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kitfs.digest import Digest, DigestMismatch
from kitfs.errors import MalformedError
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.index_blob import add_image_index, get_layer_index
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.oci.manifest import Descriptor, find_index_digest
from kitfs.oci.mediatype import Compression, LayerFormat, LayerType
from kitfs.progress import Progress, Step
from kitfs.store.change import Change
from kitfs.store.errors import BlobCorrupt, BlobNotFound, CanNotLink, LimitExceeded, RecordCorrupt, SizeMismatch
from kitfs.store.lease import Lease
from kitfs.store.store import Store
from kitfs.transfer.expansion import Expansion
from kitfs.transfer.source import SMALL_SIZE_MAX, Blobs, SourceBlob, SourceMalformed
from kitfs.transfer.tar_scan import is_split_worthy

if TYPE_CHECKING:
    from kitfs.store.ingest import Ingest
    from kitfs.store.split_ingest import SplitIngest


class LayerTypeConflict(MalformedError):
    """A blob that is listed as two kinds of layer, a tar here and plain bytes there; the store knows one."""

    def __init__(self, digest: Digest, known: str, wanted: str) -> None:
        super().__init__(f"layer {digest} is known as {known}, and is listed as {wanted}")
        self.digest = digest
        self.known = known
        self.wanted = wanted


@dataclass
class Counts:
    """What became of the blobs.

    Attributes:
        linked: Blobs that got a second name.
        copied: Blobs that were written.
        kept: Blobs that were there.
        size_copied: Bytes written.
    """

    linked: int = 0
    copied: int = 0
    kept: int = 0
    size_copied: int = 0


class _Watcher:
    """Sees the bytes of one blob pass: counts them for progress and feeds the indexer, if there is one.

    A body that the indexer refuses is read to its end all the same, so that bytes which are not the digest's are
    reported as that and not as a malformed layer.
    """

    def __init__(self, step: Step, digest: Digest, kind: LayerType | None, limits: DecodeLimits) -> None:
        self._step = step
        self._digest = digest
        self._kind = kind
        self._limits = limits
        self.restart()

    def restart(self) -> None:
        """Begin again with the first byte."""
        self._indexer = None
        if self._kind is not None:
            self._indexer = LayerIndexer(
                self._kind.format, self._kind.compression, limits=self._limits, hashes_blob=False
            )
        self._failure: LayerMalformed | None = None
        self.index: LayerIndex | None = None

    @property
    def size_decoded(self) -> int:
        """Decoded bytes so far."""
        return self._indexer.size_decoded if self._indexer is not None else 0

    def feed(self, data: memoryview) -> None:
        """The next bytes."""
        self._step.advance(len(data))
        if self._indexer is not None and self._failure is None:
            try:
                self._indexer.feed(data)
            except LayerMalformed as error:
                self._failure = error

    def finish(self) -> None:
        """All bytes have passed and are the digest's.

        Raises:
            LayerMalformed: when the layer is not what its media type says.
        """
        try:
            if self._failure is not None:
                raise self._failure
            if self._indexer is not None:
                self.index = self._indexer.finish(self._digest)
        except LayerMalformed as error:
            raise LayerMalformed(self._digest, error.offset, error.reason) from error


class Intake:
    """Takes blobs for one change."""

    def __init__(self, store: Store, lease: Lease, change: Change, blobs: Blobs, *, origin: str, copy: bool,
                 progress: Progress, counts: Counts, expansion: Expansion) -> None:  # fmt: skip
        self._store = store
        self._lease = lease
        self._change = change
        self._blobs = blobs
        self._origin = origin
        self._copy = copy
        self._progress = progress
        self._counts = counts
        self._expansion = expansion
        self._layers: dict[Digest, LayerType | None] = {}
        self._found: dict[Digest, LayerIndex] = {}

    def read_small(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest or config, verified; the store is not touched.

        Raises:
            SourceBlobMissing, SourceMalformed: when the source does not have it or it is too large.
            SizeMismatch, DigestMismatch: when it is other bytes.
        """
        with self._open(descriptor) as blob:
            if blob.size > SMALL_SIZE_MAX:
                raise SourceMalformed(f"blob {descriptor.digest}", f"{blob.size} bytes, more than {SMALL_SIZE_MAX}")
            raw = blob.read()
        actual = Digest.of(raw)
        if actual != descriptor.digest:
            raise DigestMismatch(descriptor.digest, actual, f"{descriptor.media_type} in the source")
        return raw

    def take_small(self, descriptor: Descriptor, raw: bytes) -> None:
        """Bring what ``read_small`` gave into the store.

        Raises:
            StoreWriteFailed: when writing failed.
        """
        if self._is_here(descriptor, None):
            self._counts.kept += 1
        else:
            with self._store.ingest(self._lease) as ingest:
                ingest.write(raw)
                ingest.commit_blob(descriptor.digest, descriptor.size)
            self._count_copy(len(raw))
        self._record(descriptor)

    def take_layer(self, descriptor: Descriptor, kind: LayerType | None, name: str) -> None:
        """A layer, verified, in the store, and indexed unless its media type is unknown (``kind`` is None).

        Raises:
            SourceBlobMissing, SourceMalformed: when the source does not have it.
            SizeMismatch, DigestMismatch: when it is other bytes.
            LayerTypeConflict: when it is known as another kind of layer.
            LayerMalformed: when its body is not what its media type says.
            StoreWriteFailed: when writing failed.
        """
        if self._is_taken(descriptor, kind):
            self._record(descriptor)
            return
        step = self._progress.begin(name, descriptor.size)
        if self._is_here(descriptor, kind):
            self._counts.kept += 1
            step.advance(descriptor.size)
        else:
            watcher = _Watcher(step, descriptor.digest, kind, self._expansion.limits())
            try:
                with self._open(descriptor) as blob:
                    self._bring(descriptor, kind, blob, watcher)
            finally:
                self._expansion.spend(descriptor.size, watcher.size_decoded)
            self._add_layer(descriptor.digest, watcher.index)
        self._record(descriptor)
        step.finish()

    def take_image_index(self, layer: Descriptor) -> Digest | None:
        """Make and store the image index of a layer that was taken; None where it is not the one its descriptor names.

        It is made of the layer, which was verified by its digest: whatever the source has under the name is not read.

        Raises:
            BlobCorrupt, LayerMalformed: when the store has the layer without all that it needs, and it can not be read.
            StoreWriteFailed: when writing failed.
        """
        expected = find_index_digest(layer)
        if expected is None or self._layers.get(layer.digest) is None:
            return None
        found = self._found.get(layer.digest) or get_layer_index(self._store, layer.digest)
        return add_image_index(self._store, self._lease, self._change, found, origin=self._origin, expected=expected)

    def _is_taken(self, descriptor: Descriptor, kind: LayerType | None) -> bool:
        """Whether this change has this blob as this kind of layer already; an unknown kind adds nothing."""
        if descriptor.digest not in self._layers:
            self._layers[descriptor.digest] = kind
            return False
        known = self._layers[descriptor.digest]
        if known is None and kind is not None:
            self._layers[descriptor.digest] = kind
            return False
        if known is not None and kind is not None:
            _check_same(descriptor.digest, known.format, known.compression, kind)
        return True

    def _is_here(self, descriptor: Descriptor, kind: LayerType | None) -> bool:
        """Whether the store holds the blob with all records, its file untouched since it was verified."""
        digest = descriptor.digest
        try:
            if self._store.find_blob(digest) is None or (kind is not None and self._store.find_layer(digest) is None):
                return False
            self._store.hold_verified(self._lease, digest)
            # Looked at again once it is held: a GC may have taken all of it before, and another import put the
            # file alone back, which dies before it records the layer.
            layer = self._store.find_layer(digest) if kind else None
            if self._store.find_blob(digest) is None or (kind is not None and layer is None):
                return False
        except (BlobNotFound, BlobCorrupt, RecordCorrupt):
            return False
        if layer is not None and kind is not None:
            _check_same(digest, layer.format, layer.compression, kind)
        return True

    def _open(self, descriptor: Descriptor) -> SourceBlob:
        blob = self._blobs.open_blob(descriptor.digest)
        if blob.size != descriptor.size:
            blob.close()
            raise SizeMismatch(descriptor.size, blob.size, f"blob {descriptor.digest} in the source")
        return blob

    def _bring(self, descriptor: Descriptor, kind: LayerType | None, blob: SourceBlob, watcher: _Watcher) -> None:
        known = self._known_form(descriptor.digest)
        if blob.path is not None and not self._copy and known != "split":
            try:
                self._store.link_blob(self._lease, blob.path, descriptor.digest, watcher)
            except CanNotLink:
                pass
            else:
                self._counts.linked += 1
                return
        is_tar = kind is not None and (kind.format, kind.compression) == (LayerFormat.TAR, Compression.NONE)
        if is_tar and (known == "split" or (known is None and is_split_worthy(blob))):
            try:
                self._split(descriptor, blob, watcher)
            except LimitExceeded:  # its beginning promised otherwise
                watcher.restart()
                self._write(descriptor, blob, watcher)
        else:
            self._write(descriptor, blob, watcher)
        self._count_copy(descriptor.size)

    def _known_form(self, digest: Digest) -> str | None:
        """How the store keeps a blob: what is put right keeps its form, under whoever reads it just now."""
        try:
            record = self._store.find_blob(digest)
        except RecordCorrupt:
            return None
        return None if record is None else record.form

    def _write(self, descriptor: Descriptor, blob: SourceBlob, watcher: _Watcher) -> None:
        with self._store.ingest(self._lease) as ingest:
            for piece in blob.iter_pieces():
                ingest.write(piece)
                watcher.feed(piece)
            _check_bytes(descriptor, ingest)
            watcher.finish()
            ingest.commit_blob(descriptor.digest, descriptor.size)

    def _split(self, descriptor: Descriptor, blob: SourceBlob, watcher: _Watcher) -> None:
        with self._store.split_ingest(self._lease) as ingest:
            for piece in blob.iter_pieces():
                ingest.write(piece)
                watcher.feed(piece)
            _check_bytes(descriptor, ingest)
            watcher.finish()
            assert watcher.index is not None  # a tar has an indexer
            ingest.commit(watcher.index.toc, descriptor.digest, descriptor.size)

    def _add_layer(self, digest: Digest, index: LayerIndex | None) -> None:
        if index is not None:
            self._found[digest] = index
            self._change.add_layer(digest, index.record, index.toc, index.span_checksums, index.checkpoints)

    def _record(self, descriptor: Descriptor) -> None:
        self._change.add_blob(descriptor.digest, descriptor.size, media_type=descriptor.media_type, origin=self._origin)

    def _count_copy(self, size: int) -> None:
        self._counts.copied += 1
        self._counts.size_copied += size


def _check_bytes(descriptor: Descriptor, ingest: Ingest | SplitIngest) -> None:
    if ingest.size != descriptor.size:
        raise SizeMismatch(descriptor.size, ingest.size, f"blob {descriptor.digest} in the source")
    if ingest.digest() != descriptor.digest:
        raise DigestMismatch(descriptor.digest, ingest.digest(), f"{descriptor.media_type} in the source")


def _check_same(digest: Digest, known_format: str, known_compression: str, kind: LayerType) -> None:
    if (known_format, known_compression) != (str(kind.format), str(kind.compression)):
        raise LayerTypeConflict(digest, f"{known_format}+{known_compression}", f"{kind.format}+{kind.compression}")
