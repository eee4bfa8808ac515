"""A member that has a file of its own in the store, or may have, and spans that its bytes are compared with otherwise.

What `split_member` and `plain_member` have in common: the file is served as it is while its stamp held at the moment
it was opened (design: trust by stamp), everything else goes through the span checksums of the layer.
"""

from __future__ import annotations

import os
from typing import Literal

from kitfs.digest import Digest
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.span_reader import SpanReader
from kitfs.store.errors import MemberNotFound, RecordCorrupt
from kitfs.store.records import TocMember
from kitfs.store.store import Store


class FileOrSpans:
    """Reads one member; see `reader.MemberReader`. A base: who derives from it decides what becomes of a file.

    Attributes:
        size: Its bytes.
    """

    def __init__(self, store: Store, member: TocMember, spans: SpanReader) -> None:
        assert member.digest is not None  # files have one
        self.size = member.size
        self._store = store
        self._digest = Digest.from_raw(member.digest)
        self._spans = spans
        self._descriptor = self._look() if member.size else None

    @property
    def state(self) -> Literal["lazy", "partial", "native"]:
        """``native`` while the file is trusted, else ``lazy``."""
        return "native" if self._descriptor is not None or self.size == 0 else "lazy"

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when they are in the page cache, and right where the file is not trusted.

        Raises:
            ValueError: when the range is not within the file.
        """
        descriptor = self._descriptor
        if descriptor is None or start == stop:
            return self._spans.read_ready(start, stop)
        self._check(start, stop)
        data = descriptor.read_cached(start, stop - start)
        return None if data is None else memoryview(data).toreadonly()

    def begin_read(self, start: int, stop: int) -> None:
        """Nothing: `read` has to wait for the disk."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``, verified.

        Raises:
            LayerCorrupt: when they are not what was verified, or the file is not there.
            KitfsError, OSError: when the store or the disk fails.
            ValueError: when the range is not within the file.
        """
        self._check(start, stop)
        descriptor = self._descriptor
        if descriptor is not None:
            data = descriptor.read(start, stop - start)
            if len(data) == stop - start:
                return data
            self._descriptor = None
        return self._spans.read(start, stop)

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"range [{start}, {stop}) of a file of {self.size} bytes")

    def _look(self) -> Descriptor | None:
        """The member's file when its stamp holds; nothing is hashed."""
        try:
            fd, is_trusted = self._store.open_member(self._digest)
        except (MemberNotFound, RecordCorrupt):
            return None
        descriptor = Descriptor(fd)
        return descriptor if is_trusted and os.fstat(fd).st_size == self.size else None
