"""Which bytes of a member will be wanted next, from the reads that were.

A read continues a *run* when it begins within 4 MiB of the furthest byte that the run has reached: the kernel's
requests arrive out of order. Each read that takes a run further doubles how far ahead it looks, from two spans to
12 MB; a read that continues no run begins one, with nothing ahead. A member has a few runs, since loaders read with
several threads. State belongs to the member, not to a handle: processes that map one file each show a few of its reads.
Any thread.
"""

from __future__ import annotations

import threading

NEAR_SIZE = 4 << 20
AHEAD_SIZE_MIN = 1 << 20
AHEAD_SIZE_MAX = 12 << 20
RUNS_MAX = 8


class _Run:
    __slots__ = ("ahead_size", "furthest")

    def __init__(self, furthest: int) -> None:
        self.furthest = furthest
        self.ahead_size = 0


class ReadAhead:
    """The runs of one member."""

    __slots__ = ("_lock", "_runs")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: list[_Run] = []  # the one that was continued last is last

    def note(self, start: int, stop: int) -> tuple[int, int]:
        """Note a read of ``[start, stop)``; the range to decode ahead, which may be empty and exceed the member."""
        with self._lock:
            run = min(self._runs, key=lambda run: abs(start - run.furthest), default=None)
            if run is None or abs(start - run.furthest) > NEAR_SIZE:
                if len(self._runs) == RUNS_MAX:
                    del self._runs[0]
                self._runs.append(_Run(stop))
                return stop, stop
            if run is not self._runs[-1]:
                self._runs.remove(run)
                self._runs.append(run)
            if stop > run.furthest:
                run.furthest = stop
                limit = AHEAD_SIZE_MAX // len(self._runs)
                run.ahead_size = max(min(2 * run.ahead_size, limit), AHEAD_SIZE_MIN)
            return run.furthest, run.furthest + run.ahead_size
