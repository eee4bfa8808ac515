"""How the start of a session went, and how a worker of it ended. Used by ``kitfs.daemon.session``; data only."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from kitfs.errors import KitfsError
from kitfs.fuse.deliveries import KILL_WEIGHT


@dataclass
class Outcome:
    """How the start of a session went: ``done`` is set when it serves, or when it never will (``error``)."""

    done: trio.Event
    error: KitfsError | None = None

    @property
    def is_good(self) -> bool:
        """Whether it serves, or did."""
        return self.done.is_set() and self.error is None

    def settle(self, error: KitfsError | None = None) -> None:
        """Set the outcome; the first one counts."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


@dataclass(frozen=True)
class Death:
    """The end of a worker.

    Attributes:
        served_s: For how long it had served, below 0 when it could not start.
        reason: How it came, in words.
        is_fault: Whether it was its own doing, and not somebody's kill.
        blame: How much that says against what it had in hand (``kitfs.fuse.deliveries``).
    """

    served_s: float
    reason: str
    is_fault: bool
    blame: int = KILL_WEIGHT
