"""A decoded layer, cut into its members as verified files in the store.

`materialise` feeds it. The places of the members come from the layer's table of contents, which was made when the whole
layer was verified; a member whose bytes have another digest is not stored. On disk when `on_stored` is called with a
digest: the member's file under that digest, durable, recorded, stamped. One thread at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from kitfs.digest import Digest, DigestMismatch
from kitfs.store.change import Change
from kitfs.store.errors import MemberNotFound
from kitfs.store.ingest import Ingest
from kitfs.store.lease import Lease
from kitfs.store.records import KIND_FILE, TocMember
from kitfs.store.store import Store

_BATCH_COUNT = 256
_BATCH_SIZE = 64 << 20
_BATCH_TIME_S = 0.1  # a commit waits up to 20 ms for the files' times to settle


class MemberWriter:
    """Writes the members of one layer from its decoded bytes."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        toc: Sequence[TocMember],
        *,
        is_wanted: Callable[[Digest], bool],
        on_stored: Callable[[list[Digest]], None],
        on_corrupt: Callable[[int, DigestMismatch], None],
    ) -> None:
        """Begin.

        Args:
            store: Where they go.
            lease: What keeps them until the session's own roots do.
            toc: The layer's members, in order of their offsets.
            is_wanted: Whether somebody waits for a member: it is then recorded at once.
            on_stored: Told of members that are there now, or were before.
            on_corrupt: Told of a member, by its index, whose bytes are others.
        """
        self._store = store
        self._lease = lease
        self._files = iter([(at, member) for at, member in enumerate(toc) if member.kind == KIND_FILE and member.size])
        self._is_wanted = is_wanted
        self._on_stored = on_stored
        self._on_corrupt = on_corrupt
        self._has_failed = False
        self._offset = 0  # of the next decoded byte
        self._index = -1
        self._member: TocMember | None = None
        self._ingest: Ingest | None = None  # None while the member at hand is there already
        self._seen: set[bytes] = set()
        self._change: Change | None = None
        self._batch: list[Digest] = []
        self._batch_size = 0
        self._batch_start_s = 0.0
        self._next_member()

    def take(self, data: memoryview) -> None:
        """Take the next decoded bytes; after an error, pass over all that follow.

        Raises:
            StoreWriteFailed: when the disk fails or is full.
        """
        if self._has_failed:
            return
        self._has_failed = True
        self._take(data)
        self._has_failed = False

    def _take(self, data: memoryview) -> None:
        start = self._offset
        self._offset += len(data)
        while self._member is not None and self._member.offset < self._offset:
            member = self._member
            stop = member.offset + member.size
            if self._ingest is not None:
                self._ingest.write(data[max(member.offset - start, 0) : stop - start])
            if stop > self._offset:
                return
            self._end_member(member)
            self._next_member()

    def close(self) -> None:
        """Record what is stored; a member under way is dropped.

        Raises:
            StoreWriteFailed, IndexFailed: when recording fails.
        """
        if self._ingest is not None:
            self._ingest.abort()
            self._ingest = None
        self._commit()

    @property
    def is_done(self) -> bool:
        """Whether all members are stored or given up."""
        return self._member is None

    def _next_member(self) -> None:
        self._index, self._member = next(self._files, (-1, None))
        if self._member is None:
            return
        digest = _digest_of(self._member)
        if digest.raw in self._seen:
            self._ingest = None
        elif _is_there(self._store, digest):
            self._ingest = None
            self._on_stored([digest])
        else:
            self._store.make_room(self._member.size)  # or not: the layer can not be read in any other way
            self._ingest = self._store.ingest(self._lease)
        self._seen.add(digest.raw)

    def _end_member(self, member: TocMember) -> None:
        ingest, self._ingest = self._ingest, None
        if ingest is None:
            return
        digest = _digest_of(member)
        try:
            ingest.commit_member(digest, member.size)
        except DigestMismatch as error:
            self._on_corrupt(self._index, error)
            return
        if self._change is None:
            self._change = self._store.change(self._lease)
            self._batch_start_s = time.monotonic()
        self._change.add_member(digest, member.size)
        self._batch.append(digest)
        self._batch_size += member.size
        if (
            self._is_wanted(digest)
            or len(self._batch) >= _BATCH_COUNT
            or self._batch_size >= _BATCH_SIZE
            or time.monotonic() - self._batch_start_s >= _BATCH_TIME_S
        ):
            self._commit()

    def _commit(self) -> None:
        if self._change is None:
            return
        change, self._change = self._change, None
        batch, self._batch = self._batch, []
        self._batch_size = 0
        change.commit()  # one that fails is not tried again by `close`: a change commits once
        self._on_stored(batch)


def _digest_of(member: TocMember) -> Digest:
    assert member.digest is not None  # files have one
    return Digest.from_raw(member.digest)


def _is_there(store: Store, digest: Digest) -> bool:
    try:
        fd, is_trusted = store.open_member(digest)
    except MemberNotFound:
        return False
    os.close(fd)
    return is_trusted
