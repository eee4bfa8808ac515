"""Counters of a session over all its workers: they never go backwards when a worker is replaced.

A worker counts from 0. What a dead one had done since it was last asked is not known and is not counted.
"""

from __future__ import annotations

import msgspec

from kitfs.calls import MountState
from kitfs.fuse.orders import WorkerMessage

_COUNTERS = ("reads", "bytes_read", "spans_decoded", "opens", "errors")
"""Fields of ``WorkerMessage`` and of ``MountState`` that add up."""


class Tally:
    """What the dead workers of one session had told."""

    def __init__(self) -> None:
        self._past = WorkerMessage(state="starting")

    def add(self, stats: WorkerMessage) -> None:
        """A worker has died; these are its last counters."""
        added = {name: getattr(self._past, name) + getattr(stats, name) for name in _COUNTERS}
        if stats.state != "starting":
            added["native"] = stats.native
        self._past = msgspec.structs.replace(self._past, **added)

    def tell(self, stats: WorkerMessage, state: MountState) -> None:
        """Fill in what all workers have done, and how the mount is.

        Args:
            stats: The living worker's counters. One that has not told any yet leaves the share of native bytes.
            state: What is filled in.
        """
        for name in _COUNTERS:
            setattr(state, name, getattr(self._past, name) + getattr(stats, name))
        state.state = stats.state
        state.native = self._past.native if stats.state == "starting" else stats.native
