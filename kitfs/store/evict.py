"""Eviction: member files that can be made anew go, least recently used first, until others fit (store.md 4).

Used through ``Store.make_room`` by whoever is about to materialise. What never goes: a member that a recipe pins, one
that a live lease holds by its digest (somebody is just placing it), and one that somebody has open: ``open_member``
leaves a shared flock on its descriptor, and an evictor that can not have the file alone leaves it. Partial members go
before whole ones, but none that somebody is putting together: those count with their whole size, since that is what
room was made for.

Order: the exclusive ``gc.lock``, in which nobody places a file or takes hold of one; the files' locks; one transaction
that deletes the records; then the files are renamed into ``ingest/trash-…``, and unlinked after the lock. A kill leaves
files without records, or trash, which ``gc`` removes; never a record without its file.

Two processes that make room at once may both find that theirs fits, and overshoot by one member each: the next call
takes it back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kitfs.digest import Digest
from kitfs.store import catalog, durable, gate, partials, schema
from kitfs.store.errors import RecordCorrupt
from kitfs.store.index import Index, Txn
from kitfs.store.layout import Layout
from kitfs.store.quota import Quota
from kitfs.store.records import MemberRecord, parse_value
from kitfs.store.roots import TRASH_PREFIX, read_notes

_BATCH_MAX = 256
"""Files locked at once; each takes a descriptor."""

_RESCAN_FACTOR = 20
"""After a vain search the table is not read again, for so much or more, for so many times as long as reading took."""


class _Candidate(NamedTuple):
    last_used_s: int
    digest: Digest
    size: int


class _Vain(NamedTuple):
    """The last search that did not find enough."""

    excess: int
    until_s: float


class Evictor:
    """Makes room in one store. Methods may be called from any thread; one evicts at a time."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self._layout = layout
        self._index = index
        self._lock = threading.Lock()
        self._candidates: deque[_Candidate] = deque()  # least recently used first, as the last scan saw them
        self._scan_time_s = 0.0
        self._vain = _Vain(0, 0.0)

    def measure(self, quota: Quota) -> tuple[int, int]:
        """Bytes of members that can be made anew, partial ones included, and how many they may be.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
            StoreWriteFailed: when the disk can not be asked.
        """
        with self._index.read() as txn:
            used = catalog.get_member_total(txn).size
        used += partials.measure(self._layout)
        with durable.naming(self._layout.home, "asking for the free space of"):
            return used, quota.limit(used, os.statvfs(self._layout.home))

    def make_room(self, quota: Quota, size: int) -> bool:
        """See ``Store.make_room``."""
        used, limit = self.measure(quota)
        if used + size <= limit:
            return True
        if size > limit:
            return False  # not even with everything gone
        with self._lock:
            used, limit = self.measure(quota)
            return self._evict(used + size - limit)

    def _evict(self, excess: int) -> bool:
        excess -= self._drop_partials(excess)
        is_fresh = False
        while excess > 0:
            if not self._candidates:
                if is_fresh:
                    self._vain = _Vain(excess, time.monotonic() + _RESCAN_FACTOR * self._scan_time_s)
                    return False
                if excess >= self._vain.excess and time.monotonic() < self._vain.until_s:
                    return False
                is_fresh = True
                self._scan()
            with self._taken_away() as trash:
                excess -= self._evict_batch(excess, trash)
        return True

    def _drop_partials(self, excess: int) -> int:
        """Drop partials that nobody uses, those that nobody wrote for longest first; how many bytes they took."""
        found = []
        for path in partials.iter_partials(self._layout):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_blocks * 512, path))
        dropped = 0
        for _, size, path in sorted(found):
            if dropped >= excess:
                break
            if size and partials.remove_unused(path):
                dropped += size
        return dropped

    def _scan(self) -> None:
        """Read which members there are."""
        start_s = time.monotonic()
        found = []
        with self._index.read() as txn:
            for key, value in txn.iter_raw(schema.MEMBERS):
                with contextlib.suppress(RecordCorrupt):  # fsck's
                    record = parse_value(schema.MEMBERS, key, value, MemberRecord)
                    if not record.pins:
                        found.append(_Candidate(record.last_used_s, Digest.from_raw(key), record.size))
        found.sort(key=lambda candidate: (candidate.last_used_s, candidate.digest.raw))
        self._candidates = deque(found)
        self._scan_time_s = time.monotonic() - start_s

    @contextlib.contextmanager
    def _taken_away(self) -> Iterator[list[Path]]:
        """A list of trash, which is unlinked in the end."""
        trash: list[Path] = []
        try:
            yield trash
        finally:
            for path in trash:
                durable.remove(path)

    def _evict_batch(self, excess: int, trash: list[Path]) -> int:
        """Evict up to ``_BATCH_MAX`` members, nothing when the last ones would not do; how many bytes they had."""
        locked: dict[Digest, int] = {}
        try:
            with gate.exclusive(self._layout.gc_lock):
                held = read_notes(self._layout).held
                with self._index.write() as txn:
                    size = self._lock_batch(txn, excess, held, locked)
                    if size < excess and not self._candidates:
                        return 0
                    catalog.delete_members(txn, locked)
                self._rename(locked, trash)
            return size
        finally:
            for fd in locked.values():
                os.close(fd)

    def _lock_batch(self, txn: Txn, excess: int, held: set[Digest], locked: dict[Digest, int]) -> int:
        size = 0
        while size < excess and self._candidates and len(locked) < _BATCH_MAX:
            candidate = self._candidates.popleft()
            if candidate.digest in held or not _is_unchanged(txn, candidate):
                continue
            fd = _lock_alone(self._layout.member(candidate.digest))
            if fd is not None:
                locked[candidate.digest] = fd
                size += candidate.size
        return size

    def _rename(self, digests: dict[Digest, int], trash: list[Path]) -> None:
        prefix = f"{TRASH_PREFIX}{secrets.token_hex(8)}"
        for number, digest in enumerate(digests):
            path, target = self._layout.member(digest), self._layout.ingest / f"{prefix}.{number}"
            with durable.naming(path, "removing"), contextlib.suppress(FileNotFoundError):
                path.rename(target)
                trash.append(target)


def _is_unchanged(txn: Txn, candidate: _Candidate) -> bool:
    """Whether a member is still there and has not been used since it was found."""
    try:
        record = catalog.find_member(txn, candidate.digest)
    except RecordCorrupt:
        return False
    return record is not None and not record.pins and record.last_used_s == candidate.last_used_s


def _lock_alone(path: Path) -> int | None:
    """A descriptor of the file that nobody else has open, or None."""
    with durable.naming(path, "locking"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None  # fsck's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
    return fd
