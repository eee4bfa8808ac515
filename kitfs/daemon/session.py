"""One mount: its device, its INIT, and always one worker, until the kernel says that the mount is gone.

Used by ``kitfs.daemon.table``, which hands over the worker that has prepared the session. States: *starting* (INIT,
first worker) → *serving* (a worker, or between two of them) → *ended*. A session ends when the device reports POLLERR
(unmounted or aborted), when its first worker can not start, when no worker has served it for a minute, when a worker
dies on a kernel that can not give its requests to another, or when the daemon stops. On every way out the worker is
dead and reaped, the device is closed and the session's record is gone, in this order; with the last copy of the device
gone, whoever still waits for the mount gets ENOTCONN. Workers that keep dying are replaced ever more slowly, and
readers wait.

It never reads or stats a path below the mount, and never looks whether the mount is still there (fuse.md 2.9, 2.10).
"""

from __future__ import annotations

import copy
import fcntl
import logging
import math
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Self

import trio

from kitfs import logs
from kitfs.calls import MountState
from kitfs.daemon.backing import BackingFiles
from kitfs.daemon.forker import ForkFailed
from kitfs.daemon.keepers import Keepers
from kitfs.daemon.kept import KeptSet, open_worker
from kitfs.daemon.outcome import Death, Outcome
from kitfs.daemon.procfs import abort_connection
from kitfs.daemon.supervision import FAILED_START, Backoff, kill_when_hung
from kitfs.daemon.worker import Worker, WorkerDied, WorkerFailed
from kitfs.errors import FuseError, KitfsError
from kitfs.fuse import protocol
from kitfs.fuse.deliveries import KILL_WEIGHT
from kitfs.fuse.memory import SessionHeader, SessionMemory
from kitfs.fuse.opentable import count_passed_through
from kitfs.fuse.orders import HoldOrder, ServeOrder
from kitfs.store.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 5.0
"""The kernel queues INIT while it mounts, so it is there when the descriptor arrives."""

GRACE_S = 2.0
"""For how long a worker may take to notice that its mount is gone."""

KILL_TIMEOUT_S = 10.0
"""For how long the end of a killed worker is waited for when its session ends."""

FAILURES_MAX = 5
"""So many workers in a row that can not even start end a session that has never served."""


class DeviceUnusable(FuseError):
    """A descriptor on which no FUSE session can be started."""


class SessionLost(KitfsError):
    """A mount that can not be served any more: its readers get ENOTCONN, and only a new one in its place helps."""

    hint = "the daemon's log says why; unmount it and mount it again"


class SessionEnded(KitfsError):
    """The mount went away while it was being made."""


class Session:
    """A mount that the daemon serves.

    Attributes:
        id: Its identity.
        outcome: How its start went.
        ended: Set when nothing is left of it.
        began_s: When it began, seconds since the epoch.
        lost: Why its mount can not be served any more though it is still there, empty when that is not so.
    """

    def __init__(
        self, state: MountState, device: int, lock: int, keepers: Keepers, worker: Worker | None = None
    ) -> None:
        """Take over a mount.

        Args:
            state: What ``List`` shows of it before it serves.
            device: Its device.
            lock: A descriptor that holds its record's lock.
            keepers: Where later workers come from, and who holds copies of what keeps it alive.
            worker: The first one, which has prepared the session.
        """
        self.id = state.session
        self.outcome = Outcome(trio.Event())
        self.ended = trio.Event()
        self.lost = ""
        self._device = device
        self._lock = lock
        self._keepers = keepers
        self._forker = keepers.forker
        self._worker = worker
        self._successor: Worker | None = None
        self._first_state = state
        self._memory: SessionMemory | None = None
        self._backings: BackingFiles | None = None
        self._patience = trio.CancelScope()
        self._reason = ""
        self._native = 0.0
        self.began_s = time.time()

    @classmethod
    def adopt(cls, kept: KeptSet, keepers: Keepers) -> Self:
        """Go on with a mount that another daemon had; with its worker when it lives, else with a new one."""
        header = kept.memory.header
        session = cls(header.mount, kept.device, kept.lock, keepers)
        session._use_memory(kept.memory)
        session.began_s = header.began_s
        session._reason = "its worker died while there was no daemon"
        session.outcome.settle()
        found = open_worker(kept.memory)
        if found is not None:
            session._worker = keepers.forker.adopt(*found)
            session._worker.backings = session._backings
        return session

    def attach(self, pid: int, control: socket.socket) -> bool:
        """Give its worker, which another daemon had, its control socket. False when this is not its worker."""
        if self._worker is None or self._worker.pid != pid:
            control.close()
            return False
        is_ours = self._worker.attach(trio.socket.from_stdlib_socket(control))
        if is_ours and self._backings is not None:
            self._backings.sweep()  # it knows of no answer of another daemon any more that it has not used
        return is_ours

    def copies(self) -> KeptSet | None:
        """What keeps it alive, still its own; None while it has not begun, or has ended."""
        return KeptSet(self._device, self._memory, self._lock) if self._memory and not self.ended.is_set() else None

    async def replace_worker(self) -> None:
        """Put another worker, of this program's version, in place of the one that serves; readers do not notice.

        The other one is ready before the first is killed. When it can not start, the first goes on.
        """
        old = self._worker
        if old is None or old.dead.is_set() or self._successor is not None:
            return
        if self._memory is not None and not protocol.can_resend(self._memory.header.offered):
            log.error("session %s: worker %d stays: this kernel gives its requests to no other", self.id, old.pid)
            return
        try:
            successor = await self._forker.fork()
            try:
                await successor.prepare(HoldOrder(self.id))
            except BaseException:
                successor.kill()
                raise
        except (ForkFailed, WorkerDied, WorkerFailed) as error:
            log.error("session %s: worker %d is not replaced: %s", self.id, old.pid, error)
            return
        if old.dead.is_set() or self.ended.is_set():
            successor.kill()
            return
        self._successor = successor
        log.info("session %s: worker %d is replaced by %d", self.id, old.pid, successor.pid)
        old.kill()
        await old.dead.wait()

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
            self.lost = str(error) if self.outcome.is_good else ""
            log.error("session %s of %s: %s", self.id, self._first_state.reference, error)
            self.outcome.settle(error if isinstance(error, KitfsError) else None)
        except* Exception as group:  # one mount's trouble, the device's included, must not end the others
            log.exception("session %s of %s", self.id, self._first_state.reference)
            self.lost = str(group.exceptions[0]) if self.outcome.is_good else ""
            self.outcome.settle(DeviceUnusable(f"the FUSE device can not be used: {group.exceptions[0]}"))
        finally:
            await self._end_worker()
            if self._backings is not None:
                self._backings.close()
            memory, self._memory = self._memory, None  # whoever asks for the state meanwhile reads no closed map
            with trio.CancelScope(shield=True):
                await self._keepers.drop(self.id)
            os.close(self._device)
            if memory is not None:
                memory.close()
            os.close(self._lock)
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
        """Have one worker after the other serve; returns when the mount is gone.

        Raises:
            SessionLost: when it can not be served any more.
            KitfsError: why the first worker could not start.
        """
        is_adopted = self._memory is not None
        memory = self._memory or self._use_memory(await self._answer_init())
        await self._keepers.keep(KeptSet(self._device, memory, self._lock))
        with self._patience:
            await self._follow_workers(memory, is_adopted=is_adopted)
        if self._patience.cancelled_caught:
            within = f"{self._forker.limits.no_worker_s:g} s"
            raise SessionLost(f"no worker has served it for {within}: {self._reason or 'none has started'}")

    def _use_memory(self, memory: SessionMemory) -> SessionMemory:
        self._memory = memory
        self._backings = BackingFiles(Layout(self._forker.home), self._device, memory.opens)
        return memory

    async def _follow_workers(self, memory: SessionMemory, *, is_adopted: bool) -> None:
        backoff = Backoff()
        order = self._order(resend=is_adopted, blame=KILL_WEIGHT if is_adopted else 0)
        self._begin_patience()
        if is_adopted and self._worker is None:
            self._check_resend(memory, self._reason)
            memory.restarts += 1
        while True:
            death = await self._run_worker(memory, order)
            if self._is_unmounted():
                return
            log.warning("session %s: %s", self.id, death.reason)
            self._reason = death.reason
            self._check_resend(memory, death.reason)
            delay_s = backoff.note_death(death.served_s, is_fault=death.is_fault)
            if not self.outcome.done.is_set() and backoff.failures >= FAILURES_MAX * FAILED_START:
                raise SessionLost(f"{FAILURES_MAX} workers one after the other died before they could serve")
            if delay_s:
                self._reason = f"workers keep dying, the next starts within {delay_s:g} s: {death.reason}"
                log.error("session %s: %s", self.id, self._reason)
                await trio.sleep(delay_s)
            blame = death.blame if death.served_s >= 0 else max(death.blame, order.blame)
            order = self._order(resend=True, blame=0 if self._successor else blame)
            memory.restarts += 1

    def _order(self, *, resend: bool, blame: int) -> ServeOrder:
        may_start = self._forker.restart is not None
        return ServeOrder(self.id, resend, blame, socket=self._forker.socket, may_start=may_start)

    def _check_resend(self, memory: SessionMemory, reason: str) -> None:
        if not protocol.can_resend(memory.header.offered):
            raise SessionLost(f"{reason}, and this kernel gives its requests to no other (before Linux 6.9)")

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
        offered = request.flags & ~protocol.InitFlag.HAS_RESEND if self._forker.limits.no_resend else request.flags
        return SessionMemory.create(SessionHeader(self._first_state, init, int(offered), self.began_s))

    async def _run_worker(self, memory: SessionMemory, order: ServeOrder) -> Death:
        """Have a worker serve, the prepared one or a successor, until it is dead and reaped.

        Raises:
            KitfsError: why the first one could not start.
        """
        began_s = math.inf
        try:
            worker = self._worker = await self._next_worker(order)
        except ForkFailed as error:
            return Death(-1.0, str(error), is_fault=True)
        try:
            if not worker.is_serving:
                await worker.serve(order, device=self._device, memory=memory)
            began_s = trio.current_time()
            self._patience.deadline = math.inf
            self._reason = ""
            self.outcome.settle()
            await kill_when_hung(worker, self._forker.limits.hung_s)
            reason = ""
        except WorkerFailed as error:
            if not self.outcome.done.is_set():
                raise error.reason from None
            reason = str(error)
        except WorkerDied as error:
            reason = str(error)
        finally:
            worker.kill()
        self._begin_patience()
        await worker.dead.wait()
        reason = reason or f"worker {worker.pid} {worker.end()}"
        return Death(trio.current_time() - began_s, reason, worker.blame > KILL_WEIGHT, worker.blame)

    async def _next_worker(self, order: ServeOrder) -> Worker:
        """The prepared one, the one that another daemon had, what shall replace it, or a new one."""
        worker = self._worker
        if worker is None or (worker.dead.is_set() and order.resend):
            worker, self._successor = self._successor or await self._forker.fork(), None
            if self._backings is not None:
                self._backings.sweep()
        worker.backings = self._backings
        return worker

    def _begin_patience(self) -> None:
        """From now on nobody serves, unless that began earlier."""
        deadline = trio.current_time() + self._forker.limits.no_worker_s
        self._patience.deadline = min(self._patience.deadline, deadline)

    async def _end_worker(self) -> None:
        """Wait until the worker is dead and reaped; it may notice by itself that its mount is gone.

        One that hangs in the kernel, where no kill reaches it, is not waited for, and the connection is aborted.
        """
        for worker in (self._successor, self._worker):
            if worker is not None:
                await self._end(worker)

    async def _end(self, worker: Worker) -> None:
        with trio.CancelScope(shield=True):
            if worker.is_serving and self._is_unmounted():
                with trio.move_on_after(GRACE_S):
                    await worker.dead.wait()
            worker.kill()
            with trio.move_on_after(KILL_TIMEOUT_S) as scope:
                await worker.dead.wait()
            if scope.cancelled_caught:
                abort_connection(self._first_state.device)

    def _is_unmounted(self) -> bool:
        poll = select.poll()
        poll.register(self._device, 0)
        return bool(poll.poll(0))

    async def state(self) -> MountState:
        """What ``List`` shows of it."""
        state = copy.copy(self._first_state)
        state.restarts = self._memory.restarts if self._memory else 0
        state.uptime_s = round(max(time.time() - self.began_s, 0.0), 3)
        state.reason = self._reason
        if self.outcome.done.is_set() and (asked := self._worker) is not None:
            stats = await asked.stats()
            if asked is self._worker and not asked.dead.is_set():
                state.pid, state.state = asked.pid, stats.state
            if stats.state != "starting":
                self._native = stats.native
            state.native = self._native
            state.passed_through = count_passed_through(self._memory.opens) if self._memory else 0
            state.passthrough = self._backings.obstacle if self._backings else ""
            for name, count in (self._memory.read_counters() if self._memory else {}).items():
                setattr(state, name, count)
        return state
