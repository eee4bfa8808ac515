"""One mount: its device, its INIT, and always one worker, until the kernel says that the mount is gone.

Used by ``kitfs.daemon.table``, which hands over the worker that has prepared the session. States: *starting* (INIT,
first worker) → *serving* (a worker, or between two of them) → *ended*. A session ends when the device reports POLLERR
(unmounted or aborted), when its first worker can not start, when workers keep dying, or when the daemon stops. On
every way out the worker is dead and reaped, the device is closed and the session's record is gone, in this order;
with the last copy of the device gone, whoever still waits for the mount gets ENOTCONN.

It never reads or stats a path below the mount, and never looks whether the mount is still there (fuse.md 2.9, 2.10).
"""

from __future__ import annotations

import copy
import fcntl
import logging
import os
import select
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from kitfs import logs
from kitfs.calls import MountState
from kitfs.daemon.counters import Tally
from kitfs.daemon.forker import Forker, ForkFailed
from kitfs.daemon.worker import Worker, WorkerDied, WorkerFailed
from kitfs.errors import FuseError, KitfsError
from kitfs.fuse import protocol
from kitfs.fuse.memory import SessionHeader, SessionMemory
from kitfs.fuse.orders import ServeOrder

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 5.0
"""The kernel queues INIT while it mounts, so it is there when the descriptor arrives."""

GRACE_S = 2.0
"""For how long a worker may take to notice that its mount is gone."""

FAILURES_MAX = 5
"""So many workers in a row that can not even start end the session."""

DEATHS_MAX = 100
DEATHS_WINDOW_S = 10.0
"""A worker that dies of each request it is given dies 50 times a second; nobody kills 100 by hand in 10 s."""


class DeviceUnusable(FuseError):
    """A descriptor on which no FUSE session can be started."""


class SessionAbandoned(KitfsError):
    """Workers of a session keep dying."""

    hint = "the daemon's log says why; unmount it and mount it again"


class SessionEnded(KitfsError):
    """The mount went away while it was being made."""


@dataclass
class Outcome:
    """How the start of a session went: ``done`` is set when it serves, or when it never will (``error``)."""

    done: trio.Event
    error: KitfsError | None = None

    def settle(self, error: KitfsError | None = None) -> None:
        """Set the outcome; the first one counts."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Session:
    """A mount that the daemon serves.

    Attributes:
        id: Its identity.
        outcome: How its start went.
        ended: Set when nothing is left of it.
    """

    def __init__(self, state: MountState, device: int, forker: Forker, worker: Worker) -> None:
        """Take over a mount.

        Args:
            state: What ``List`` shows of it before it serves.
            device: Its device.
            forker: Where later workers come from.
            worker: The first one, which has prepared the session.
        """
        self.id = state.session
        self.outcome = Outcome(trio.Event())
        self.ended = trio.Event()
        self._device = device
        self._forker = forker
        self._worker = worker
        self._first_state = state
        self._memory: SessionMemory | None = None
        self._tally = Tally()
        self._began_s = time.time()

    async def run(self, end_record: Callable[[], None]) -> None:
        """Serve until the mount is gone; raises nothing but cancellation.

        Args:
            end_record: Removes the session's record from the store.
        """
        logs.name_subject(self.id, self._first_state.reference)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_device, nursery.cancel_scope)
                await self._serve()
                nursery.cancel_scope.cancel()
        except* KitfsError as group:
            error = group.exceptions[0]
            log.error("session %s of %s: %s", self.id, self._first_state.reference, error)
            self.outcome.settle(error if isinstance(error, KitfsError) else None)
        except* Exception as group:  # one mount's trouble, the device's included, must not end the others
            log.exception("session %s of %s", self.id, self._first_state.reference)
            self.outcome.settle(DeviceUnusable(f"the FUSE device can not be used: {group.exceptions[0]}"))
        finally:
            await self._end_worker()
            os.close(self._device)
            if self._memory is not None:
                self._memory.close()
            end_record()
            self.outcome.settle(SessionEnded("the mount went away while it was being made"))
            self.ended.set()
            log.info("session %s of %s has ended", self.id, self._first_state.reference)

    async def _watch_device(self, scope: trio.CancelScope) -> None:
        """Cancel ``scope`` when the device reports POLLERR.

        An epoll that asks for no event reports errors only, so requests wake nobody here.
        """
        with select.epoll() as watcher:
            watcher.register(self._device, 0)
            await trio.lowlevel.wait_readable(watcher.fileno())
        log.info("session %s of %s: unmounted", self.id, self._first_state.reference)
        scope.cancel()

    async def _serve(self) -> None:
        memory = self._memory = await self._answer_init()
        deaths: deque[float] = deque(maxlen=DEATHS_MAX)
        failures = 0
        while True:
            try:
                await self._run_worker(memory, resend=bool(deaths))
                failures = 0
            except WorkerFailed as error:
                if not self.outcome.done.is_set():
                    raise error.reason from None
                log.error("session %s: %s", self.id, error)
                failures += 1
            except (WorkerDied, ForkFailed) as error:
                log.warning("session %s: %s", self.id, error)
                failures += 1
            if self._is_unmounted():
                return
            deaths.append(trio.current_time())
            if failures >= FAILURES_MAX:
                raise SessionAbandoned(f"{FAILURES_MAX} workers one after the other died before they could serve")
            if len(deaths) == DEATHS_MAX and deaths[-1] - deaths[0] < DEATHS_WINDOW_S:
                raise SessionAbandoned(f"{DEATHS_MAX} workers died within {DEATHS_WINDOW_S:g} s")
            memory.restarts += 1

    async def _answer_init(self) -> SessionMemory:
        """Read the kernel's INIT, answer it, and return the session's memory, with a copy of it for the workers.

        The device does not block meanwhile: whoever sent it may have read INIT away.
        """
        flags = fcntl.fcntl(self._device, fcntl.F_GETFL)
        fcntl.fcntl(self._device, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        try:
            with trio.fail_after(INIT_TIMEOUT_S):
                await trio.lowlevel.wait_readable(self._device)
            request = protocol.parse_init(os.read(self._device, protocol.INIT_BUFFER_SIZE))
        except trio.TooSlowError:
            raise DeviceUnusable(f"the kernel sent no INIT within {INIT_TIMEOUT_S:g} s") from None
        finally:
            fcntl.fcntl(self._device, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        os.write(self._device, protocol.encode_init_reply(request))
        init = protocol.mask_init(request, protocol.negotiate(request))
        return SessionMemory.create(SessionHeader(self._first_state, init, int(request.flags), self._began_s))

    async def _run_worker(self, memory: SessionMemory, *, resend: bool) -> None:
        """Have a worker serve, the prepared one or a successor, and return when it is dead and reaped."""
        if resend:
            successor = await self._forker.fork()
            self._tally.add(self._worker.last_stats)
            self._worker = successor
        worker = self._worker
        try:
            await worker.serve(ServeOrder(self.id, resend), device=self._device, memory=memory)
            self.outcome.settle()
            await worker.dead.wait()
            log.warning("session %s: worker %d %s", self.id, worker.pid, worker.end())
        finally:
            await self._end_worker()

    async def _end_worker(self) -> None:
        """Wait until the worker is dead and reaped; it may notice by itself that its mount is gone."""
        with trio.CancelScope(shield=True):
            if self._is_unmounted():
                with trio.move_on_after(GRACE_S):
                    await self._worker.dead.wait()
            self._worker.kill()
            await self._worker.dead.wait()

    def _is_unmounted(self) -> bool:
        poll = select.poll()
        poll.register(self._device, 0)
        return bool(poll.poll(0))

    async def state(self) -> MountState:
        """What ``List`` shows of it."""
        state = copy.copy(self._first_state)
        state.restarts = self._memory.restarts if self._memory else 0
        state.uptime_s = round(max(time.time() - self._began_s, 0.0), 3)
        if self.outcome.done.is_set():
            await self._worker.stats()
            worker = self._worker  # another one, when the one that was asked has died meanwhile
            self._tally.tell(worker.last_stats, state)
            if worker.dead.is_set():
                state.state = "starting"
            else:
                state.pid = worker.pid
        return state
