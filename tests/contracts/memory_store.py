"""The store without a disk: what callers may rely on, in dictionaries. The twin of ``kitfs.store.store.Store``.

Loaded by ``conftest.py``. It has the part of the store's surface that reading code and the contract suite use;
sessions, stamps and links are about files and have no twin.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Self

import msgspec

from kitfs.digest import Digest, Digester, DigestMismatch
from kitfs.store import schema
from kitfs.store.errors import (
    BlobCorrupt,
    BlobNotFound,
    BlobTooLarge,
    LayerNotIndexed,
    LeaseEnded,
    LimitExceeded,
    ManifestIncomplete,
    ManifestNotFound,
    MemberNotFound,
    SizeMismatch,
    TagNotFound,
)
from kitfs.store.outline import Outline
from kitfs.store.records import BlobRecord, LayerRecord, ManifestRecord, MemberRecord, Stamp, TagRecord, TocMember


class MemoryLease:
    """Digests held in memory."""

    def __init__(self, store: MemoryStore, purpose: str) -> None:
        self._store = store
        self.purpose = purpose
        self.held: set[Digest] = set()
        self.closed = False
        store.leases.append(self)

    def check_open(self) -> None:
        if self.closed:
            raise LeaseEnded(self.purpose)

    def hold(self, digest: Digest) -> None:
        self.check_open()
        if digest not in self._store.files and digest not in self._store.member_files:
            raise BlobNotFound(digest)
        self.held.add(digest)

    def holds(self, digest: Digest) -> bool:
        return digest in self.held

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._store.leases.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MemoryIngest:
    """Bytes on their way."""

    def __init__(self, store: MemoryStore, lease: MemoryLease) -> None:
        lease.check_open()
        self._store = store
        self._lease = lease
        self._data = bytearray()
        self._digester = Digester()

    @property
    def size(self) -> int:
        return len(self._data)

    def write(self, data: bytes) -> None:
        self._data += data
        self._digester.update(data)

    def digest(self) -> Digest:
        return self._digester.digest()

    def commit_blob(self, expected: Digest | None = None, size: int | None = None) -> Digest:
        return self._commit(self._store.files, expected, size)

    def commit_member(self, expected: Digest | None = None, size: int | None = None) -> Digest:
        return self._commit(self._store.member_files, expected, size)

    def _commit(self, files: dict[Digest, bytes], expected: Digest | None, size: int | None) -> Digest:
        if size is not None and size != self.size:
            raise SizeMismatch(size, self.size, "content")
        digest = self.digest()
        if expected is not None and digest != expected:
            raise DigestMismatch(expected, digest)
        self._lease.check_open()
        files[digest] = bytes(self._data)
        self._lease.hold(digest)
        return digest

    def abort(self) -> None:
        self._data.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


class MemoryChange:
    """Records gathered until they are copied over in one step."""

    def __init__(self, store: MemoryStore, lease: MemoryLease) -> None:
        lease.check_open()
        self._store = store
        self._lease = lease
        self._blobs: dict[Digest, BlobRecord] = {}
        self._layers: dict[Digest, tuple[LayerRecord, list[TocMember], bytes, list[bytes]]] = {}
        self._manifests: dict[Digest, ManifestRecord] = {}
        self._members: dict[Digest, MemberRecord] = {}
        self._set: list[tuple[str, str, TagRecord]] = []
        self._removed: list[tuple[str, str]] = []

    def add_blob(self, digest: Digest, size: int, *, media_type: str = "", origin: str = "here",
                 form: str | None = None) -> None:  # fmt: skip
        self._lease.hold(digest)
        self._blobs[digest] = BlobRecord(size, form or "whole", [media_type] if media_type else [], origin, 0, 0)

    def add_layer(
        self,
        digest: Digest,
        record: LayerRecord,
        toc: Sequence[TocMember],
        span_checksums: bytes,
        checkpoints: Sequence[bytes] = (),
    ) -> None:
        record = msgspec.structs.replace(
            record,
            member_count=len(toc),
            span_checksums_size=len(span_checksums),
            checkpoint_values=len(checkpoints),
        )
        self._layers[digest] = (record, list(toc), span_checksums, list(checkpoints))

    def add_manifest(self, digest: Digest, record: ManifestRecord) -> None:
        self._manifests[digest] = record

    def add_member(self, digest: Digest, size: int, stamp: Stamp | None = None) -> None:
        if digest not in self._store.member_files:
            raise MemberNotFound(digest)
        self._lease.hold(digest)
        self._members[digest] = MemberRecord(size, "native", 0, stamp)

    def set_tag(self, repository: str, tag: str, manifest: Digest, origin: str = "here") -> None:
        if len(tag) > schema.TAG_SIZE_MAX:
            raise LimitExceeded("the size of a tag", len(tag), schema.TAG_SIZE_MAX)
        self._lease.hold(manifest)
        self._set.append((repository, tag, TagRecord(manifest, origin, 0, repository, tag)))

    def remove_tag(self, repository: str, tag: str) -> None:
        self._removed.append((repository, tag))

    def commit(self) -> None:
        self._lease.check_open()
        self._check()
        store = self._store
        for digest, blob in self._blobs.items():
            old = store.blobs.get(digest)
            types = list(dict.fromkeys([*(old.media_types if old else []), *blob.media_types]))
            store.blobs[digest] = msgspec.structs.replace(blob, media_types=types)
        store.layers.update(self._layers)
        store.manifests.update(self._manifests)
        store.members.update(self._members)
        for key in self._removed:
            del store.tags[key]
        for repository, tag, record in self._set:
            store.tags[repository, tag] = record
        store.generations += 1

    def _check(self) -> None:
        store = self._store
        blobs = store.blobs.keys() | self._blobs.keys()
        for digest, blob in self._blobs.items():
            if len(store.files[digest]) != blob.size:
                raise SizeMismatch(blob.size, len(store.files[digest]), "blob")
        for digest in self._layers:
            if digest not in blobs:
                raise BlobNotFound(digest)
        for digest, manifest in self._manifests.items():
            for needed in (digest, manifest.config, *manifest.layers, *manifest.indexes):
                if needed not in blobs:
                    raise ManifestIncomplete(digest, needed)
        for repository, tag in self._removed:
            if (repository, tag) not in store.tags:
                raise TagNotFound(repository, tag)
        for _, _, record in self._set:
            if record.manifest not in store.manifests and record.manifest not in self._manifests:
                raise ManifestNotFound(record.manifest)


class MemoryStore:
    """The twin."""

    def __init__(self) -> None:
        self.files: dict[Digest, bytes] = {}
        self.member_files: dict[Digest, bytes] = {}
        self.blobs: dict[Digest, BlobRecord] = {}
        self.manifests: dict[Digest, ManifestRecord] = {}
        self.layers: dict[Digest, tuple[LayerRecord, list[TocMember], bytes]] = {}
        self.members: dict[Digest, MemberRecord] = {}
        self.tags: dict[tuple[str, str], TagRecord] = {}
        self.leases: list[MemoryLease] = []
        self.generations = 0
        self._inodes: dict[bytes, tuple[int, int]] = {}
        self._next_inode = schema.INODE_FIRST

    def find_blob(self, digest: Digest) -> BlobRecord | None:
        return self.blobs.get(digest)

    def get_blob(self, digest: Digest) -> BlobRecord:
        if digest not in self.blobs:
            raise BlobNotFound(digest)
        return self.blobs[digest]

    def open_blob(self, digest: Digest) -> int:
        if digest not in self.files:
            raise BlobNotFound(digest)
        return _open_bytes(self.files[digest])

    def read_blob(self, digest: Digest, *, limit: int = 4 << 20) -> bytes:
        if digest not in self.files:
            raise BlobNotFound(digest)
        data = self.files[digest]
        if len(data) > limit:
            raise BlobTooLarge(digest, len(data), limit)
        if Digest.of(data) != digest:
            raise BlobCorrupt(digest, "other bytes")
        return data

    def find_manifest(self, digest: Digest) -> ManifestRecord | None:
        return self.manifests.get(digest)

    def get_manifest(self, digest: Digest) -> ManifestRecord:
        if digest not in self.manifests:
            raise ManifestNotFound(digest)
        return self.manifests[digest]

    def iter_manifests(self) -> Iterator[tuple[Digest, ManifestRecord]]:
        return iter(sorted(self.manifests.items()))

    def iter_blobs(self) -> Iterator[tuple[Digest, BlobRecord]]:
        return iter(sorted(self.blobs.items()))

    def find_layer(self, digest: Digest) -> LayerRecord | None:
        return self.layers[digest][0] if digest in self.layers else None

    def get_toc(self, digest: Digest) -> list[TocMember]:
        if digest not in self.layers:
            raise LayerNotIndexed(digest)
        return self.layers[digest][1]

    def open_toc(self, digest: Digest) -> Sequence[TocMember]:
        return self.get_toc(digest)

    def open_outline(self, digest: Digest) -> Outline:
        return Outline.of(self.get_toc(digest))

    def span_checksums(self, digest: Digest) -> bytes:
        if digest not in self.layers:
            raise LayerNotIndexed(digest)
        return self.layers[digest][2]

    def get_checkpoint_value(self, digest: Digest, number: int) -> bytes:
        if digest not in self.layers:
            raise LayerNotIndexed(digest)
        return self.layers[digest][3][number]

    def find_tag(self, repository: str, tag: str) -> TagRecord | None:
        return self.tags.get((repository, tag))

    def get_tag(self, repository: str, tag: str) -> TagRecord:
        if (repository, tag) not in self.tags:
            raise TagNotFound(repository, tag)
        return self.tags[repository, tag]

    def iter_tags(self, repository: str | None = None) -> Iterator[tuple[str, str, TagRecord]]:
        found = [(*key, record) for key, record in sorted(self.tags.items())]
        return iter([item for item in found if repository in (None, item[0])])

    def find_member(self, digest: Digest) -> MemberRecord | None:
        return self.members.get(digest)

    def open_member(self, digest: Digest) -> tuple[int, bool]:
        if digest not in self.members:
            raise MemberNotFound(digest)
        return _open_bytes(self.member_files[digest]), True

    def generation(self) -> int:
        return self.generations

    def lease(self, purpose: str) -> MemoryLease:
        return MemoryLease(self, purpose)

    def ingest(self, lease: MemoryLease) -> MemoryIngest:
        return MemoryIngest(self, lease)

    def change(self, lease: MemoryLease) -> MemoryChange:
        return MemoryChange(self, lease)

    def inode_base(self, key: bytes, count: int) -> int:
        if not 0 < count <= schema.INODE_COUNT_MAX:
            raise LimitExceeded("the number of inodes of a tree", count, schema.INODE_COUNT_MAX)
        first, known = self._inodes.get(key, (0, 0))
        if known < count:
            first = self._next_inode
            self._next_inode += count
            self._inodes[key] = (first, count)
        return first

    def gc(self) -> None:
        """Drop what no tag and no lease leads to."""
        waiting = [record.manifest for record in self.tags.values()]
        waiting += [digest for lease in self.leases for digest in lease.held]
        kept: set[Digest] = set()
        members = {digest for lease in self.leases for digest in lease.held}
        while waiting:
            digest = waiting.pop()
            if digest in kept:
                continue
            kept.add(digest)
            manifest = self.manifests.get(digest)
            if manifest is not None:
                waiting += [manifest.config, *manifest.layers, *manifest.indexes, *manifest.parents]
            if digest in self.layers:
                members |= {Digest.from_raw(member.digest) for member in self.layers[digest][1] if member.digest}
        for table in (self.files, self.blobs, self.manifests, self.layers):
            for digest in table.keys() - kept:
                del table[digest]
        for table in (self.member_files, self.members):
            for digest in table.keys() - members:
                del table[digest]
        self.generations += 1


def _open_bytes(data: bytes) -> int:
    fd = os.memfd_create("member", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
