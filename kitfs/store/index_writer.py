"""Writes an index from what the files of a store were found to hold; the counterpart of ``change.py`` without leases.

Used by ``kitfs/modelkit/rebuild.py`` on an environment that nobody else has open. What is put is on disk when a method
returns, and nobody sees it before ``index_swap.replace_index``. Records are made at one time, ``now_s``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kitfs.digest import Digest
from kitfs.store import catalog, pins, schema, tags
from kitfs.store.index import Index
from kitfs.store.layout import Layout
from kitfs.store.outline import MEMBERS_MIN, encode_outline
from kitfs.store.records import (
    BlobRecord,
    InodeRange,
    LayerRecord,
    LogPosition,
    ManifestRecord,
    MemberRecord,
    NextInode,
    Stamp,
    TagRecord,
    TocMember,
)
from kitfs.store.stored import StoredFile


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """A blob whose bytes are right, and what is known of it.

    Attributes:
        file: Where it lies.
        stamp: What reading it gave to trust it by.
        media_types: What the manifests that name it call it.
        origin: Where it came from.
    """

    file: StoredFile
    stamp: Stamp | None
    media_types: Sequence[str]
    origin: str


@dataclass(frozen=True, slots=True)
class FoundMember:
    """A member that has a file.

    Attributes:
        digest: Its digest.
        size: Its bytes.
        stamp: What reading it gave to trust it by.
        is_right: False for one that a split blob needs and whose bytes are others.
    """

    digest: Digest
    size: int
    stamp: Stamp | None
    is_right: bool = True


class IndexWriter:
    """Fills a fresh index."""

    def __init__(self, index: Index, now_s: int) -> None:
        self._index = index
        self._now_s = now_s

    def put_blobs(self, blobs: Iterable[FoundBlob]) -> None:
        """Record blobs."""
        with self._index.write() as txn:
            for blob in blobs:
                record = BlobRecord(
                    size=blob.file.size,
                    form=blob.file.form,
                    media_types=list(blob.media_types[: schema.MEDIA_TYPES_MAX]),
                    origin=blob.origin,
                    added_s=min(blob.file.changed_s, self._now_s),
                    last_used_s=self._now_s,
                    stamp=blob.stamp,
                )
                txn.put(schema.BLOBS, blob.file.digest.raw, record)

    def put_layer(self, digest: Digest, record: LayerRecord, toc: Sequence[TocMember], span_checksums: bytes,
                  checkpoints: Sequence[bytes]) -> None:  # fmt: skip
        """Record what indexing a layer found."""
        outline = encode_outline(toc) if len(toc) > MEMBERS_MIN else ()
        with self._index.write() as txn:
            catalog.put_layer(txn, digest, record, toc, span_checksums, checkpoints, outline)

    def put_members(self, members: Iterable[FoundMember]) -> None:
        """Record members, without pins."""
        records = {
            member.digest: MemberRecord(member.size, "native", self._now_s, member.stamp)
            if member.is_right
            else MemberRecord(member.size, "damaged", self._now_s)
            for member in members
        }
        with self._index.write() as txn:
            catalog.put_members(txn, records)

    def put_pins(self, layout: Layout) -> None:
        """Pin the members of all split blobs that are recorded, once members are."""
        with self._index.write() as txn:
            pins.restore_pins(txn, layout, self._now_s)

    def put_manifests(self, manifests: Iterable[tuple[Digest, ManifestRecord]]) -> None:
        """Record manifests, first or again."""
        with self._index.write() as txn:
            for digest, record in manifests:
                catalog.put_manifest(txn, digest, record)

    def put_tags(self, records: Iterable[TagRecord], log_size: int) -> None:
        """Record tags whose manifests are recorded, and that all of ``tags.log`` is in them.

        A tag whose manifest is not there stays in the log alone: GC sweeps nothing then, and a check names it.
        """
        with self._index.write() as txn:
            for record in records:
                if txn.contains(schema.MANIFESTS, record.manifest.raw):
                    tags.put_tag(txn, record)
            txn.put(schema.COUNTS, schema.LOG_POSITION, LogPosition(log_size))

    def put_inodes(self, ranges: Iterable[InodeRange], following: int) -> None:
        """Record ranges of inode numbers, and the first number that none of them has or had."""
        with self._index.write() as txn:
            for item in ranges:
                txn.put(schema.INODE_BASES, schema.encode_text_key(item.key), item)
            if following > schema.INODE_FIRST:
                txn.put(schema.COUNTS, schema.NEXT_INODE, NextInode(following))
