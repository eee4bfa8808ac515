"""When members were last used: noted by readers, written by a thread that may be late (store.md 3).

A read path never waits for a writer: ``note`` puts an entry into a dictionary. The thread begins with the first note
and writes what has come together every ``DELAY_S``, in one transaction. A note that is lost, by a kill or because the
index fails, lets a member go a little earlier than it should; nothing else.
"""

from __future__ import annotations

import logging
import threading
import time

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.store import catalog
from kitfs.store.index import Index

DELAY_S = 5.0
_CLOSE_TIMEOUT_S = 2.0
_NOTES_MAX = 65536

log = logging.getLogger(__name__)


class UseNotes:
    """Notes of one open store. ``note`` may be called from any thread."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._changed = threading.Condition()
        self._notes: dict[Digest, int] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def note(self, digest: Digest) -> None:
        """A member is used now."""
        now_s = int(time.time())
        with self._changed:
            if self._is_closed or len(self._notes) >= _NOTES_MAX:
                return
            is_first = not self._notes
            self._notes[digest] = now_s
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kitfs-uses", daemon=True)
                self._thread.start()
            elif is_first:
                self._changed.notify_all()

    def close(self) -> bool:
        """Write what is left and end the thread.

        Returns:
            False when the thread waits for another process's transaction: the index must stay open then.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            return True
        thread.join(_CLOSE_TIMEOUT_S)
        return not thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._notes or self._is_closed)
                self._changed.wait_for(lambda: self._is_closed, DELAY_S)
                notes, self._notes = self._notes, {}
                is_closed = self._is_closed
            try:
                self._write(notes)
            except (KitfsError, RuntimeError) as error:
                log.info("when members were last used is not noted: %s", error)
            if is_closed:
                return

    def _write(self, notes: dict[Digest, int]) -> None:
        if notes:
            with self._index.write() as txn:
                for digest, used_s in notes.items():
                    catalog.touch_member(txn, digest, used_s)
