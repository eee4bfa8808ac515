"""Member files of a compressed layer, made when somebody asks: one decoding per layer and process.

Each `LayerReader` of a compressed layer has a `Materialiser`; those of one layer share the `Decoding` that is under
way. The lock here guards a dictionary and a counter only; nothing is read, decoded or waited for under it. Two
processes may decode one layer at once: they store the same files, each verified, and the first one placed stays. A
decoding ends with its last user, or with the process.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Sequence

from kitfs.digest import Digest
from kitfs.layer.decoding import Decoding
from kitfs.layer.errors import LayerCorrupt
from kitfs.store.records import LayerRecord, TocMember
from kitfs.store.stamp import find_status, matches
from kitfs.store.store import Store

_RETRY_S = 5.0  # a full disk is not asked again by each of a loader's READs
_EXIT_TIMEOUT_S = 5.0

_lock = threading.Lock()
_running: dict[tuple[str, Digest], Decoding] = {}


class Materialiser:
    """Makes member files of one layer. Methods may be called from any thread."""

    def __init__(self, store: Store, layer: Digest, record: LayerRecord, toc: Sequence[TocMember]) -> None:
        self._store = store
        self._layer = layer
        self._record = record
        self._toc = toc
        self._key = (str(store.home), layer)
        self._decoding: Decoding | None = None  # under the module's lock
        self._is_closed = False

    @property
    def is_running(self) -> bool:
        """Whether the layer is being decoded."""
        decoding = self._decoding
        return decoding is not None and decoding.is_running

    def materialise(self, digest: Digest, *, is_lost: bool = False) -> None:
        """Wait until a member is stored; start decoding the layer where nobody has.

        On disk when this returns: the member's file, verified and recorded, unless it was evicted since.

        Args:
            digest: The member.
            is_lost: Whether it was stored before and is gone: the decoding under way, which is past it, is waited
                for, and the next call starts another.

        Raises:
            LayerCorrupt: when the layer does not give the member's bytes. The layer is not decoded again before
                its blob has been replaced.
            KitfsError, OSError: when reading or storing fails; the layer is not decoded again within 5 s.
        """
        decoding = self._join(digest)
        if is_lost:
            decoding.forget(digest)
        decoding.wait(digest)

    def begin(self, digest: Digest) -> None:
        """Start decoding the layer where nobody has, and do not wait; what goes wrong is told to who waits later."""
        self._join(digest)

    def _join(self, digest: Digest) -> Decoding:
        with _lock:
            mine = self._decoding
        if mine is not None:
            if mine.is_running or self._is_futile(mine, digest):
                return mine
            self._leave(mine)
        with _lock:
            if self._is_closed:
                raise ValueError("the layer's reader is closed")
            if self._decoding is not None:
                return self._decoding
            decoding = _running.get(self._key)
            is_first = decoding is None or not decoding.is_running
            if decoding is None or is_first:
                decoding = _running[self._key] = Decoding(self._store, self._layer, self._record, self._toc)
            decoding.users += 1
            self._decoding = decoding
        if is_first:
            decoding.start()
        return decoding

    def _is_futile(self, ended: Decoding, digest: Digest) -> bool:
        """Whether decoding again would only fail again."""
        error = ended.find_error(digest)
        if isinstance(error, LayerCorrupt):
            return matches(ended.blob_stamp, find_status(self._store.layout.blob(self._layer)))
        return error is not None and time.monotonic() - ended.ended_s < _RETRY_S

    def _leave(self, decoding: Decoding) -> None:
        with _lock:
            if self._decoding is not decoding:
                return
            self._decoding = None
            decoding.users -= 1
            is_last = decoding.users == 0
            if is_last and _running.get(self._key) is decoding:
                del _running[self._key]
        if is_last:
            decoding.cancel()
            decoding.join()

    def close(self) -> None:
        """Give up; a decoding that nobody else uses is ended and waited for (one piece and one fsync at most)."""
        with _lock:
            self._is_closed = True
            decoding = self._decoding
        if decoding is not None:
            self._leave(decoding)


def _end_all() -> None:
    """At exit: no thread is left in the middle of a transaction."""
    with _lock:
        running = list(_running.values())
    for decoding in running:
        decoding.cancel()
    for decoding in running:
        decoding.join(_EXIT_TIMEOUT_S)


def _forget_all() -> None:
    """In a forked child the threads are the parent's."""
    global _lock
    _lock = threading.Lock()
    _running.clear()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_forget_all)
