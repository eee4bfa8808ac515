"""Changes: what becomes visible in the store does so together, or not at all.

Used by import, pack, tag, remove and materialising. ``commit`` is steps 5 and 6 of store.md 2. A change that
has both records and tags is two transactions around the log::

    txn 1   blobs, layers, manifests, members     whole content that no tag names: harmless, GC's if we die here
    log     the line of tags.log, fsynced         from here on the next opening finishes the change
    txn 2   tags, position in the log             acknowledged

so that whatever a log line names has its records before the line is written, tables of contents included, which
could not be made again here. Members of a split blob are recorded, and pinned, in the transaction that records it. A
second commit costs 0.2 ms. The line is written inside txn 2, whose holder is the only writer of the log in all
processes. One change is one thread's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.store import catalog, durable, gate, pins, schema, tags, tags_log
from kitfs.store.errors import (
    BlobNotFound,
    LimitExceeded,
    ManifestIncomplete,
    MemberNotFound,
    RecordCorrupt,
    SizeMismatch,
)
from kitfs.store.index import Index, Txn
from kitfs.store.layout import Layout
from kitfs.store.lease import Lease, Placement
from kitfs.store.outline import MEMBERS_MIN, encode_outline
from kitfs.store.recipe import Recipe, read_recipe
from kitfs.store.records import (
    BlobForm,
    BlobRecord,
    LayerRecord,
    LogPosition,
    ManifestRecord,
    MemberRecord,
    Record,
    Stamp,
    TagRecord,
    TocMember,
)
from kitfs.store.stamp import find_status, is_settled, settle, stamp_of
from kitfs.store.tags_log import LogLine, LogSet


@dataclass(slots=True)
class _Blob:
    size: int
    media_type: str
    origin: str
    form: BlobForm | None


@dataclass(slots=True)
class _Layer:
    record: LayerRecord
    toc: Sequence[TocMember]
    span_checksums: bytes
    checkpoints: Sequence[bytes]
    outline: Sequence[bytes]


@dataclass(slots=True)
class _Member:
    size: int
    stamp: Stamp | None


@dataclass(slots=True)
class _Pending:
    blobs: dict[Digest, _Blob] = field(default_factory=dict)
    layers: dict[Digest, _Layer] = field(default_factory=dict)
    manifests: dict[Digest, ManifestRecord] = field(default_factory=dict)
    members: dict[Digest, _Member] = field(default_factory=dict)
    set: list[tuple[str, str, Digest, str]] = field(default_factory=list)
    unmoved: list[tuple[str, str]] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)
    pins: dict[Digest, list[Digest]] = field(default_factory=dict)

    def has_records(self) -> bool:
        return bool(self.blobs or self.layers or self.manifests or self.members)


class Change:
    """A set of records and tag changes; get it from ``Store.change``. Nothing shows before ``commit``."""

    def __init__(self, index: Index, lease: Lease) -> None:
        self._index = index
        self._lease = lease
        self._layout = lease.layout
        self._pending = _Pending()

    def add_blob(
        self, digest: Digest, size: int, *, media_type: str = "", origin: str = "here", form: BlobForm | None = None
    ) -> None:
        """Record a blob whose file is in place; the lease holds it from now on.

        Args:
            digest: Its digest.
            size: Its size; the file, or the recipe of a split one, must have it when the change is committed.
            media_type: Under which it was seen; added to those that are recorded.
            origin: Where it came from.
            form: How its file came to be, where neither this lease nor an earlier record knows.

        Raises:
            BlobNotFound: when there is no such file.
            StoreWriteFailed, LeaseEnded: when it can not be held.
        """
        self._lease.hold(digest)
        self._pending.blobs[digest] = _Blob(size, media_type, origin, form)

    def add_layer(
        self,
        digest: Digest,
        record: LayerRecord,
        toc: Sequence[TocMember],
        span_checksums: bytes,
        checkpoints: Sequence[bytes] = (),
    ) -> None:
        """Record what the indexing pass over a layer found; its blob is added too, or recorded already.

        Args:
            digest: The layer's blob.
            record: What it is.
            toc: Its members, in tar order.
            span_checksums: Checksums of its spans, 16 bytes each.
            checkpoints: Values of about 256 KiB at most that say where a compressed layer can be entered; the store
                does not look into them.
        """
        outline = encode_outline(toc) if len(toc) > MEMBERS_MIN else ()
        self._pending.layers[digest] = _Layer(record, toc, span_checksums, checkpoints, outline)

    def add_manifest(self, digest: Digest, record: ManifestRecord) -> None:
        """Record that a blob is a manifest; config and layers are added too, or recorded already."""
        self._pending.manifests[digest] = record

    def add_member(self, digest: Digest, size: int, stamp: Stamp | None = None) -> None:
        """Record a member whose file is in place; the lease holds it from now on.

        Args:
            digest: Its digest.
            size: Its size; the file must have it when the change is committed.
            stamp: What the file looked like when it was verified, where this lease did not place it.

        Raises:
            MemberNotFound: when there is no such file.
            StoreWriteFailed, LeaseEnded: when it can not be held.
        """
        try:
            self._lease.hold(digest)
        except BlobNotFound:
            raise MemberNotFound(digest) from None
        self._pending.members[digest] = _Member(size, stamp)

    def set_tag(self, repository: str, tag: str, manifest: Digest, origin: str = "here", *, moves: bool = True) -> None:
        """Make a tag, or move it; the lease holds the manifest from now on.

        Args:
            repository: Its repository.
            tag: Its name there.
            manifest: What it names.
            origin: Where that came from.
            moves: Whether it may be there; if not, ``commit`` raises ``TagTaken`` when it is.

        Raises:
            BlobNotFound: when the manifest's file is not there.
            LimitExceeded: when the name is longer than the index takes.
            StoreWriteFailed, LeaseEnded: when it can not be held.
        """
        _check_tag(repository, tag)
        self._lease.hold(manifest)
        self._pending.set.append((repository, tag, manifest, origin))
        if not moves:
            self._pending.unmoved.append((repository, tag))

    def remove_tag(self, repository: str, tag: str) -> None:
        """Remove a tag; ``commit`` raises ``TagNotFound`` when it is not there. Sets come after removals."""
        _check_tag(repository, tag)
        self._pending.removed.append((repository, tag))

    def commit(self) -> None:
        """Make it all visible; on disk when this returns. A change commits once.

        Raises:
            BlobNotFound, MemberNotFound, SizeMismatch: when a file is not there or not whole.
            BlobCorrupt: when a recipe does not verify.
            ManifestIncomplete: when a manifest's config or layer is not recorded.
            ManifestNotFound: when a tag's manifest is not recorded.
            TagNotFound: when a tag to remove is not there.
            TagTaken: when a tag that must not be moved is there.
            IndexFull, IndexFailed, StoreWriteFailed: when writing failed. Tags are then as they were; records of
                content without a tag may be there.
        """
        pending, self._pending = self._pending, _Pending()
        self._lease.check_open()
        now_s = int(time.time())
        if pending.has_records():
            self._commit_records(pending, now_s)
        if pending.set or pending.removed:
            self._commit_tags(pending, now_s)

    def _commit_records(self, pending: _Pending, now_s: int) -> None:
        with self._index.read() as txn:
            recipes = self._take_recipes(txn, pending)
            self._sync_names(txn, pending)
            for digest, member in pending.members.items():
                old = _find_verified(txn, schema.MEMBERS, digest, MemberRecord)
                member.stamp = member.stamp or (old.stamp if old else None)
        for digest in pending.members:
            if digest in self._lease.member_placements:
                settle(self._lease.member_placements[digest].stamp)
        for digest, layer in pending.layers.items():  # a raw layer that has a stamp can be passed through
            if (layer.record.format, layer.record.compression) == ("raw", "none") and digest in self._lease.placements:
                settle(self._lease.placements[digest].stamp)
        # Who drops a member does so inside the exclusive gate: none goes between the look at it and its pin.
        with gate.shared(self._layout.gc_lock) if pending.pins else contextlib.nullcontext():
            blobs = {digest: self._check_blob(digest, blob, recipes) for digest, blob in pending.blobs.items()}
            members = {digest: self._check_member(digest, member) for digest, member in pending.members.items()}
            with self._index.write() as txn:
                for digest, blob in pending.blobs.items():
                    self._put_blob(txn, digest, blob, blobs[digest], now_s)
                records: dict[Digest, MemberRecord] = {}
                for digest, member in pending.members.items():
                    old = _find_verified(txn, schema.MEMBERS, digest, MemberRecord)
                    merged = pins.merge_pins(old, pending.pins.get(digest, ()))
                    records[digest] = MemberRecord(member.size, "native", now_s, members[digest], merged)
                if records:
                    catalog.put_members(txn, records)
                _put_layers(txn, pending)
                _put_manifests(txn, pending)

    def _take_recipes(self, txn: Txn, pending: _Pending) -> dict[Digest, Recipe | None]:
        """The split blobs, with recipes where they are not recorded as such: their members join the change."""
        recipes: dict[Digest, Recipe | None] = {}
        for digest, blob in pending.blobs.items():
            placement = self._lease.placements.get(digest)
            old = _find_verified(txn, schema.BLOBS, digest, BlobRecord)
            if _form(blob, placement, old, self._layout, digest) != "split":
                continue
            recipes[digest] = None
            if placement or old is None:
                recipe = recipes[digest] = read_recipe(self._layout, digest)
                for member, size in recipe.sizes().items():
                    pending.members.setdefault(member, _Member(size, None))
                    pending.pins.setdefault(member, []).append(digest)
        return recipes

    def _sync_names(self, txn: Txn, pending: _Pending) -> None:
        """Sync directories of files found unrecorded: who renamed them there may have died before doing so."""
        folders = {
            folder
            for digest in pending.blobs
            for folder in (self._layout.blob(digest).parent, self._layout.recipe(digest).parent)
            if digest not in self._lease.placements and not txn.contains(schema.BLOBS, digest.raw)
        }
        folders |= {
            self._layout.member(digest).parent
            for digest in pending.members
            if digest not in self._lease.member_placements and not txn.contains(schema.MEMBERS, digest.raw)
        }
        for folder in folders:
            durable.sync_directory(folder)

    def _check_blob(self, digest: Digest, blob: _Blob, recipes: dict[Digest, Recipe | None]) -> Stamp | None:
        placement = self._lease.placements.get(digest)
        status = find_status(self._layout.recipe(digest) if digest in recipes else self._layout.blob(digest))
        if status is None:
            raise BlobNotFound(digest)
        size, recipe = status.st_size, recipes.get(digest)
        if digest in recipes:
            size = recipe.size if recipe is not None else blob.size  # its record was made with the right one
        if size != blob.size:
            raise SizeMismatch(blob.size, size, f"blob {digest}")
        if placement is None:
            return None
        stamp = stamp_of(status)
        return stamp if stamp == placement.stamp and is_settled(stamp, time.time_ns()) else None

    def _check_member(self, digest: Digest, member: _Member) -> Stamp | None:
        path = self._layout.member(digest)
        placement = self._lease.member_placements.get(digest)
        if placement is not None:
            settle(placement.stamp)
        status = find_status(path)
        if status is None:
            raise MemberNotFound(digest)
        if status.st_size != member.size:
            raise SizeMismatch(member.size, status.st_size, f"member {digest}")
        verified = placement.stamp if placement is not None else member.stamp
        stamp = stamp_of(status)
        return stamp if stamp == verified and is_settled(stamp, time.time_ns()) else None

    def _put_blob(self, txn: Txn, digest: Digest, blob: _Blob, stamp: Stamp | None, now_s: int) -> None:
        old = _find_verified(txn, schema.BLOBS, digest, BlobRecord)
        placement = self._lease.placements.get(digest)
        media_types = list(old.media_types) if old else []
        if blob.media_type and blob.media_type not in media_types:
            media_types.append(blob.media_type)
        record = BlobRecord(
            size=blob.size,
            form=_form(blob, placement, old, self._layout, digest),
            media_types=media_types[: schema.MEDIA_TYPES_MAX],
            origin=old.origin if old else blob.origin,
            added_s=old.added_s if old else now_s,
            last_used_s=now_s,
            stamp=stamp if placement or old is None else old.stamp,
        )
        txn.put(schema.BLOBS, digest.raw, record)
        if old is not None and old.form == "split" and record.form != "split":
            pins.unpin_members(txn, [digest])

    def _commit_tags(self, pending: _Pending, now_s: int) -> None:
        start = stop = -1
        path = self._layout.tags_log
        try:
            with self._index.write() as txn:
                tags.catch_up(txn, self._layout)
                for repository, tag in pending.removed:
                    tags.delete_tag(txn, repository, tag)
                for repository, tag in pending.unmoved:
                    tags.check_free(txn, repository, tag)
                for repository, tag, manifest, origin in pending.set:
                    tags.put_tag(txn, TagRecord(manifest, origin, now_s, repository, tag))
                entries = [
                    LogSet(repository, tag, str(digest), origin) for repository, tag, digest, origin in pending.set
                ]
                start, stop = tags_log.append(path, LogLine(now_s, entries, pending.removed))  # step 5
                txn.put(schema.COUNTS, schema.LOG_POSITION, LogPosition(stop))
            # step 6: the transaction is on disk
        except BaseException:
            if stop >= 0:
                self._take_back(start, stop)
            raise

    def _take_back(self, start: int, stop: int) -> None:
        """Cut our line off the log after a failed commit, unless somebody has applied it or written after it."""
        with contextlib.suppress(KitfsError, OSError), self._index.write() as txn:
            if tags.log_position(txn) <= start and tags_log.size_of(self._layout.tags_log) == stop:
                tags_log.cut(self._layout.tags_log, start)


def _find_verified(txn: Txn, table: str, digest: Digest, kind: type[Record]) -> Record | None:
    """The record that is there; a corrupt one counts as none, and is replaced by what the file tells."""
    try:
        return txn.find(table, digest.raw, kind)
    except RecordCorrupt:
        return None


def _form(blob: _Blob, placement: Placement | None, old: BlobRecord | None, layout: Layout, digest: Digest) -> BlobForm:
    if placement is not None:
        status = find_status(layout.blob(digest)) if placement.form != "split" else None
        if status is not None and status.st_ino != placement.stamp.inode and status.st_nlink > 1:
            return "linked"  # another import has linked it over ours since
        return placement.form
    if old is not None:
        return old.form
    is_split = find_status(layout.blob(digest)) is None and find_status(layout.recipe(digest)) is not None
    return blob.form or ("split" if is_split else "whole")


def _check_tag(repository: str, tag: str) -> None:
    for what, text, limit in (
        ("the size of a repository name", repository, schema.REPOSITORY_SIZE_MAX),
        ("the size of a tag", tag, schema.TAG_SIZE_MAX),
    ):
        if len(text.encode()) > limit:
            raise LimitExceeded(what, len(text.encode()), limit)


def _put_layers(txn: Txn, pending: _Pending) -> None:
    for digest, layer in pending.layers.items():
        if not txn.contains(schema.BLOBS, digest.raw):
            raise BlobNotFound(digest)
        catalog.put_layer(txn, digest, layer.record, layer.toc, layer.span_checksums, layer.checkpoints, layer.outline)


def _put_manifests(txn: Txn, pending: _Pending) -> None:
    for digest, manifest in pending.manifests.items():
        for needed in (digest, manifest.config, *manifest.layers, *manifest.indexes):
            if not txn.contains(schema.BLOBS, needed.raw):
                raise ManifestIncomplete(digest, needed)
        catalog.put_manifest(txn, digest, manifest)
