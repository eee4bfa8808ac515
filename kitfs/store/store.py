"""The store as one object: open it, read from it, lease, ingest, change.

The way in for everything above row 3; the parts are in the modules beside it. Every method may be called from
any thread. A store must not cross a fork: open it anew in the child. Reads see committed changes only and never
wait for a writer; lists are read whole in one short transaction.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kitfs.digest import Digest
from kitfs.store import inodes, link, sessions, tags, verify
from kitfs.store.errors import IndexFailed, RecordCorrupt, StoreWriteFailed, TagsLogCorrupt
from kitfs.store.index import Index, open_index
from kitfs.store.ingest import Ingest
from kitfs.store.layout import Layout, open_layout
from kitfs.store.lease import Lease
from kitfs.store.quota import Quota
from kitfs.store.reads import StoreReads
from kitfs.store.records import Stamp
from kitfs.store.sessions import HeldSession, SessionRecord

if TYPE_CHECKING:
    from kitfs.store.change import Change


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
                self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Files that may have changed on disk

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

    def link_blob(self, lease: Lease, source: Path, digest: Digest, watcher: link.Watcher | None = None) -> None:
        """Make another program's file a blob by a hard link; see ``link.link_file``.

        Raises:
            CanNotLink: when it can not be linked; copy it instead.
            DigestMismatch: when it holds other bytes.
            StoreWriteFailed, LeaseEnded: when a step failed.
        """
        link.link_file(lease, Path(source), digest, self._find_stamp(digest, False), watcher)

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
