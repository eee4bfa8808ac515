"""When a worker is hung, when its successor may start, and when nobody is waited for any more.

Used by ``kitfs.daemon.session``. Never looks at a mount: it asks workers, and reads ``/proc``.
"""

from __future__ import annotations

import logging
from collections import deque

import trio

from kitfs.daemon.procfs import WAITS_FOR_DISK, cpu_wait_s, find_state
from kitfs.daemon.worker import Worker

log = logging.getLogger(__name__)

_PARTS = 3
"""The time is cut in parts, and one that is over without an answer is not enough: a daemon that was stopped itself
finds its time over when it goes on, and the answer there."""

_PATIENCE = 6
"""So many times as long may a worker be silent that others hold up: its event loop waits for the disk (state D), or its
threads for a core, for half of the time. Killing it helps nobody then."""

KILLS_MAX = 300
KILLS_WINDOW_S = 10.0
"""A worker that is killed as soon as it serves lives 25 ms; who kills so many in 10 s is slowed down."""

QUICK_FAULTS = 20
"""So many workers in a row that end by their own doing soon after their start are replaced at once."""

FAILED_START = 4
"""One that can not even start counts as so many: 5 are tried at once."""

HEALTHY_S = 2.0
"""A worker that served for so long was well."""

DELAY_FIRST_S = 0.1
DELAY_MAX_S = 10.0


class Backoff:
    """How long to wait before the next worker: not at all, unless they die of something that a next one dies of too.

    Attributes:
        failures: Workers in a row that ended by their own doing, as counted here.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._kills: deque[float] = deque(maxlen=KILLS_MAX)

    def note_death(self, served_s: float, *, is_fault: bool) -> float:
        """Count a death.

        Args:
            served_s: For how long it had served, below 0 when it could not start.
            is_fault: Whether it ended by its own doing, not by somebody's kill.

        Returns:
            For how many seconds no worker is to be started.
        """
        now = trio.current_time()
        self._kills.append(now)
        if served_s >= HEALTHY_S:
            self.failures = 0
        if is_fault:
            self.failures += 1 if served_s >= 0 else FAILED_START
        elif len(self._kills) == KILLS_MAX and now - self._kills[0] < KILLS_WINDOW_S:
            return DELAY_FIRST_S
        over = self.failures - QUICK_FAULTS
        return min(DELAY_FIRST_S * 2 ** min(over, 20), DELAY_MAX_S) if over >= 0 else 0.0


async def kill_when_hung(worker: Worker, hung_s: float) -> None:
    """Kill a worker that serves when its event loop has answered nothing for ``hung_s``; returns then, or when it died.

    One that decodes or waits for a disk answers all the same: that is done by other threads than its event loop's.
    """
    part_s = hung_s / _PARTS
    silent = 0
    waited_s = 0.0
    while not worker.dead.is_set():
        with trio.move_on_after(part_s):
            await worker.probe()
            await worker.dead.wait()
        if not worker.is_silent:
            silent = 0
            continue
        silent += 1
        if silent == 1:
            waited_s = cpu_wait_s(worker.pid)
        state = find_state(worker.pid)
        is_held_up = state == WAITS_FOR_DISK or cpu_wait_s(worker.pid) - waited_s > (silent - 1) * part_s / 2
        if silent >= (_PARTS - 1) * (_PATIENCE if silent > 1 and is_held_up else 1):
            log.error("worker %d answers nothing for %g s (state %s) and is killed", worker.pid, silent * part_s, state)
            worker.kill(hung=True)
            return
