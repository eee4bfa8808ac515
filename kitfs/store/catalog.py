"""Blobs, manifests, layers and members inside a transaction: what a change puts and GC deletes, counts kept.

Used by changes, recovery, GC and the facade. Every function takes a ``Txn`` and touches no file. The tables and
their invariants are drawn in ``schema.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence

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
    MemberTotal,
    TocMember,
    parse_value,
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


def get_member_total(txn: Txn) -> MemberTotal:
    """How many members can be made anew, and their bytes; added up where nobody has yet, or the note is corrupt."""
    try:
        total = txn.find(schema.COUNTS, schema.MEMBER_TOTAL, MemberTotal)
    except RecordCorrupt:
        total = None
    return count_members(txn) if total is None else total


def count_members(txn: Txn) -> MemberTotal:
    """The members' total as the table has it; records that do not verify are left out."""
    count = size = 0
    for key, value in txn.iter_raw(schema.MEMBERS):
        with contextlib.suppress(RecordCorrupt):
            record = parse_value(schema.MEMBERS, key, value, MemberRecord)
            count += _counts(record)
            size += _counts(record) * record.size
    return MemberTotal(count, size)


def _counts(record: MemberRecord | None) -> int:
    return int(record is not None and not record.pins)


def put_members(txn: Txn, records: Mapping[Digest, MemberRecord]) -> None:
    """Record members, new or again; the total follows."""
    _change_members(txn, records)


def delete_members(txn: Txn, digests: Iterable[Digest]) -> None:
    """Forget members; their files are another matter. The total follows."""
    _change_members(txn, dict.fromkeys(digests))


def _change_members(txn: Txn, records: Mapping[Digest, MemberRecord | None]) -> None:
    total = get_member_total(txn)
    count, size = total.count, total.size
    is_unsure = False
    for digest, record in records.items():
        try:
            old = find_member(txn, digest)
        except RecordCorrupt:
            old, is_unsure = None, True
        count += _counts(record) - _counts(old)
        size += (record.size if record and _counts(record) else 0) - (old.size if old and _counts(old) else 0)
        if record is None:
            txn.delete(schema.MEMBERS, digest.raw)
        else:
            txn.put(schema.MEMBERS, digest.raw, record)
    total = count_members(txn) if is_unsure else MemberTotal(count, size)
    txn.put(schema.COUNTS, schema.MEMBER_TOTAL, total)


def touch_member(txn: Txn, digest: Digest, used_s: int) -> None:
    """Note that a member was used; one that is gone, or whose record does not verify, is passed over."""
    with contextlib.suppress(RecordCorrupt):
        record = find_member(txn, digest)
        if record is not None and record.last_used_s < used_s:
            txn.put(schema.MEMBERS, digest.raw, msgspec.structs.replace(record, last_used_s=used_s))


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
    outline: Sequence[bytes] = (),
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
        outline_values=len(outline),
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
    for sequence, value in enumerate(outline):
        txn.put(schema.OUTLINES, schema.encode_sequence_key(digest, sequence), value)


def delete_layer(txn: Txn, digest: Digest) -> None:
    """Forget a layer, its table of contents, checksums and checkpoints; its blob is another matter."""
    txn.delete(schema.LAYERS, digest.raw)
    for table in (schema.TOCS, schema.CHECKPOINTS, schema.OUTLINES):
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


def get_toc_batch(txn: Txn, digest: Digest, sequence: int) -> list[TocMember]:
    """One of the batches of a layer's table of contents.

    Raises:
        RecordCorrupt: when it does not verify or is not there.
    """
    key = schema.encode_sequence_key(digest, sequence)
    batch = txn.find(schema.TOCS, key, list[TocMember])
    if batch is None:
        raise RecordCorrupt(schema.TOCS, key, f"batch {sequence} is not there")
    return batch


def get_outline_value(txn: Txn, digest: Digest, number: int) -> bytes:
    """One of the values of a layer's outline.

    Raises:
        RecordCorrupt: when it does not verify or is not there.
    """
    key = schema.encode_sequence_key(digest, number)
    value = txn.find(schema.OUTLINES, key, bytes)
    if value is None:
        raise RecordCorrupt(schema.OUTLINES, key, f"value {number} is not there")
    return value


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
    for number in range(layer.outline_values if layer else 0):
        get_outline_value(txn, digest, number)


def _batches(layer: LayerRecord) -> int:
    """Values of its span checksums, which come before those of its checkpoints."""
    return -(-layer.span_checksums_size // schema.CHECKPOINT_BATCH_SIZE)
