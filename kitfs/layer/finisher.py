"""The thread that ends what was begun behind readers: one per process, for when its readers are idle.

Hashing a member of 5 GB takes 3 seconds of a core, which a loader that waits for the next member needs itself. So a
job is run when nobody has read its member for half a second and no span is being decoded, or when it has waited for a
minute. Jobs are the members of `member_partial` and the files that `lazy_member` finds changed.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from typing import Protocol

from kitfs.layer.span_pool import shared_pool

IDLE_S = 0.5
PATIENCE_S = 60.0
_EXIT_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class Job(Protocol):
    """Something to be done once.

    Attributes:
        owner: Who gives up all its jobs at once.
    """

    @property
    def owner(self) -> object: ...  # noqa: D102  # see the class

    @property
    def last_read_s(self) -> float:
        """When its member was last read, on the monotonic clock."""
        ...

    def run(self) -> None:
        """Do it; what it raises is logged."""
        ...


class Finisher:
    """Runs jobs, one after another. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[Job, float] = {}  # with the time of their coming
        self._thread: threading.Thread | None = None
        self._running: Job | None = None
        self._is_closed = False

    def submit(self, job: Job) -> None:
        """Run a job when it is its time; one that waits already is not added again."""
        with self._changed:
            if self._is_closed or job in self._jobs:
                return
            self._jobs[job] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kitfs-finish", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no job waits or runs; False when that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and self._running is None, timeout_s)

    def drop(self, owner: object) -> None:
        """Give up the jobs of an owner; one that runs is waited for."""
        with self._changed:
            for job in [job for job in self._jobs if job.owner is owner]:
                del self._jobs[job]
            self._changed.wait_for(lambda: self._running is None or self._running.owner is not owner)

    def close(self) -> None:
        """Drop what waits; wait 5 s at most for what runs, which a kill at any point does no harm."""
        with self._changed:
            self._is_closed = True
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_EXIT_TIMEOUT_S)

    def _run(self) -> None:
        while (job := self._take()) is not None:
            try:
                job.run()
            except Exception as error:  # noqa: BLE001  # readers go on without it
                _log.error("%s", error)
            with self._changed:
                self._running = None
                self._changed.notify_all()
            del job

    def _take(self) -> Job | None:
        with self._changed:
            while not self._is_closed:
                wait_s = None
                for job, came_s in self._jobs.items():
                    due_s = self._due_s(job, came_s)
                    if due_s <= 0:
                        del self._jobs[job]
                        self._running = job
                        return job
                    wait_s = due_s if wait_s is None else min(wait_s, due_s)
                self._changed.wait(wait_s)
            return None

    @staticmethod
    def _due_s(job: Job, came_s: float) -> float:
        now_s = time.monotonic()
        if now_s - came_s > PATIENCE_S:
            return 0.0
        if not shared_pool().is_idle:
            return IDLE_S
        return IDLE_S - (now_s - job.last_read_s)


_shared: Finisher | None = None
_shared_lock = threading.Lock()


def shared_finisher() -> Finisher:
    """The finisher of this process."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Finisher()
        return _shared


def _close_shared() -> None:
    if _shared is not None:
        _shared.close()


def _forget_shared() -> None:
    """In a forked child the thread is the parent's."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(_close_shared)
os.register_at_fork(after_in_child=_forget_shared)
