"""The job of looking again at a member's file that is not as it was when it was verified; see `finisher`."""

from __future__ import annotations

from kitfs.digest import Digest
from kitfs.store.store import Store


class RestampJob:
    """A member's file that is not as it was when it was verified: hashed once, then stamped anew or dropped.

    Attributes:
        owner: Who gives up all its jobs at once.
        last_read_s: Never: nobody reads it.
    """

    last_read_s = 0.0

    def __init__(self, store: Store, owner: object, digest: Digest) -> None:
        self.owner = owner
        self._store = store
        self._digest = digest

    def run(self) -> None:
        """Do it.

        Raises:
            KitfsError: when the store fails.
        """
        self._store.restamp_member(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RestampJob) and other._digest == self._digest

    def __hash__(self) -> int:
        return hash(self._digest)
