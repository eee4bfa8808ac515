"""The store as one object: open it, read from it, lease, ingest, change.

The way in for everything above row 3; the parts are in the modules beside it. Every method may be called from
any thread. A store must not cross a fork: open it anew in the child. Reads see committed changes only and never
wait for a writer; lists are read whole in one short transaction.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kitfs.digest import Digest
from kitfs.store import inodes, link, sessions, tags, verify
from kitfs.store.errors import IndexFailed, MemberNotFound, RecordCorrupt, StoreWriteFailed, TagsLogCorrupt
from kitfs.store.index import Index, open_index
from kitfs.store.ingest import Ingest
from kitfs.store.layout import Layout, open_layout
from kitfs.store.lease import Lease
from kitfs.store.plain import NotPlain, open_plain
from kitfs.store.quota import Quota
from kitfs.store.reads import StoreReads
from kitfs.store.records import Stamp
from kitfs.store.sessions import HeldSession, SessionRecord
from kitfs.store.stamp import find_status, matches
from kitfs.store.uses import UseNotes

if TYPE_CHECKING:
    from kitfs.store.change import Change
    from kitfs.store.evict import Evictor
    from kitfs.store.partials import Partial
    from kitfs.store.split_ingest import SplitIngest


class Store(StoreReads):
    """An open store; a context manager. Its reading half is in ``reads.py``.

    Attributes:
        home: Its directory.
        layout: Where things lie in it; for the store's own modules, tests and read paths that need a path.
        index: Its LMDB environment; for the store's own modules.
        quota: What members that can be made anew may take here; whoever knows the settings sets it.
    """

    def __init__(self, layout: Layout, index: Index) -> None:
        super().__init__(layout, index)
        self.quota = Quota()
        self._uses = UseNotes(index)
        self._evictor: Evictor | None = None
        self._open = True
        self._close_lock = threading.Lock()

    @classmethod
    def open(cls, home: Path, *, create: bool = True) -> Self:
        """Open the store at ``home``, and finish what a killed process left in ``tags.log``.

        Raises:
            StoreNotFound: when there is none and ``create`` is false.
            StoreNotUsable, StoreOwnerMismatch, StoreVersionUnsupported: when the place can not be used.
            IndexFailed, IndexCorrupt: when the index can not be opened.
        """
        layout = open_layout(Path(home), create=create)
        index = open_index(layout.index)
        try:
            # A full disk, a damaged log or record keeps nobody from reading, nor fsck from repairing it: changes of
            # tags and GC meet it again.
            with contextlib.suppress(IndexFailed, StoreWriteFailed, TagsLogCorrupt, RecordCorrupt):
                with index.read() as txn:
                    behind = tags.is_behind(txn, layout)
                if behind:
                    with index.write() as txn:
                        tags.catch_up(txn, layout)
        except BaseException:
            index.close()
            raise
        return cls(layout, index)

    def close(self) -> None:
        """Give the index back; harmless when closed."""
        with self._close_lock:
            if self._open:
                self._open = False
                if self._uses.close():
                    self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Members' files

    def open_member(self, digest: Digest) -> tuple[int, bool]:
        """A descriptor (read only, close on exec) of a member's file, and whether its bytes are trusted.

        Trusted: the file looks as it did when it was last verified. One that is not is read through its
        checksums, or verified by ``restamp_member`` first. The descriptor carries a shared flock: while it, or a copy
        of it, is open, nobody evicts the member. That it is used is noted, late and without waiting.

        Raises:
            MemberNotFound: when it is not recorded, its file is gone or no plain file, or it is just being evicted.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        record = self.find_member(digest)
        if record is None:
            raise MemberNotFound(digest)
        path = self.layout.member(digest)
        try:
            fd = open_plain(path)
        except (FileNotFoundError, NotPlain):
            raise MemberNotFound(digest) from None
        try:
            is_trusted = _lock_shared(fd, path, digest, record.stamp)
        except BaseException:
            os.close(fd)
            raise
        self._uses.note(digest)
        return fd, is_trusted

    def note_use(self, digest: Digest) -> None:
        """A member is used without being opened here: it is not among the first that are evicted."""
        self._uses.note(digest)

    def make_room(self, size: int) -> bool:
        """See that ``size`` more bytes of members fit ``quota``, evicting the least recently used that nobody needs.

        Returns:
            False when they do not fit: what is left is pinned, held or open. Nothing is evicted in vain, as far as
            that can be known.

        Raises:
            StoreWriteFailed, RecordCorrupt, IndexFailed, IndexCorrupt: when removing failed.
        """
        return self._get_evictor().make_room(self.quota, size)

    def measure_members(self) -> tuple[int, int]:
        """Bytes of members that can be made anew, and how many ``quota`` lets them be (below 0: too many others).

        Raises:
            StoreWriteFailed, RecordCorrupt, IndexFailed, IndexCorrupt: when that can not be found out.
        """
        return self._get_evictor().measure(self.quota)

    def _get_evictor(self) -> Evictor:
        from kitfs.store.evict import Evictor  # 1 ms that a mount does not need

        with self._close_lock:
            if self._evictor is None:
                self._evictor = Evictor(self.layout, self.index)
            return self._evictor

    def restamp_member(self, digest: Digest) -> bool:
        """Hash a member's file once; right bytes get a new stamp, wrong ones are dropped.

        Returns:
            Whether its bytes are right. False: read it from its layer, which can make it anew.

        Raises:
            StoreWriteFailed, RecordCorrupt, IndexFailed, IndexCorrupt: as ``verify.restamp_member``.
        """
        return verify.restamp_member(self.layout, self.index, digest)

    def hold_verified(self, lease: Lease, digest: Digest) -> None:
        """Hold a blob and be sure that its bytes are right; see ``verify.hold_verified``.

        What an import asks before it passes over a blob that is there already: an error says to ingest it
        again, which puts the right bytes in place.

        Raises:
            BlobNotFound, BlobCorrupt: when it is not there, or holds other bytes.
            StoreWriteFailed, LeaseEnded, RecordCorrupt, IndexFailed, IndexCorrupt: as there.
        """
        verify.hold_verified(self.index, lease, digest)

    # Adding

    def lease(self, purpose: str) -> Lease:
        """Begin an operation: what it holds is kept until it ends. A context manager.

        Raises:
            StoreWriteFailed: when the lease can not be written.
        """
        return Lease(self.layout, purpose)

    def ingest(self, lease: Lease) -> Ingest:
        """Begin a new file. A context manager: left without a commit, nothing stays.

        Raises:
            StoreWriteFailed: when it can not be created.
            LeaseEnded: when the lease is closed.
        """
        return Ingest(lease, self._find_stamp)

    def split_ingest(self, lease: Lease) -> SplitIngest:
        """Begin a plain tar that is kept split. A context manager: left without a commit, nothing stays.

        Raises:
            LeaseEnded: when the lease is closed.
        """
        lease.check_open()
        from kitfs.store.split_ingest import SplitIngest  # a mount splits nothing

        return SplitIngest(lease, self.index)

    def link_blob(self, lease: Lease, source: Path, digest: Digest, watcher: link.Watcher | None = None) -> None:
        """Make another program's file a blob by a hard link; see ``link.link_file``.

        Raises:
            CanNotLink: when it can not be linked; copy it instead.
            DigestMismatch: when it holds other bytes.
            StoreWriteFailed, LeaseEnded: when a step failed.
        """
        link.link_file(lease, Path(source), digest, self._find_stamp(digest, False), watcher)

    def place_partial(self, lease: Lease, partial: Partial, digest: Digest) -> bool:
        """Make a partial that is whole a member; see ``Partial.place``.

        Raises:
            DigestMismatch: when its bytes are others; it is gone.
            StoreWriteFailed, LeaseEnded: when a step failed.
        """
        return partial.place(lease, digest, self._find_stamp)

    def change(self, lease: Lease) -> Change:
        """Begin a set of records and tags that become visible together.

        Raises:
            LeaseEnded: when the lease is closed.
        """
        lease.check_open()
        from kitfs.store.change import Change  # 2 ms that a mount does not need

        return Change(self.index, lease)

    def _find_stamp(self, digest: Digest, is_member: bool) -> Stamp | None:
        record = self.find_member(digest) if is_member else self.find_blob(digest)
        return None if record is None else record.stamp

    def inode_base(self, key: bytes, count: int) -> int:
        """The first of ``count`` inode numbers that belong to a tree for ever; at least 2.

        Raises:
            LimitExceeded, RecordCorrupt, IndexFull, IndexFailed, IndexCorrupt: as ``inodes.take_inodes``.
        """
        return inodes.take_inodes(self.index, key, count)

    # Sessions

    def create_session(self, record: SessionRecord) -> HeldSession:
        """Write a session down and hold it; see ``sessions.create_session``.

        Raises:
            ManifestNotFound, StoreWriteFailed, SessionNotFound: as there.
        """
        return sessions.create_session(self.layout, record)

    def open_session(self, session_id: str) -> HeldSession:
        """Hold a session that is there.

        Raises:
            SessionNotFound, StoreWriteFailed: as ``sessions.open_session``.
        """
        return sessions.open_session(self.layout, session_id)

    def iter_sessions(self) -> Iterator[tuple[SessionRecord, bool]]:
        """All sessions, and whether anybody holds them."""
        return sessions.iter_sessions(self.layout)

    def end_session(self, session_id: str) -> None:
        """Remove a session.

        Raises:
            SessionNotFound: when the id is no possible name.
        """
        sessions.end_session(self.layout, session_id)


def _lock_shared(fd: int, path: Path, digest: Digest, stamp: Stamp | None) -> bool:
    """Keep an open member from being evicted; whether its stamp holds.

    Raises:
        MemberNotFound: when it is being evicted, or has been since it was opened.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MemberNotFound(digest) from None
    status = os.fstat(fd)
    if matches(stamp, status):
        return True
    current = find_status(path)
    if current is None or not os.path.samestat(current, status):
        raise MemberNotFound(digest)
    return False
