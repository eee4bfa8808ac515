"""Image indexes as blobs of the store: made of what it has recorded of a layer, or of the layer's bytes.

Used by pack and import beside a layer, and by what mends and verifies a store. An image index is derived: it can be
made anew as long as its layer is there, and has the same digest then. On disk when `add_image_index` returns: the
blob, held by the lease, in the index once the change is committed; a manifest that names it in its record keeps it.
"""

from __future__ import annotations

from kitfs.digest import Digest, Digester
from kitfs.layer.checkpoints import is_current
from kitfs.layer.image_index import SIZE_MAX, iter_image_index
from kitfs.layer.indexer import LayerIndex
from kitfs.oci.mediatype import LAYER_INDEX, Compression, LayerFormat
from kitfs.store.change import Change
from kitfs.store.errors import BlobCorrupt, BlobNotFound, LayerNotIndexed
from kitfs.store.lease import Lease
from kitfs.store.reads import StoreReads
from kitfs.store.records import LayerRecord
from kitfs.store.store import Store


def add_image_index(
    store: Store,
    lease: Lease,
    change: Change,
    layer: LayerIndex,
    *,
    origin: str = "here",
    expected: Digest | None = None,
) -> Digest | None:
    """Store the image index of a layer; None, and nothing stored, for one that is not as expected or too large to read.

    Args:
        store: Where to.
        lease: Holds the blob from now on.
        change: Records it.
        layer: What indexing the layer found, now or when it was stored.
        origin: Where the ModelKit came from.
        expected: What the layer's descriptor names, where it was made elsewhere.

    Raises:
        StoreWriteFailed, LeaseEnded: when it can not be stored.
    """
    with store.ingest(lease) as ingest:
        for piece in iter_image_index(layer):
            ingest.write(piece)
            if ingest.size > SIZE_MAX:
                return None
        if expected is not None and ingest.digest() != expected:
            return None
        size = ingest.size
        digest = ingest.commit_blob()
    change.add_blob(digest, size, media_type=LAYER_INDEX, origin=origin)
    return digest


def image_index_digest(layer: LayerIndex) -> Digest | None:
    """The digest of a layer's image index; None for one that would be larger than is read."""
    digester = Digester()
    for piece in iter_image_index(layer):
        digester.update(piece)
        if digester.size > SIZE_MAX:
            return None
    return digester.digest()


def get_layer_index(store: StoreReads, layer: Digest) -> LayerIndex:
    """What indexing a layer finds: as it was recorded, or from the layer's bytes where an older kitfs recorded it.

    Raises:
        LayerNotIndexed: when it has no record.
        BlobNotFound, BlobCorrupt: when it is read, and is not there or other bytes.
        LayerMalformed: when it is read, and is not what its record says.
        RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
    """
    record = store.find_layer(layer)
    if record is None:
        raise LayerNotIndexed(layer)
    size = store.get_blob(layer).size
    numbers = range(record.checkpoint_values)
    checkpoints = [store.get_checkpoint_value(layer, number) for number in numbers]
    if not _is_complete(record, size, checkpoints):
        return _index_again(store, layer, record)
    plain = LayerRecord(
        record.diff_id,
        record.format,
        record.compression,
        record.member_count,
        record.size_decoded,
        record.size_members,
    )
    toc, checksums = store.get_toc(layer), store.span_checksums(layer)
    return LayerIndex(layer, size, record.diff_id, record.size_decoded, toc, checksums, checkpoints, plain)


def _is_complete(record: LayerRecord, size: int, checkpoints: list[bytes]) -> bool:
    """Whether a layer would be recorded today as it is; of a compressed one without checkpoints none can tell."""
    if record.compression == Compression.NONE:
        return bool(checkpoints) or not size
    return bool(checkpoints) and is_current(checkpoints[0])


def _index_again(store: StoreReads, layer: Digest, record: LayerRecord) -> LayerIndex:
    from kitfs.layer.reindex import LayerWatcher  # 8 ms that a pack does not need
    from kitfs.store import stored

    file = stored.find_blob(store.layout, layer)
    if file is None:
        raise BlobNotFound(layer)
    watcher = LayerWatcher(LayerFormat(record.format), Compression(record.compression))
    reading = stored.read_whole(store.layout, file, watcher.watch)
    if not reading.is_right:
        raise BlobCorrupt(layer, reading.problem)
    return watcher.finish(layer)
