"""A member of a plain layer whose blob is kept whole: ranges of the blob, and its own file once it was read through.

`reader` makes these. Inside a tar a member can not be given to the kernel to read by itself, and a linked blob is
another program's, whose bytes are compared with their checksums at each read. So a member of which as many bytes were
read as it has is copied behind its readers, verified, into a file of its own, while the quota allows (lazy.md 4).
"""

from __future__ import annotations

import time

from kitfs.layer.file_or_spans import FileOrSpans
from kitfs.layer.finisher import shared_finisher
from kitfs.layer.policy import MATERIALISED_SIZE_MIN, Materialise
from kitfs.layer.restamp import RestampJob
from kitfs.layer.span_reader import SpanReader
from kitfs.store.records import TocMember
from kitfs.store.store import Store

_PIECE_SIZE = 1 << 20


class PlainMember(FileOrSpans):
    """Reads one member; see `reader.MemberReader`. It is its own job for the finisher: copying itself.

    Attributes:
        owner: Who gives up its jobs.
        last_read_s: When it was last read, on the monotonic clock.
    """

    def __init__(self, store: Store, owner: object, member: TocMember, spans: SpanReader, policy: Materialise) -> None:
        super().__init__(store, member, spans)
        self.owner = owner
        self.last_read_s = time.monotonic()
        self._is_over = policy is Materialise.NEVER or not member.size
        if policy is Materialise.AUTO and member.size < MATERIALISED_SIZE_MIN:
            self._is_over = True
        self._left = 0 if policy is Materialise.ALWAYS else member.size  # bytes to be read before it is copied
        if self._descriptor is None and policy is Materialise.ALWAYS:
            self._note(0)

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when they are in the page cache, and right where they are the blob's.

        Raises:
            ValueError: when the range is not within the file.
        """
        data = super().read_ready(start, stop)
        if data is not None and not self._is_over:
            self._note(stop - start)
        return data

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``, verified.

        Raises:
            LayerCorrupt, KitfsError, OSError, ValueError: as `FileOrSpans.read`.
        """
        data = super().read(start, stop)
        if not self._is_over:
            self._note(stop - start)
        return data

    def _note(self, size: int) -> None:
        self.last_read_s = time.monotonic()
        self._left -= size
        if self._left <= 0 and not self._is_over:
            self._is_over = True
            if self._descriptor is None:
                shared_finisher().submit(self)

    def run(self) -> None:
        """Make the member a file of its own; a job of the finisher.

        On disk when this returns: the member's file, verified and recorded, unless there is no room for it.

        Raises:
            LayerCorrupt: when the blob does not give the bytes.
            KitfsError, OSError: when the store or the disk fails.
        """
        self._descriptor = self._look()
        if self._descriptor is not None:
            return
        if self._store.find_member(self._digest) is not None:
            RestampJob(self._store, self.owner, self._digest).run()
        elif self._store.make_room(self.size):
            self._copy()
        self._descriptor = self._look()

    def _copy(self) -> None:
        with self._store.lease(f"materialise member {self._digest}") as lease, self._store.ingest(lease) as ingest:
            for start in range(0, self.size, _PIECE_SIZE):
                ingest.write(self._spans.read(start, min(start + _PIECE_SIZE, self.size)))
            ingest.commit_member(self._digest, self.size)
            change = self._store.change(lease)
            change.add_member(self._digest, self.size)
            change.commit()
