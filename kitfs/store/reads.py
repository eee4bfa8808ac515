"""Reading from the store: what the index and the files say, without changing anything.

``StoreReads`` is the reading half of ``Store``; nothing else derives from it. Methods may be called from any
thread, see committed changes only, and never wait for a writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from kitfs.digest import Digest
from kitfs.store import catalog, schema, tags
from kitfs.store.backing import Backing
from kitfs.store.errors import (
    BlobCorrupt,
    BlobIsSplit,
    BlobNotFound,
    BlobTooLarge,
    LayerNotIndexed,
    ManifestNotFound,
    TagNotFound,
)
from kitfs.store.index import Index
from kitfs.store.layout import Layout
from kitfs.store.outline import Outline
from kitfs.store.plain import NotPlain, open_plain
from kitfs.store.records import BlobRecord, LayerRecord, ManifestRecord, MemberRecord, Record, TagRecord, TocMember
from kitfs.store.stamp import find_status, matches
from kitfs.store.toc import Toc

if TYPE_CHECKING:
    from kitfs.store.content import Content

READ_SIZE_MAX = 4 << 20


class StoreReads:
    """What is in a store.

    Attributes:
        home: Its directory.
        layout: Where things lie in it; for the store's own modules, tests and read paths that need a path.
        index: Its LMDB environment; for the store's own modules.
    """

    def __init__(self, layout: Layout, index: Index) -> None:
        self.home = layout.home
        self.layout = layout
        self.index = index

    def find_blob(self, digest: Digest) -> BlobRecord | None:
        """The blob's record, or None.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        with self.index.read() as txn:
            return catalog.find_blob(txn, digest)

    def get_blob(self, digest: Digest) -> BlobRecord:
        """The blob's record.

        Raises:
            BlobNotFound: when there is none.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        record = self.find_blob(digest)
        if record is None:
            raise BlobNotFound(digest)
        return record

    def open_blob(self, digest: Digest) -> int:
        """A descriptor (read only, close on exec) of a blob's file, recorded or only placed yet.

        Its bytes were right when they were stored; who must know that they still are compares the stamp of the
        record (``is_trusted``), or verifies what it reads.

        Raises:
            BlobNotFound: when no file is there.
            BlobCorrupt: when something else lies in its place: a symlink, a folder, a pipe.
            BlobIsSplit: when it is kept as a recipe; ``open_content`` opens either form.
        """
        try:
            return open_plain(self.layout.blob(digest))
        except FileNotFoundError:
            error = BlobIsSplit(digest) if self.layout.recipe(digest).exists() else BlobNotFound(digest)
            raise error from None
        except NotPlain:
            raise BlobCorrupt(digest, "what lies in its place is no plain file") from None

    def open_content(self, digest: Digest) -> Content:
        """A blob's published bytes, by ranges or in order, in whichever form it is kept; a context manager.

        Not verified: who must know that they are the digest's hashes them.

        Raises:
            BlobNotFound: when it is not there.
            BlobCorrupt: when its recipe does not verify.
        """
        from kitfs.store.content import open_content  # a mount reads members

        return open_content(self.layout, digest)

    def read_blob(self, digest: Digest, *, limit: int = READ_SIZE_MAX) -> bytes:
        """A small blob's bytes, verified.

        Raises:
            BlobNotFound: when no file is there.
            BlobTooLarge: when it has more than ``limit`` bytes.
            BlobCorrupt: when its bytes have another digest.
        """
        try:
            fd = self.open_blob(digest)
        except BlobIsSplit:
            data = self._read_split(digest, limit)
        else:
            data = _read_whole(fd, digest, limit)
        actual = Digest.of(data)
        if actual != digest:
            raise BlobCorrupt(digest, f"its {len(data)} bytes have digest {actual}")
        return data

    def _read_split(self, digest: Digest, limit: int) -> bytes:
        with self.open_content(digest) as content:
            if content.size > limit:
                raise BlobTooLarge(digest, content.size, limit)
            return content.read(0, content.size)

    def find_manifest(self, digest: Digest) -> ManifestRecord | None:
        """The manifest's record, or None.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        with self.index.read() as txn:
            return catalog.find_manifest(txn, digest)

    def get_manifest(self, digest: Digest) -> ManifestRecord:
        """The manifest's record.

        Raises:
            ManifestNotFound: when there is none.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        record = self.find_manifest(digest)
        if record is None:
            raise ManifestNotFound(digest)
        return record

    def iter_manifests(self) -> Iterator[tuple[Digest, ManifestRecord]]:
        """All manifests, tagged or not, by digest.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        return self._iter_by_digest(schema.MANIFESTS, ManifestRecord)

    def iter_blobs(self) -> Iterator[tuple[Digest, BlobRecord]]:
        """All blobs, by digest.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        return self._iter_by_digest(schema.BLOBS, BlobRecord)

    def iter_layers(self) -> Iterator[tuple[Digest, LayerRecord]]:
        """All layers, by digest.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        return self._iter_by_digest(schema.LAYERS, LayerRecord)

    def _iter_by_digest(self, table: str, kind: type[Record]) -> Iterator[tuple[Digest, Record]]:
        """All records of a table, read before the first is given."""
        with self.index.read() as txn:
            found = [(Digest.from_raw(key), record) for key, record in txn.iter(table, kind)]
        return iter(found)

    def find_layer(self, digest: Digest) -> LayerRecord | None:
        """The layer's record, or None.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        with self.index.read() as txn:
            return catalog.find_layer(txn, digest)

    def get_toc(self, digest: Digest) -> list[TocMember]:
        """A layer's members, in tar order.

        Raises:
            LayerNotIndexed: when the layer has no record.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        with self.index.read() as txn:
            return catalog.get_toc(txn, digest)

    def open_toc(self, digest: Digest) -> Toc:
        """A layer's members, in tar order, read as they are looked at.

        Raises:
            LayerNotIndexed: when the layer has no record.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell; so when a member is looked at.
        """

        def load(sequence: int) -> list[TocMember]:
            with self.index.read() as txn:
                return catalog.get_toc_batch(txn, digest, sequence)

        return Toc(self._get_layer(digest).member_count, load)

    def open_outline(self, digest: Digest) -> Outline:
        """A layer's directories, read as they are looked at.

        Raises:
            LayerNotIndexed: when the layer has no record.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell; so when an entry is looked at.
        """

        def load(number: int) -> bytes:
            with self.index.read() as txn:
                return catalog.get_outline_value(txn, digest, number)

        return Outline(load) if self._get_layer(digest).outline_values else Outline.of(self.get_toc(digest))

    def _get_layer(self, digest: Digest) -> LayerRecord:
        record = self.find_layer(digest)
        if record is None:
            raise LayerNotIndexed(digest)
        return record

    def span_checksums(self, digest: Digest) -> bytes:
        """The span checksums of a layer's files, 16 bytes each, in TOC order.

        Raises:
            LayerNotIndexed: when the layer has no record.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        with self.index.read() as txn:
            return catalog.get_span_checksums(txn, digest)

    def get_checkpoint_value(self, digest: Digest, number: int) -> bytes:
        """One of the ``checkpoint_values`` of a layer's checkpoints, counted from 0.

        Raises:
            LayerNotIndexed: when the layer has no record.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell, or has no such value.
        """
        with self.index.read() as txn:
            return catalog.get_checkpoint_value(txn, digest, number)

    def find_tag(self, repository: str, tag: str) -> TagRecord | None:
        """What a tag points at, or None.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        with self.index.read() as txn:
            return tags.find_tag(txn, repository, tag)

    def get_tag(self, repository: str, tag: str) -> TagRecord:
        """What a tag points at.

        Raises:
            TagNotFound: when there is none.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        record = self.find_tag(repository, tag)
        if record is None:
            raise TagNotFound(repository, tag)
        return record

    def iter_tags(self, repository: str | None = None) -> Iterator[tuple[str, str, TagRecord]]:
        """All tags, or those of one repository, as (repository, tag, record), sorted.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        with self.index.read() as txn:
            found = list(tags.iter_tags(txn, repository))
        return iter(sorted(found, key=lambda item: item[:2]))

    def generation(self) -> int:
        """A number that grows with every committed change: equal numbers, equal content of the index.

        Raises:
            IndexFailed: when LMDB fails.
        """
        return self.index.last_txn()

    def find_member(self, digest: Digest) -> MemberRecord | None:
        """The member's record, or None.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        with self.index.read() as txn:
            return catalog.find_member(txn, digest)

    def is_member_trusted(self, digest: Digest) -> bool:
        """Whether a member has a file that looks as it did when it was last verified; does not count as a use.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        return self.find_backing("members", digest) is not None

    def is_trusted(self, digest: Digest) -> bool:
        """Whether a blob's file looks as it did when it was last verified; linked and split blobs never are.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        return self.find_backing("blobs", digest) is not None

    def find_backing(self, kind: Literal["blobs", "members"], digest: Digest) -> Backing | None:
        """The file of a blob or a member when it is trusted, that is, looks as it did when it was last verified.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        if kind == "members":
            member = self.find_member(digest)
            stamp, path = (member.stamp if member else None), self.layout.member(digest)
        else:
            blob = self.find_blob(digest)
            stamp, path = (blob.stamp if blob and blob.form == "whole" else None), self.layout.blob(digest)
        if stamp is None or not matches(stamp, find_status(path)):
            return None
        return Backing(kind, str(digest), stamp)


def _read_whole(fd: int, digest: Digest, limit: int) -> bytes:
    with open(fd, "rb", buffering=0) as file:
        size = os.fstat(fd).st_size
        if size > limit:
            raise BlobTooLarge(digest, size, limit)
        return file.read(limit + 1)
