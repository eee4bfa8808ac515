"""Blobs, manifests, layers and members inside a transaction: what a change puts and GC deletes, counts kept.

Used by changes, recovery, GC and the facade. Every function takes a ``Txn`` and touches no file. The tables and
their invariants are drawn in ``schema.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kitfs.digest import Digest
from kitfs.store import schema
from kitfs.store.errors import LayerNotIndexed, LimitExceeded, RecordCorrupt
from kitfs.store.index import Txn
from kitfs.store.records import (
    BlobRecord,
    CountRecord,
    LayerRecord,
    ManifestRecord,
    MemberRecord,
    TocMember,
)


def find_blob(txn: Txn, digest: Digest) -> BlobRecord | None:
    """The blob's record, or None.

    Raises:
        RecordCorrupt: when it does not verify.
    """
    return txn.find(schema.BLOBS, digest.raw, BlobRecord)


def find_manifest(txn: Txn, digest: Digest) -> ManifestRecord | None:
    """The manifest's record, or None.

    Raises:
        RecordCorrupt: when it does not verify.
    """
    return txn.find(schema.MANIFESTS, digest.raw, ManifestRecord)


def find_layer(txn: Txn, digest: Digest) -> LayerRecord | None:
    """The layer's record, or None.

    Raises:
        RecordCorrupt: when it does not verify.
    """
    return txn.find(schema.LAYERS, digest.raw, LayerRecord)


def find_member(txn: Txn, digest: Digest) -> MemberRecord | None:
    """The member's record, or None.

    Raises:
        RecordCorrupt: when it does not verify.
    """
    return txn.find(schema.MEMBERS, digest.raw, MemberRecord)


def toggle_count(txn: Txn, name: bytes, element: bytes, difference: int) -> None:
    """Keep a count in step with one element added (1) or removed (-1).

    Raises:
        RecordCorrupt: when the count does not verify.
    """
    count = txn.find(schema.COUNTS, name, CountRecord) or CountRecord()
    txn.put(schema.COUNTS, name, count.toggled(element, difference))


def put_manifest(txn: Txn, digest: Digest, record: ManifestRecord) -> None:
    """Record a manifest, new or again.

    Raises:
        RecordCorrupt: when the count does not verify.
    """
    if not txn.contains(schema.MANIFESTS, digest.raw):
        toggle_count(txn, schema.COUNT_MANIFESTS, digest.raw, 1)
    txn.put(schema.MANIFESTS, digest.raw, record)


def delete_manifest(txn: Txn, digest: Digest) -> None:
    """Forget a manifest; its blob is another matter.

    Raises:
        RecordCorrupt: when the count does not verify.
    """
    if txn.delete(schema.MANIFESTS, digest.raw):
        toggle_count(txn, schema.COUNT_MANIFESTS, digest.raw, -1)


def put_layer(
    txn: Txn,
    digest: Digest,
    record: LayerRecord,
    toc: Sequence[TocMember],
    span_checksums: bytes,
    checkpoints: Sequence[bytes] = (),
) -> None:
    """Record a layer with its table of contents and how it is read, in place of what was recorded.

    Raises:
        LimitExceeded: when it has more batches than a sequence number counts.
    """
    delete_layer(txn, digest)
    record = msgspec.structs.replace(
        record,
        member_count=len(toc),
        span_checksums_size=len(span_checksums),
        checkpoint_values=len(checkpoints),
    )
    txn.put(schema.LAYERS, digest.raw, record)
    batches = -(-len(toc) // schema.TOC_BATCH)
    if batches > schema.SEQUENCE_MAX:
        raise LimitExceeded("the number of members of a layer", len(toc), schema.SEQUENCE_MAX * schema.TOC_BATCH)
    for sequence in range(batches):
        start = sequence * schema.TOC_BATCH
        key = schema.encode_sequence_key(digest, sequence)
        txn.put(schema.TOCS, key, list(toc[start : start + schema.TOC_BATCH]))
    starts = range(0, len(span_checksums), schema.CHECKPOINT_BATCH_SIZE)
    values = [span_checksums[start : start + schema.CHECKPOINT_BATCH_SIZE] for start in starts]
    for sequence, value in enumerate((*values, *checkpoints)):
        txn.put(schema.CHECKPOINTS, schema.encode_sequence_key(digest, sequence), value)


def delete_layer(txn: Txn, digest: Digest) -> None:
    """Forget a layer, its table of contents, checksums and checkpoints; its blob is another matter."""
    txn.delete(schema.LAYERS, digest.raw)
    for table in (schema.TOCS, schema.CHECKPOINTS):
        for key in [key for key, _ in txn.iter_raw(table, digest.raw + b"\0")]:
            txn.delete(table, key)


def get_toc(txn: Txn, digest: Digest) -> list[TocMember]:
    """All members of a layer, in tar order.

    Raises:
        LayerNotIndexed: when the layer has no record.
        RecordCorrupt: when a batch does not verify or is not there.
    """
    layer = find_layer(txn, digest)
    if layer is None:
        raise LayerNotIndexed(digest)
    members: list[TocMember] = []
    for sequence, (key, batch) in enumerate(txn.iter(schema.TOCS, list[TocMember], digest.raw + b"\0")):
        if key != schema.encode_sequence_key(digest, sequence):
            raise RecordCorrupt(schema.TOCS, key, f"batch {sequence} is not there")
        members += batch
    if len(members) != layer.member_count:
        reason = f"{len(members)} members of {layer.member_count} are there"
        raise RecordCorrupt(schema.TOCS, digest.raw, reason)
    return members


def get_span_checksums(txn: Txn, digest: Digest) -> bytes:
    """The span checksums of a layer's files, 16 bytes each, in TOC order.

    Raises:
        LayerNotIndexed: when the layer has no record.
        RecordCorrupt: when a batch does not verify or is not there.
    """
    layer = find_layer(txn, digest)
    if layer is None:
        raise LayerNotIndexed(digest)
    joined = b"".join(
        txn.find(schema.CHECKPOINTS, schema.encode_sequence_key(digest, sequence), bytes) or b""
        for sequence in range(_batches(layer))
    )
    if len(joined) != layer.span_checksums_size:
        reason = f"{len(joined)} bytes of {layer.span_checksums_size} are there"
        raise RecordCorrupt(schema.CHECKPOINTS, digest.raw, reason)
    return joined


def get_checkpoint_value(txn: Txn, digest: Digest, number: int) -> bytes:
    """One of the values of a layer's checkpoints.

    Raises:
        LayerNotIndexed: when the layer has no record.
        RecordCorrupt: when the value does not verify or is not there.
    """
    layer = find_layer(txn, digest)
    if layer is None:
        raise LayerNotIndexed(digest)
    key = schema.encode_sequence_key(digest, _batches(layer) + number)
    value = txn.find(schema.CHECKPOINTS, key, bytes) if 0 <= number < layer.checkpoint_values else None
    if value is None:
        raise RecordCorrupt(schema.CHECKPOINTS, key, f"value {number} of {layer.checkpoint_values} is not there")
    return value


def check_layer(txn: Txn, digest: Digest) -> None:
    """See that everything recorded of a layer is there and verifies.

    Raises:
        LayerNotIndexed: when the layer has no record.
        RecordCorrupt: when a part does not verify or is not there.
    """
    get_toc(txn, digest)
    get_span_checksums(txn, digest)
    layer = find_layer(txn, digest)
    for number in range(layer.checkpoint_values if layer else 0):
        get_checkpoint_value(txn, digest, number)


def _batches(layer: LayerRecord) -> int:
    """Values of its span checksums, which come before those of its checkpoints."""
    return -(-layer.span_checksums_size // schema.CHECKPOINT_BATCH_SIZE)
