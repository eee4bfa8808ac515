"""One mount: its device, its INIT, and always one worker, until the kernel says that the mount is gone.

Used by ``kitfs.daemon.table``. States: *starting* (INIT, first worker) → *serving* (a worker, or between two of them)
→ *ended*. A session ends when the device reports POLLERR (unmounted or aborted), when its first worker can not start,
when workers keep dying, or when the daemon stops. On every way out the worker is dead and reaped, the device is
closed and the session's record is gone, in this order; with the last copy of the device gone, whoever still waits
for the mount gets ENOTCONN.

It never reads or stats a path below the mount, and never looks whether the mount is still there (fuse.md 2.9, 2.10).
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from kitfs.control import MountCall, MountState
from kitfs.daemon.forker import Forker, ForkFailed
from kitfs.daemon.worker import Worker, WorkerDied, WorkerFailed
from kitfs.errors import FuseError, KitfsError
from kitfs.fuse import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 5.0
"""The kernel queues INIT while it mounts, so it is there when the descriptor arrives."""

START_TIMEOUT_S = 60.0
"""A worker builds its tree first: 0.02 s for a kit of 12 files, some seconds for a million."""

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
        call: What the client said of it.
        outcome: How its start went.
        ended: Set when nothing is left of it.
    """

    def __init__(self, call: MountCall, device: int, forker: Forker) -> None:
        self.call = call
        self.outcome = Outcome(trio.Event())
        self.ended = trio.Event()
        self._device = device
        self._forker = forker
        self._worker: Worker | None = None
        self._restarts = 0
        self._began_s = trio.current_time()

    async def run(self, end_record: Callable[[], None]) -> None:
        """Serve until the mount is gone; raises nothing but cancellation.

        Args:
            end_record: Removes the session's record from the store.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_device, nursery.cancel_scope)
                await self._serve()
                nursery.cancel_scope.cancel()
        except* KitfsError as group:
            error = group.exceptions[0]
            log.error("session %s of %s: %s", self.call.session, self.call.reference, error)
            self.outcome.settle(error if isinstance(error, KitfsError) else None)
        except* Exception as group:  # one mount's trouble, the device's included, must not end the others
            log.exception("session %s of %s", self.call.session, self.call.reference)
            self.outcome.settle(DeviceUnusable(f"the FUSE device can not be used: {group.exceptions[0]}"))
        finally:
            os.close(self._device)
            end_record()
            self.outcome.settle(SessionEnded("the mount went away while it was being made"))
            self.ended.set()
            log.info("session %s of %s has ended", self.call.session, self.call.reference)

    async def _watch_device(self, scope: trio.CancelScope) -> None:
        """Cancel ``scope`` when the device reports POLLERR.

        An epoll that asks for no event reports errors only, so requests wake nobody here.
        """
        with select.epoll() as watcher:
            watcher.register(self._device, 0)
            await trio.lowlevel.wait_readable(watcher.fileno())
        log.info("session %s of %s: unmounted", self.call.session, self.call.reference)
        scope.cancel()

    async def _serve(self) -> None:
        init = await self._answer_init()
        deaths: deque[float] = deque(maxlen=DEATHS_MAX)
        failures = 0
        while True:
            try:
                await self._run_worker(init, resend=bool(deaths))
                failures = 0
            except WorkerFailed as error:
                if not self.outcome.done.is_set():
                    raise
                log.error("session %s: %s", self.call.session, error)
                failures += 1
            except (WorkerDied, ForkFailed) as error:
                log.warning("session %s: %s", self.call.session, error)
                failures += 1
            if self._is_unmounted():
                return
            deaths.append(trio.current_time())
            if failures >= FAILURES_MAX:
                raise SessionAbandoned(f"{FAILURES_MAX} workers one after the other died before they could serve")
            if len(deaths) == DEATHS_MAX and deaths[-1] - deaths[0] < DEATHS_WINDOW_S:
                raise SessionAbandoned(f"{DEATHS_MAX} workers died within {DEATHS_WINDOW_S:g} s")
            self._restarts += 1

    async def _answer_init(self) -> bytes:
        """Read the kernel's INIT, answer it, and return the copy for the workers.

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
        return protocol.mask_init(request, protocol.negotiate(request))

    async def _run_worker(self, init: bytes, *, resend: bool) -> None:
        """Fork a worker and return when it is dead and reaped."""
        worker = await self._forker.fork(self.call.session, device=self._device, init=init, resend=resend)
        self._worker = worker
        try:
            with trio.move_on_after(START_TIMEOUT_S) as scope:
                await worker.wait_started()
            if scope.cancelled_caught:
                raise WorkerDied(f"a worker did not serve within {START_TIMEOUT_S:g} s and was killed")
            self.outcome.settle()
            await worker.dead.wait()
            log.warning("session %s: worker %d %s", self.call.session, worker.pid, worker.end())
        finally:
            with trio.CancelScope(shield=True):
                if self._is_unmounted():
                    with trio.move_on_after(GRACE_S):
                        await worker.dead.wait()
                worker.kill()
                await worker.dead.wait()

    def _is_unmounted(self) -> bool:
        poll = select.poll()
        poll.register(self._device, 0)
        return bool(poll.poll(0))

    async def state(self) -> MountState:
        """What ``List`` shows of it."""
        call = self.call
        state = MountState(call.session, call.mountpoint, call.reference, call.device, restarts=self._restarts)
        state.uptime_s = round(trio.current_time() - self._began_s, 3)
        if self._worker is not None and self.outcome.done.is_set():
            stats = await self._worker.stats()
            state.pid = self._worker.pid
            state.reads, state.bytes_read = stats.reads, stats.bytes_read
            state.state, state.native = stats.state, stats.native
        return state
