"""A plain tar on its way into the store in split form: members become files, the rest becomes a recipe.

Used by import by copy and by pack, in place of ``Ingest`` and in the same order (store.md 2). Bytes are hashed and cut
while they are written; nothing has a name before the whole layer has the digest that was expected. Then members are
renamed and their folders synced, then the recipe follows. On disk when ``commit`` returns: the recipe and all its
members. A member of up to ``HELD_SIZE_MAX`` bytes that the store has is not written at all, nor is one that ``adopt``
was told of; a larger one is dropped unsynced once its digest is known. One thread uses it; four threads sync members
while the next ones are hashed (64 KiB each: 1.6 ms a member on ext4, against 7 one by one). After an error, or without
a commit, nothing stays but members that were renamed, which no record names and GC removes.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from kitfs.archive.tar_toc import MemberKind, Piece, TarMalformed, TocReader
from kitfs.digest import Digest, Digester, DigestMismatch
from kitfs.errors import KitfsError
from kitfs.store import catalog, durable
from kitfs.store.errors import LimitExceeded, RecordCorrupt
from kitfs.store.index import Index
from kitfs.store.ingest import FILE_MODE, check_content
from kitfs.store.lease import Lease, Placement
from kitfs.store.recipe import REST_SIZE_MAX, RecipeMember, encode_recipe
from kitfs.store.records import KIND_FILE, Stamp, TocMember
from kitfs.store.stamp import find_status, matches, stamp_of
from kitfs.store.verify import hold_verified

HELD_SIZE_MAX = 1 << 20
"""Bytes of a member that are held in memory until its digest is known."""

ENTRIES_MAX = 4096
AVERAGE_SIZE_MIN = 64 << 10
_UNSYNCED_MAX = 64
_SYNC_THREADS = 4
_SEQUENTIAL_MAX = 4  # so few are synced in turn

T = TypeVar("T")


def is_worth_splitting(entries: int, size_members: int, size: int) -> bool:
    """Whether a plain tar should be kept split.

    Many small files stay together: each costs an fsync, and 2000 of 64 KiB took 3.1 s against 0.1 s for one
    file of the same bytes; from 1 MiB on there was no difference.

    Args:
        entries: Files and directories.
        size_members: Bytes of all its files.
        size: Bytes of the tar, as far as is known.
    """
    if not 0 < entries <= ENTRIES_MAX or size - size_members > REST_SIZE_MAX:
        return False
    return size_members >= entries * AVERAGE_SIZE_MIN


@dataclass(slots=True)
class _Part:
    """A member on its way: in ``path`` once it is written, with ``fd`` open until it is synced."""

    offset: int
    size: int
    digest: Digest | None = None
    path: Path | None = None
    fd: int = -1


class SplitIngest:
    """One new split blob under way.

    Attributes:
        size: Bytes written so far.
    """

    def __init__(self, lease: Lease, index: Index) -> None:
        self._lease = lease
        self._index = index
        self._digester = Digester()
        self._reader = TocReader()
        self._malformed: TarMalformed | None = None
        self._rest = bytearray()
        self._parts: list[_Part] = []
        self._part: _Part | None = None  # whose bytes are arriving
        self._done = 0  # bytes of it
        self._held = bytearray()
        self._adopted: Digest | None = None  # of the member whose bytes come next, or are arriving
        self._seen: set[Digest] = set()
        self._unsynced: deque[_Part] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._syncing: deque[Future[None]] = deque()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._digester.size

    def digest(self) -> Digest:
        """The digest of the bytes written so far."""
        return self._digester.digest()

    def adopt(self, digest: Digest) -> bool:
        """Say that the bytes written next are those of a member whose digest is known, its header being written.

        Returns:
            Whether the store has a file of them whose stamp holds. The bytes are then hashed as the tar's and not
            written, and the lease keeps the file. Else they are written as any other's.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        is_here = self._malformed is None and (digest in self._seen or self._is_here(digest))
        self._adopted = digest if is_here else None
        return is_here

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes of the tar. One that is malformed is hashed to its end, and refused by ``commit``.

        Raises:
            StoreWriteFailed: when the disk does not take them; the ingest is over then.
            LimitExceeded: when too much of it is no member's.
        """
        try:
            self._write(memoryview(data))
        except BaseException:
            self.abort()
            raise

    def _write(self, data: memoryview) -> None:
        base = at = self._digester.size
        self._digester.update(data)
        if self._malformed is not None:
            return
        try:
            pieces = self._reader.feed(data)
        except TarMalformed as error:
            self._malformed = error
            return
        for piece in pieces:
            if piece.member.kind is MemberKind.FILE and piece.member.size:
                start = piece.member.offset + (0 if piece.starts else self._done)
                self._rest += data[at - base : start - base]
                at = start + len(piece.data)
                self._take(piece)
        self._rest += data[at - base :]
        if len(self._rest) > REST_SIZE_MAX:
            raise LimitExceeded("the size of a split layer without its members", len(self._rest), REST_SIZE_MAX)

    def _take(self, piece: Piece) -> None:
        if piece.starts:
            self._part = _Part(piece.member.offset, piece.member.size, self._adopted)
            self._done = 0
        part = self._part
        assert part is not None
        self._done += len(piece.data)
        if self._adopted is not None:
            self._seen.add(self._adopted)
        elif part.size > HELD_SIZE_MAX:
            self._append(part, piece.data)
        elif piece.ends and not self._held:
            self._end_held(part, piece.data)
        else:
            self._held += piece.data
            if piece.ends:
                held, self._held = self._held, bytearray()
                self._end_held(part, memoryview(held))
        if piece.ends:
            self._parts.append(part)
            self._part = self._adopted = None
            if part.fd >= 0:
                self._unsynced.append(part)
            self._sync_some()

    def _append(self, part: _Part, data: memoryview) -> None:
        if part.path is None:
            part.path = self._lease.next_ingest()
            with durable.naming(part.path, "creating"):
                part.fd = os.open(part.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        durable.write_all(part.fd, data, part.path)

    def _end_held(self, part: _Part, data: memoryview) -> None:
        part.digest = Digest.of(data)
        if part.digest not in self._seen:
            self._seen.add(part.digest)
            if not self._is_here(part.digest):
                self._append(part, data)

    def _is_here(self, digest: Digest) -> bool:
        """Whether the store has a member whose stamp holds; the lease keeps it then."""
        with contextlib.suppress(KitfsError):
            if matches(self._find_stamp(digest), find_status(self._lease.layout.member(digest))):
                self._lease.hold(digest)
                return matches(self._find_stamp(digest), find_status(self._lease.layout.member(digest)))
        return False

    def _find_stamp(self, digest: Digest) -> Stamp | None:
        try:
            with self._index.read() as txn:
                record = catalog.find_member(txn, digest)
        except RecordCorrupt:
            return None
        return None if record is None else record.stamp

    def commit(self, toc: Sequence[TocMember], expected: Digest | None = None, size: int | None = None) -> Digest:
        """Make the bytes a blob.

        Args:
            toc: The layer's members, with the digests that the indexing pass over the same bytes found.
            expected: The digest it must have, or None to take what it has.
            size: The size it must have, or None.

        Returns:
            Its digest. The lease holds it and its members.

        Raises:
            DigestMismatch, SizeMismatch, TarMalformed: when the bytes are others; nothing is left.
            StoreWriteFailed: when a step failed.
            LeaseEnded: when the lease is closed.
        """
        try:
            digest = self._check(expected, size)  # step 2
            self._reader.close()
            members = self._complete(toc)
            if not self._is_kept(digest):
                self._place_members()
                self._place_recipe(digest, members)
        finally:
            self.abort()  # what was renamed is no longer there to be dropped
        return digest

    def _check(self, expected: Digest | None, size: int | None) -> Digest:
        digest = check_content(self._digester, expected, size)
        if self._malformed is not None:
            raise self._malformed
        return digest

    def _complete(self, toc: Sequence[TocMember]) -> list[RecipeMember]:
        """Give each part its digest, and drop files whose bytes another part or the store has."""
        self._wait()  # what is dropped is not in another thread's hands
        files = [member for member in toc if member.kind == KIND_FILE and member.size]
        if [(member.offset, member.size) for member in files] != [(part.offset, part.size) for part in self._parts]:
            raise ValueError("the table of contents is not of these bytes")
        members = []
        for part, member in zip(self._parts, files, strict=True):
            assert member.digest is not None  # files have one
            digest = Digest.from_raw(member.digest)
            members.append(RecipeMember(part.offset, part.size, digest))
            if part.digest is None:
                part.digest = digest
                if digest in self._seen or self._is_here(digest):
                    self._drop(part)
                self._seen.add(digest)
            elif part.digest != digest:
                raise DigestMismatch(digest, part.digest)
        return members

    def _is_kept(self, digest: Digest) -> bool:
        """Whether the store has the blob in some form, whole and right: that stays then, and its inodes with it."""
        with contextlib.suppress(KitfsError):
            with self._index.read() as txn:
                if catalog.find_blob(txn, digest) is None:
                    return False
            hold_verified(self._index, self._lease, digest)
            return True
        return False

    def _place_members(self) -> None:
        layout = self._lease.layout
        self._sync_all()  # step 3
        placed: list[Digest] = []
        for part in self._parts:
            if part.path is None:
                continue
            assert part.digest is not None  # since `_complete`
            target = layout.member(part.digest)
            if not self._lease.place(part.path, target, part.digest, replace=False):  # step 4
                if matches(self._find_stamp(part.digest), find_status(target)):
                    self._drop(part)
                    continue
                self._lease.place(part.path, target, part.digest, replace=True)  # heals whatever lay there
            part.path = None
            placed.append(part.digest)
        _run(durable.sync_directory, {layout.member(digest).parent for digest in placed})
        for digest in placed:
            target = layout.member(digest)
            with durable.naming(target, "looking at"):
                self._lease.member_placements[digest] = Placement("whole", stamp_of(os.lstat(target)))

    def _place_recipe(self, digest: Digest, members: Sequence[RecipeMember]) -> None:
        target = self._lease.layout.recipe(digest)
        part = _Part(0, 0)
        try:
            self._append(part, memoryview(encode_recipe(digest, self.size, members, self._rest)))
            _seal(part)
            assert part.path is not None  # since `_append`
            self._lease.place(part.path, target, digest, replace=True)
            part.path = None
        finally:
            self._drop(part)
        durable.sync_directory(target.parent)
        with durable.naming(target, "looking at"):
            self._lease.placements[digest] = Placement("split", stamp_of(os.lstat(target)))

    def _sync_some(self) -> None:
        """Let the threads sync members that will stay, and bound how many are open."""
        while len(self._unsynced) > _SEQUENTIAL_MAX and (
            self._unsynced[0].digest is not None or len(self._unsynced) > _UNSYNCED_MAX
        ):
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_SYNC_THREADS, "kitfs-sync")
            self._syncing.append(self._pool.submit(_seal, self._unsynced.popleft()))
            if len(self._syncing) > _UNSYNCED_MAX:
                self._syncing.popleft().result()

    def _sync_all(self) -> None:
        """Bytes and final mode of all members on disk, nothing writable left."""
        _run(_seal, [part for part in self._unsynced if part.path is not None])
        self._unsynced.clear()

    def _wait(self) -> None:
        while self._syncing:
            self._syncing.popleft().result()

    def _drop(self, part: _Part) -> None:
        fd, part.fd = part.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        path, part.path = part.path, None
        if path is not None:
            durable.remove(path)

    def abort(self) -> None:
        """Drop what was written and has no name yet; harmless after a commit."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self._syncing.clear()
        for part in (*self._parts, *([self._part] if self._part else ())):
            self._drop(part)
        self._unsynced.clear()
        self._parts, self._part = [], None
        self._rest, self._held = bytearray(), bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _seal(part: _Part) -> None:
    assert part.path is not None  # it was written
    with durable.naming(part.path, "chmod of"):
        os.fchmod(part.fd, FILE_MODE)
    durable.sync_file(part.fd, part.path)
    fd, part.fd = part.fd, -1
    with durable.naming(part.path, "closing"):
        os.close(fd)


def _run(action: Callable[[T], None], items: Iterable[T]) -> None:
    """Do something with each item, a few at a time; the first error is raised when all are done."""
    waiting = list(items)
    if len(waiting) <= _SEQUENTIAL_MAX:
        for item in waiting:
            action(item)
        return
    with ThreadPoolExecutor(_SYNC_THREADS, "kitfs-sync") as pool:
        futures = [pool.submit(action, item) for item in waiting]
    for future in futures:
        future.result()
