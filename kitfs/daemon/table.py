"""The daemon's sessions by id: start one, list them, wait for an end.

Used by ``kitfs.daemon.server``. Touches of the store only ``sessions/``: it holds a record's lock for as long as it
serves the session, so that garbage collection leaves it alone between two workers, and removes the record at its end.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import trio

from kitfs.control import MountCall, MountState
from kitfs.daemon.forker import Forker
from kitfs.daemon.session import Session
from kitfs.errors import BusyError, KitfsError
from kitfs.store.layout import Layout
from kitfs.store.sessions import HeldSession, end_session, open_session

log = logging.getLogger(__name__)

SESSIONS_MAX = 1000
"""Mounts of one daemon; fusermount3 lets a user have as many (``mount_max``)."""


class TooManyMounts(BusyError):
    """The daemon serves as many mounts as it may."""

    hint = "kitfs umount some"


class SessionTaken(BusyError):
    """A session that is being served already."""


class Table:
    """All sessions of a daemon.

    Attributes:
        changed: Set, and replaced by another, when a session comes or goes.
    """

    def __init__(self, home: Path, forker: Forker, nursery: trio.Nursery) -> None:
        self.changed = trio.Event()
        self._layout = Layout(home)
        self._forker = forker
        self._nursery = nursery
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    async def mount(self, call: MountCall, device: int) -> None:
        """Serve a session and return when its mount can be read. Takes over ``device`` whatever happens.

        Raises:
            SessionTaken: when it is being served already.
            TooManyMounts: at ``SESSIONS_MAX``.
            KitfsError: when there is no such session, or why it can not be served; nothing is left of it then.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, device)
            if call.session in self._sessions:
                raise SessionTaken(f"session {call.session} is served already")
            if len(self._sessions) >= SESSIONS_MAX:
                raise TooManyMounts(f"{SESSIONS_MAX} mounts are served already")
            held = open_session(self._layout, call.session)
            stack.pop_all()
        session = Session(call, device, self._forker)
        self._sessions[call.session] = session
        self._note_change()
        self._nursery.start_soon(self._follow, session, held)
        await session.outcome.done.wait()
        if session.outcome.error is not None:
            await session.ended.wait()
            raise session.outcome.error

    async def _follow(self, session: Session, held: HeldSession) -> None:
        def end_record() -> None:
            held.close()
            try:
                end_session(self._layout, session.call.session)
            except (KitfsError, OSError) as error:
                log.error("session %s: its record could not be removed: %s", session.call.session, error)
            del self._sessions[session.call.session]
            self._note_change()

        await session.run(end_record)

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
            states[session.call.session] = await session.state()

        sessions = list(self._sessions.values())
        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(ask, session)
        return [states[session.call.session] for session in sessions]
