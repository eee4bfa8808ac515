"""A session that a worker has made and holds ready, before its client has mounted anything.

Used by ``kitfs.daemon.table``. On every way out but to ``kitfs.daemon.session`` the worker is dead and reaped and the
session's record is gone, in this order. Its lock is held without a gap: the worker takes it when it writes the record,
the daemon before it answers the client.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from kitfs.calls import PrepareCall
from kitfs.daemon.worker import Worker
from kitfs.errors import KitfsError
from kitfs.store.layout import Layout
from kitfs.store.sessions import HeldSession, end_session

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Prepared:
    """A session that is not mounted yet.

    Attributes:
        session: Its identity, chosen before there is a worker, so that its record can be found whoever dies.
        call: What the client asked for.
        worker: Who makes it; None until it is forked.
        held: Its lock; None until the worker has made it.
        reference: What is mounted, as it is shown.
    """

    session: str
    call: PrepareCall
    worker: Worker | None = None
    held: HeldSession | None = None
    reference: str = ""

    async def abandon(self, layout: Layout) -> None:
        """End the worker and remove the record. Goes on when cancelled."""
        with trio.CancelScope(shield=True):
            if self.worker is not None:
                self.worker.kill()
                await self.worker.dead.wait()
            if self.held is not None:
                self.held.close()
            remove_record(layout, self.session)


def remove_record(layout: Layout, session: str) -> None:
    """Remove a session's record; when that fails it is GC's, and the log says so."""
    try:
        end_session(layout, session)
    except (KitfsError, OSError) as error:
        log.error("session %s: its record could not be removed: %s", session, error)
