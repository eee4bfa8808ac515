"""Repairs: what can be made anew is, corrupt blobs are moved aside, nothing that was published is deleted.

Used by ``kitfs fsck --repair``. The index is mended in one transaction inside the exclusive ``gc.lock``; files are
hashed outside of it. What is lost stays lost and is said so; importing the ModelKit again puts it back.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from kitfs.digest import Digest
from kitfs.store import agreement, catalog, durable, fsck, gate, schema
from kitfs.store.errors import RecordCorrupt
from kitfs.store.findings import Finding, FsckReport, Weight
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.pins import restore_pins
from kitfs.store.records import InodeRange, ManifestRecord, NextInode
from kitfs.store.repair_tags import repair_tags

if TYPE_CHECKING:
    from kitfs.store.store import Store

_MEMBER_DAMAGE = frozenset({"missing-member", "stale-member", "wrong-member-digest", "damaged-member"})
_BLOB_DAMAGE = frozenset({"wrong-size", "wrong-digest"})
_MOVED = _BLOB_DAMAGE | {"missing-blob"}
"""Damage after which whatever lies in the blob's place is moved aside: a folder there would keep the blob out."""

_INDEX_DAMAGE = frozenset(
    {
        "corrupt-tags-log",
        "corrupt-record",
        "disagreeing-counts",
        "tag-without-manifest",
        "incomplete-manifest",
        "layer-without-blob",
        "missing-blob",
        "incomplete-layer",
        "wrong-member-total",
        "unrecorded-member",
        "wrong-pins",
    }
)
_DROPPED = _BLOB_DAMAGE | {"missing-blob", "incomplete-layer"}
"""Damage that a repair ends by forgetting what was damaged, which only another import brings back."""

_LAYER_TABLES = frozenset({schema.LAYERS, schema.TOCS, schema.CHECKPOINTS, schema.OUTLINES})
_DROPPED_RECORDS = tuple(f"{table}[" for table in sorted(_LAYER_TABLES))


def repair(store: Store, *, read_data: bool = False) -> FsckReport:
    """Check, repair what can be, and check again.

    * a member whose file is gone or other: its record (and file) go, or it gets a new stamp; one that split blobs need
      stays, and stays lost until an import brings its bytes;
    * pins are made to follow from the recipes; a recipe that is damaged stays, for its members can still be mounted;
    * a blob whose bytes are wrong: its file is moved to ``quarantine/``, its records go; that of an image index is
      forgotten by its ModelKits (``kitfs/modelkit/image_indexes.py`` makes it anew);
    * a record that does not verify goes; manifests and blobs that a tag needs are recorded anew from their files;
    * a layer whose table of contents is damaged is forgotten whole: importing its ModelKit again indexes it;
    * tags and ``tags.log`` are made equal, whichever is damaged; the counts are made equal to the tables.

    Raises:
        IndexFailed, IndexCorrupt, StoreWriteFailed: when reading or writing failed.
    """
    before = fsck.check(store, read_data=read_data)
    damages = {finding.damage for finding in before.problems}
    for finding in before.problems:
        if finding.damage in _MEMBER_DAMAGE:
            store.restamp_member(Digest.parse(finding.name))
    if damages & (_BLOB_DAMAGE | _INDEX_DAMAGE):
        with gate.exclusive(store.layout.gc_lock):
            for finding in before.problems:
                if finding.damage in _MOVED:
                    quarantine_blob(store.layout, Digest.parse(finding.name))
            with store.index.write() as txn:
                _mend(txn, store.layout, before.problems)
    after = fsck.check(store, read_data=read_data)
    left = {(finding.damage, finding.name) for finding in after.problems}
    for finding in before.problems:
        if (finding.damage, finding.name) not in left:
            gone = finding.damage in _DROPPED or finding.name.startswith(_DROPPED_RECORDS)
            gone = gone and finding.weight is Weight.LOST
            (after.findings if gone else after.repaired).append(finding)  # what is lost is said once more
    return after


def quarantine_blob(layout: Layout, digest: Digest) -> None:
    """Move a corrupt blob's file aside, under a name that tells when.

    Raises:
        StoreWriteFailed: when it can not be moved.
    """
    with durable.naming(layout.quarantine, "making"):
        layout.quarantine.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            layout.blob(digest).rename(layout.quarantine / f"{digest.hex}.{time.time_ns()}")
    durable.sync_directory(layout.quarantine)


def _mend(txn: Txn, layout: Layout, problems: list[Finding]) -> None:
    view = fsck.open_view(layout, txn)
    tags_count = (schema.COUNTS, schema.COUNT_TAGS)
    for error in view.corrupt:
        if error.table == schema.TAGS or (error.table, error.key) == tags_count:
            continue  # that they are corrupt tells repair_tags which side to believe
        if error.table in _LAYER_TABLES:
            catalog.delete_layer(txn, Digest.from_raw(error.key[:32]))
        elif error.table != schema.INODE_BASES:
            txn.delete(error.table, error.key)
    for finding in problems:
        if finding.damage in _DROPPED:
            digest = Digest.parse(finding.name)
            if finding.damage == "missing-blob" and digest in view.blobs and view.blobs[digest].form == "split":
                continue  # its members can still be mounted
            if finding.damage != "incomplete-layer":
                txn.delete(schema.BLOBS, digest.raw)
            catalog.delete_layer(txn, digest)
    repair_tags(txn, layout)
    _drop_indexes(txn)
    for digest in view.layers:
        if not txn.contains(schema.BLOBS, digest.raw):
            catalog.delete_layer(txn, digest)
    restore_pins(txn, layout, int(time.time()))
    with contextlib.suppress(RecordCorrupt):
        _restore_next_inode(txn)
    txn.put(schema.COUNTS, schema.MEMBER_TOTAL, catalog.count_members(txn))
    txn.put(schema.COUNTS, schema.COUNT_MANIFESTS, agreement.count_manifests(txn))
    txn.put(schema.COUNTS, schema.COUNT_TAGS, agreement.count_tags(txn))


def _drop_indexes(txn: Txn) -> None:
    """Forget image indexes that have no record any more; who knows layers makes them anew."""
    for key, record in list(txn.iter(schema.MANIFESTS, ManifestRecord)):
        kept = [index for index in record.indexes if txn.contains(schema.BLOBS, index.raw)]
        if kept != record.indexes:
            catalog.put_manifest(txn, Digest.from_raw(key), msgspec.structs.replace(record, indexes=kept))


def _restore_next_inode(txn: Txn) -> None:
    """Note again which number comes after all ranges, where that note is gone."""
    if not txn.contains(schema.COUNTS, schema.NEXT_INODE):
        stops = [record.first + record.count for _, record in txn.iter(schema.INODE_BASES, InodeRange)]
        if stops:
            txn.put(schema.COUNTS, schema.NEXT_INODE, NextInode(max(stops)))
