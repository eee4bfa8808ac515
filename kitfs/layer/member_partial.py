"""A member of a lazy layer that becomes a file behind its readers (lazy.md 4).

The span pool gives every span that it has decoded to `keep`, after whoever waited for it has got it; and asks `find`
before it decodes one, since another worker may have. A span read back is compared with its checksum again, which only
those that lie within the member have: those at its two ends are decoded anew. When nearly all spans are there, the
finisher decodes the rest, hashes the file and places it. Failures are logged and cost readers nothing: they go on from
the layer.

No lock is held across I/O: the lock here guards who writes, and whoever opens the files takes what came meanwhile.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections import deque
from typing import Protocol

from kitfs.digest import Digest, DigestMismatch
from kitfs.errors import KitfsError
from kitfs.layer.finisher import shared_finisher
from kitfs.store.errors import StoreWriteFailed
from kitfs.store.partials import Partial, find_partial, is_used
from kitfs.store.records import TocMember
from kitfs.store.store import Store

FILLED_SHARE = 0.9
"""A member of which so much was read is decoded to its end when its readers are idle."""

_RETRY_S = 30.0  # a full disk is not asked again by every span
_BACKLOG_MAX = 64
_TELL_S = 3600.0  # a disk that stays full is one line in the log, not one a member and try

_log = logging.getLogger(__name__)


class _Shortage:
    """Says in the log that there is no room for members, once in ``_TELL_S``."""

    def __init__(self) -> None:
        self._quiet_until_s = 0.0

    def tell(self, reason: object) -> None:
        """Something could not be written."""
        if time.monotonic() >= self._quiet_until_s:
            self._quiet_until_s = time.monotonic() + _TELL_S
            _log.warning("members get no files of their own, reads go on from their layers: %s", reason)


_shortage = _Shortage()


def partial_name(layer: Digest, index: int) -> str:
    """The name of a member's partial files."""
    return f"{layer.hex}.{index}"


class _Adoption(enum.Enum):
    """Whether the partial that others have left was looked for."""

    DUE = enum.auto()
    UNDER_WAY = enum.auto()
    DONE = enum.auto()


class SpanLayer(Protocol):
    """The layer of a member, as far as it is needed here.

    Attributes:
        layer: Its blob.
    """

    layer: Digest

    def range(self, span: int) -> tuple[int, int]:
        """The decoded bytes of a span, half open."""
        ...

    def find_span(self, offset: int) -> int:
        """The span that holds a byte of the decoded layer."""
        ...

    def is_right(self, span: int, data: bytes) -> bool:
        """Whether bytes are those of a span, by its checksum."""
        ...

    def get(self, span: int) -> bytes:
        """The bytes of a span, from wherever they can be had."""
        ...


class MemberPartial:
    """One member of one layer; shared by all who read it in this process. Methods may be called from any thread.

    Attributes:
        owner: Its layer.
        last_read_s: When the member was last read, on the monotonic clock.
        is_native: Whether this object has placed the member's file.
    """

    def __init__(self, store: Store, layer: SpanLayer, member: TocMember, index: int) -> None:
        assert member.digest is not None  # files have one
        self.owner = layer
        self.last_read_s = time.monotonic()
        self.is_native = False
        self._store = store
        self._layer = layer
        self._digest = Digest.from_raw(member.digest)
        self._start, self._stop = member.offset, member.offset + member.size
        self._first = layer.find_span(self._start)
        self._last = layer.find_span(self._stop - 1)
        self._name = partial_name(layer.layer, index)
        self._changed = threading.Condition()
        self._partial: Partial | None = None
        self._users = 0  # threads that use it
        self._backlog: deque[tuple[int, bytes]] = deque()
        self._is_opening = False
        self._is_ending = False
        self._retry_s = 0.0
        self._adoption = _Adoption.DUE

    @property
    def is_begun(self) -> bool:
        """Whether a part of it is on disk, as far as this process knows."""
        return self._partial is not None

    def covers(self, span: int) -> bool:
        """Whether the member has bytes of a span."""
        return self._first <= span <= self._last

    def find(self, span: int) -> bytes | None:
        """The verified bytes of a span that somebody has decoded before, or None."""
        self._adopt()  # whatever the span: one that is not read back from here is given to `keep` next
        start, stop = self._layer.range(span)
        if start < self._start or stop > self._stop:
            return None
        with self._changed:
            partial = self._partial
            if partial is None or self._is_ending:
                return None
            self._users += 1
        try:
            if not partial.has(span - self._first):
                return None
            data = partial.read(start - self._start, stop - start)
            if self._layer.is_right(span, data):
                return data
            _log.warning("%s: span %d is not what was written; it is decoded again", partial.path, span)
            partial.forget(span - self._first)
        except (OSError, StoreWriteFailed) as error:
            _log.warning("%s", error)
        finally:
            self._leave()
        return None

    def _adopt(self) -> None:
        """Open the partial that is there already, before the first span is looked for; who comes meanwhile waits.

        Not when the member is opened: that is on the trio thread, and the folder's lock may have to be waited for.
        """
        with self._changed:
            if self._adoption is not _Adoption.DUE:
                self._changed.wait_for(lambda: self._adoption is _Adoption.DONE)
                return
            self._adoption = _Adoption.UNDER_WAY
        partial = None
        try:
            if find_partial(self._store.layout, self._name):
                partial = self._open(has_room=True)
        finally:
            with self._changed:
                if self._partial is None and not self._is_opening and not self.is_native:
                    self._partial, partial = partial, None
                self._adoption = _Adoption.DONE
                self._changed.notify_all()
            if partial is not None:
                partial.close()  # another thread has opened it too

    def keep(self, span: int, data: bytes) -> None:
        """Write a verified span to the member's partial file, once."""
        partial = self._enter((span, data))
        if partial is None:
            return
        try:
            self._write(partial, span, data)
        finally:
            self._leave()

    def consider(self) -> None:
        """Have the member ended where nearly all of it is there."""
        with self._changed:
            partial = self._partial
            if partial is None or self._is_ending:
                return
            self._users += 1
        try:
            if partial.inner_share() >= FILLED_SHARE:
                shared_finisher().submit(self)
        except OSError as error:
            _log.warning("%s", error)
        finally:
            self._leave()

    def begin(self) -> bool:
        """Open the partial where there is room for the member; whether it is open."""
        if self._enter(None) is None:
            return False
        self._leave()
        return True

    def _enter(self, item: tuple[int, bytes] | None) -> Partial | None:
        """The open partial, counted as used; None when it is opened by another thread (which takes the span) or not."""
        with self._changed:
            if self._is_ending or self.is_native:
                return None
            if self._partial is not None:
                self._users += 1
                return self._partial
            if self._is_opening:
                if item is not None and len(self._backlog) < _BACKLOG_MAX:
                    self._backlog.append(item)
                return None
            if time.monotonic() < self._retry_s:
                return None
            self._is_opening = True
        partial = self._open()
        while True:
            with self._changed:
                if partial is None or not self._backlog:
                    self._backlog.clear()
                    self._is_opening = False
                    self._partial = partial
                    self._users += partial is not None
                    self._changed.notify_all()
                    return partial
                following = self._backlog.popleft()
            self._write(partial, *following)

    def _leave(self) -> None:
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def _open(self, *, has_room: bool = False) -> Partial | None:
        try:
            size = self._stop - self._start
            if has_room or is_used(self._store.layout, self._name) or self._store.make_room(size):
                return Partial(self._store.layout, self._name, size, self._last - self._first + 1)
            _shortage.tell(f"{size} bytes more do not fit")
        except (KitfsError, OSError) as error:
            _shortage.tell(error)
        self._retry_s = time.monotonic() + _RETRY_S
        return None

    def _write(self, partial: Partial, span: int, data: bytes) -> None:
        start, stop = self._layer.range(span)
        begin, end = max(start, self._start), min(stop, self._stop)
        number = span - self._first
        try:
            if not partial.has(number) and time.monotonic() >= self._retry_s:
                partial.write(number, memoryview(data)[begin - start : end - start], begin - self._start)
        except (OSError, StoreWriteFailed) as error:
            self._retry_s = time.monotonic() + _RETRY_S
            _shortage.tell(error)

    def run(self) -> None:
        """End the member: decode what is missing, hash, place, record. A job of the finisher.

        On disk when `is_native` is true afterwards: the member's file, verified and recorded.

        Raises:
            LayerCorrupt: when the layer does not give the bytes.
            KitfsError, OSError: when the store or the disk fails.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_ending)  # by another thread
        partial = self._enter(None)
        if partial is None:
            return
        try:
            for number in partial.find_missing():
                self._write(partial, self._first + number, self._layer.get(self._first + number))
            if not partial.is_whole:
                return
            with self._changed:
                self._is_ending = True
        finally:
            self._leave()
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0)
        try:
            self._place(partial)
        except BaseException:
            self._retry_s = time.monotonic() + _RETRY_S
            raise
        finally:
            with self._changed:
                self._partial = None
                self._is_ending = False
                self._changed.notify_all()

    def _place(self, partial: Partial) -> None:
        try:
            with self._store.lease(f"materialise member {self._digest}") as lease:
                if not self._store.place_partial(lease, partial, self._digest):
                    return
                change = self._store.change(lease)
                change.add_member(self._digest, partial.size)
                change.commit()
                self.is_native = True
        except DigestMismatch as error:
            self._retry_s = time.monotonic() + _RETRY_S
            _log.error("%s: %s; it is made anew", partial.path, error)
        finally:
            partial.close()

    def __del__(self) -> None:
        if self._partial is not None:
            self._partial.close()
