"""The daemon's sessions by id: prepare one, start it, list them, wait for an end.

Used by ``kitfs.daemon.server``. Touches of the store only ``sessions/``: it holds a record's lock for as long as it
serves the session, so that garbage collection leaves it alone between two workers, and removes the record at its end,
unless the mount is wanted or was lost.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import trio

from kitfs.calls import MountCall, MountState, PrepareCall
from kitfs.daemon.keepers import Keepers
from kitfs.daemon.kept import KeptSet
from kitfs.daemon.prepared import Prepared, remove_record
from kitfs.daemon.session import Session
from kitfs.daemon.worker import WorkerDied, WorkerFailed
from kitfs.errors import BusyError
from kitfs.fuse.orders import PrepareOrder
from kitfs.store.layout import Layout
from kitfs.store.sessions import new_session_id, note_lost, open_session
from kitfs.store.wanted import is_wanted

log = logging.getLogger(__name__)

SESSIONS_MAX = 1000
"""Mounts of one daemon; fusermount3 lets a user have as many (``mount_max``)."""


class TooManyMounts(BusyError):
    """The daemon serves as many mounts as it may."""

    hint = "kitfs umount some"


class Table:
    """All sessions of a daemon.

    Attributes:
        changed: Set, and replaced by another, when a session comes or goes.
    """

    def __init__(self, home: Path, keepers: Keepers, nursery: trio.Nursery) -> None:
        self.changed = trio.Event()
        self._layout = Layout(home)
        self._keepers = keepers
        self._forker = keepers.forker
        self._replacing = trio.Lock()
        self._nursery = nursery
        self._sessions: dict[str, Session] = {}
        self._prepared: set[Prepared] = set()

    def __len__(self) -> int:
        return len(self._sessions) + len(self._prepared)

    async def prepare(self, call: PrepareCall, uid: int, gid: int) -> Prepared | None:
        """Have a worker make a session and hold it; ``mount`` or ``abandon`` must follow.

        Returns:
            None when the client must import something first; nothing was made then.

        Raises:
            TooManyMounts: at ``SESSIONS_MAX``.
            KitfsError: why it can not be mounted; nothing is left of it then.
        """
        if len(self) >= SESSIONS_MAX:
            raise TooManyMounts(f"{SESSIONS_MAX} mounts are served already")
        prepared = Prepared(new_session_id(), call)
        self._prepared.add(prepared)
        self._note_change()
        try:
            worker = prepared.worker = await self._forker.fork()
            answer = await worker.prepare(PrepareOrder(prepared.session, call, uid, gid))
            if answer.import_first:
                await self.abandon(prepared)
                return None
            prepared.reference = answer.reference
            prepared.held = open_session(self._layout, prepared.session)
        except WorkerFailed as error:
            await self.abandon(prepared)
            raise error.reason from None
        except BaseException:
            await self.abandon(prepared)
            raise
        return prepared

    async def abandon(self, prepared: Prepared) -> None:
        """Leave nothing of what was prepared. Goes on when cancelled."""
        await prepared.abandon(self._layout)
        self._prepared.discard(prepared)
        self._note_change()

    async def mount(self, prepared: Prepared, call: MountCall, device: int) -> None:
        """Serve a session and return when its mount can be read. Takes over both arguments whatever happens.

        Raises:
            WorkerDied: when its worker has died meanwhile.
            KitfsError: why it can not be served; nothing is left of it then.
        """
        worker, held = prepared.worker, prepared.held
        if worker is None or held is None or worker.dead.is_set():
            os.close(device)
            await self.abandon(prepared)
            raise WorkerDied(f"the worker {worker.end() if worker else 'ended'} before anything was mounted")
        state = MountState(prepared.session, prepared.call.mountpoint, prepared.reference, call.device)
        state.is_writable = bool(prepared.call.staging)
        session = Session(state, device, os.dup(held.fileno()), self._keepers, worker)
        held.close()
        self._prepared.discard(prepared)
        self._begin(session)
        await session.outcome.done.wait()
        if session.outcome.error is not None:
            await session.ended.wait()
            raise session.outcome.error

    def adopt(self, kept: KeptSet, *, replace: bool = False) -> Session:
        """Go on with a session that another daemon had, unless that is done already; takes the set over.

        Args:
            kept: What keeps it alive.
            replace: Whether its worker, if it lives, is of another version and has to be replaced.
        """
        session = self._sessions.get(kept.session)
        if session is None:
            session = Session.adopt(kept, self._keepers)
            log.info("session %s of %s is adopted", session.id, kept.memory.header.mount.reference)
            self._begin(session)
        else:
            kept.close()
        if replace:
            self.replace(session)
        return session

    def replace(self, session: Session) -> None:
        """Have a worker of this version follow the one that serves; later, when those before it are replaced."""
        self._nursery.start_soon(self._replace, session)

    async def _replace(self, session: Session) -> None:
        """One after the other, so that each has the machine to itself."""
        async with self._replacing:
            await session.replace_worker()

    def copies(self) -> list[KeptSet]:
        """What keeps all mounts alive, still the table's own."""
        return [kept for session in self._sessions.values() if (kept := session.copies()) is not None]

    async def wait_settled(self, timeout_s: float) -> bool:
        """Wait until no mount is being made; at most ``timeout_s``. True when it is so."""
        with trio.move_on_after(timeout_s):
            while True:
                changed = self.changed
                starting = [session for session in self._sessions.values() if not session.outcome.done.is_set()]
                if starting:
                    await starting[0].outcome.done.wait()
                elif self._prepared:
                    await changed.wait()
                else:
                    return True
        return False

    def _begin(self, session: Session) -> None:
        self._sessions[session.id] = session
        self._note_change()
        self._nursery.start_soon(self._follow, session)

    async def _follow(self, session: Session) -> None:
        def end_record() -> None:
            if session.lost:
                self._keep_lost(session)
            elif not is_wanted(self._layout, session.id):
                remove_record(self._layout, session.id)
            del self._sessions[session.id]
            self._note_change()

        await session.run(end_record)

    def _keep_lost(self, session: Session) -> None:
        """Its mount is still there, and ``kitfs ps`` says why it is dead; the record is garbage collection's."""
        try:
            note_lost(self._layout, session.id, session.lost)
        except OSError as error:
            log.error("session %s: why it was lost could not be written down: %s", session.id, error)

    def _note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def wait_ended(self, session_id: str, timeout_s: float) -> bool:
        """Wait until nothing is left of a session; at most ``timeout_s``. True when it is so."""
        session = self._sessions.get(session_id)
        if session is None:
            return True
        with trio.move_on_after(timeout_s):
            await session.ended.wait()
        return session.ended.is_set()

    async def states(self) -> list[MountState]:
        """All mounts, in order of their start, with the counters of their workers."""
        states: dict[str, MountState] = {}

        async def ask(session: Session) -> None:
            state = states[session.id] = await session.state()
            state.wanted = is_wanted(self._layout, session.id)

        sessions = sorted(self._sessions.values(), key=lambda session: session.began_s)
        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(ask, session)
        return [states[session.id] for session in sessions]
