"""A worker process as the daemon sees it: its pidfd, its control socket, its last counters, its end.

Made by ``kitfs.daemon.forker``, used by ``kitfs.daemon.table`` and ``kitfs.daemon.session``. ``dead`` is set only when
the process is gone *and* reaped, so that whoever follows it may ask the kernel to send its unanswered requests again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence

import msgspec
import trio

from kitfs.calls import PrepareAnswer
from kitfs.control import Refusal, encode_descriptors
from kitfs.daemon.backing import BackingFiles
from kitfs.daemon.limits import HUNG_S
from kitfs.daemon.procfs import STOPPED, count_memory_kills, find_state
from kitfs.errors import KitfsError
from kitfs.fuse.deliveries import FAULT_WEIGHT, KILL_WEIGHT, SHORTAGE_WEIGHT
from kitfs.fuse.memory import SessionMemory
from kitfs.fuse.orders import DATAGRAM_SIZE_MAX, BackingCall, HoldOrder, PrepareOrder, ServeOrder, WorkerMessage

START_TIMEOUT_S = 60.0
"""For one order. A worker builds its tree: 0.02 s for a kit of 12 files, some seconds for a million."""

_STATS_TIMEOUT_S = 1.0

_REAP_TIMEOUT_S = 0.02
"""For how long whoever is the parent of a dead worker may take to reap it. Its descriptors are closed before it is a
zombie, so one that nobody reaps is followed all the same."""


class WorkerFailed(KitfsError):
    """A worker could not carry out its order.

    Attributes:
        reason: Why, in its own words and category.
    """

    def __init__(self, reason: KitfsError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class WorkerDied(KitfsError):
    """A worker ended before it could serve."""


class Worker:
    """A worker process, forked by our zygote, or one that another daemon had (``Forker.adopt``).

    Attributes:
        pid: Its process id.
        dead: Set when it is gone and reaped.
        attached: Set when it has a control socket.
        exit_code: Its exit code, minus a signal, or None when nobody could tell.
        backings: Who makes files known to the kernel for it.
    """

    def __init__(self, pid: int, pidfd: int, control: trio.socket.SocketType | None, *, hung_s: float = HUNG_S) -> None:
        self.pid = pid
        self.dead = trio.Event()
        self.attached = trio.Event()
        self.exit_code: int | None = None
        self._pidfd = pidfd
        self._hung_s = hung_s
        self._control = control
        self._parent_has_spoken = trio.Event()
        self._prepared = trio.Event()
        self._started = trio.Event()
        self._answer = PrepareAnswer()
        self._failed: Refusal | None = None
        self._stats = WorkerMessage(state="starting")
        self._stats_came = trio.Event()
        self._stats_came.set()
        self._alive = trio.Event()
        self._alive.set()
        if control is not None:
            self.attached.set()
        self._serving = control is None
        self._hung = False
        self._memory_kills = count_memory_kills()
        self.backings: BackingFiles | None = None

    @property
    def is_serving(self) -> bool:
        """Whether it has begun to serve, for us or for another daemon."""
        return self._serving

    @property
    def is_silent(self) -> bool:
        """Whether its event loop has not answered the last probe yet."""
        return not self._alive.is_set()

    def kill(self, *, hung: bool = False) -> None:
        """Send SIGKILL; nothing happens when it is dead.

        Args:
            hung: Whether it did nothing any more, which is its own doing unless somebody has stopped it.
        """
        if not self.dead.is_set():
            self._hung = self._hung or (hung and find_state(self.pid) not in STOPPED)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def note_reaped(self, exit_code: int) -> None:
        """Its zygote has reaped it."""
        self.exit_code = exit_code
        self._parent_has_spoken.set()

    def note_orphaned(self) -> None:
        """Its zygote is dead: the daemon is its parent and reaps it, or whoever reaps orphans."""
        self._parent_has_spoken.set()

    def attach(self, control: trio.socket.SocketType) -> bool:
        """Give one that another daemon had its control socket. False, and it is closed, when it has one or is dead."""
        if self.attached.is_set() or self.dead.is_set():
            control.close()
            return False
        self._control = control
        self._prepared.set()
        self._started.set()
        self._alive.set()
        self.attached.set()
        return True

    async def watch(self) -> None:
        """Follow it until it is dead and reaped. Started once, by the forker."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, nursery)
            await trio.lowlevel.wait_readable(self._pidfd)
            await self._parent_has_spoken.wait()
            await self._wait_reaped()
            nursery.cancel_scope.cancel()
        os.close(self._pidfd)
        if self._control is not None:
            self._control.close()
        self.dead.set()
        self.attached.set()
        self._prepared.set()
        self._started.set()
        self._stats_came.set()
        self._alive.set()

    async def _wait_reaped(self) -> None:
        """Reap it when it is our child and nobody has, else wait until whoever is its parent has."""
        if self.exit_code is not None:
            return
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - does not wait
            if result is not None:
                self.exit_code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        except ChildProcessError:
            with trio.move_on_after(_REAP_TIMEOUT_S), contextlib.suppress(ProcessLookupError):
                while True:
                    signal.pidfd_send_signal(self._pidfd, 0)
                    await trio.sleep(0.001)

    async def _answer_backing(self, call: BackingCall) -> None:
        answer = await self.backings.answer(call) if self.backings else None
        if answer is not None:
            await self._send(msgspec.json.encode(answer))

    async def _listen(self, nursery: trio.Nursery) -> None:
        await self.attached.wait()
        control = self._control
        while control is not None:
            try:
                raw = await control.recv(DATAGRAM_SIZE_MAX)
                message = msgspec.json.decode(raw, type=WorkerMessage) if raw else None
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                self.kill()
                return
            if message is None:
                return
            if message.prepared:
                self._answer = message.prepared
                self._prepared.set()
            elif message.ready or message.failed:
                self._failed = message.failed
                self._prepared.set()
                self._started.set()
            elif message.alive:
                self._alive.set()
            elif message.backing:
                nursery.start_soon(self._answer_backing, message.backing)
            else:
                self._stats = message
                self._stats_came.set()

    async def _send(self, datagram: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a datagram; nothing happens when it is dead."""
        if self._control is None:
            return
        with contextlib.suppress(OSError):
            await self._control.sendmsg([datagram], encode_descriptors(descriptors) if descriptors else [])

    async def prepare(self, order: PrepareOrder | HoldOrder) -> PrepareAnswer:
        """Have it make a session and hold it, or open one that is served still, or say what must be imported first.

        Raises:
            WorkerFailed: when it can not.
            WorkerDied: when it died, or took longer than ``START_TIMEOUT_S`` and was killed.
        """
        await self._send(msgspec.json.encode(order))
        await self._wait(self._prepared, "prepare its session")
        return self._answer

    async def serve(self, order: ServeOrder, *, device: int, memory: SessionMemory) -> None:
        """Have it serve a session, and wait until it does.

        Args:
            order: Which session.
            device: The connection's device, which it gets a copy of.
            memory: The session's memory, with the copy of INIT that its libfuse reads.

        Raises:
            WorkerFailed: when it can not.
            WorkerDied: when it died, or took longer than ``START_TIMEOUT_S`` and was killed.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.send(memory.header.init)
            await self._send(msgspec.json.encode(order), [device, theirs.fileno(), memory.fileno()])
        await self._wait(self._started, "serve")
        self._serving = True

    async def _wait(self, event: trio.Event, purpose: str) -> None:
        """Wait for its answer. It has no event loop yet that could be asked: only one that was stopped is killed."""
        with trio.move_on_after(START_TIMEOUT_S) as scope:
            await self._wait_unless_stopped(event)
        if scope.cancelled_caught:
            self.kill(hung=True)
            raise WorkerDied(f"a worker did not {purpose} within {START_TIMEOUT_S:g} s and was killed")
        if self._failed:
            raise WorkerFailed(self._failed.to_error())
        if self.dead.is_set():
            raise WorkerDied(f"the worker {self.end()} before it could {purpose}")

    async def _wait_unless_stopped(self, event: trio.Event) -> None:
        was_stopped = False
        while not event.is_set():
            with trio.move_on_after(self._hung_s / 3) as scope:
                await event.wait()
            is_stopped = scope.cancelled_caught and find_state(self.pid) in STOPPED
            if is_stopped and was_stopped:
                self.kill(hung=True)
            was_stopped = is_stopped

    async def probe(self) -> None:
        """Ask whether its event loop turns, unless that was asked, and wait for the answer, or until it is dead."""
        if self._alive.is_set() and not self.dead.is_set():
            self._alive = trio.Event()
            await self._send(b'{"probe": true}')
        await self._alive.wait()

    async def stats(self) -> WorkerMessage:
        """How its mount is; as last known when it does not serve yet, or does not answer within a second.

        Whoever asks while a question is under way waits for the same answer.
        """
        if self._started.is_set() and not self.dead.is_set():
            if self._stats_came.is_set():
                self._stats_came = trio.Event()
                await self._send(b'{"stats": true}')
            with trio.move_on_after(_STATS_TIMEOUT_S):
                await self._stats_came.wait()
        return self._stats

    @property
    def blame(self) -> int:
        """Of a dead one: how much its death says against what it had in hand (``kitfs.fuse.deliveries``).

        Much when it crashed or hung; less when the kernel has killed anybody for want of memory since it began; little
        when somebody has killed it, or nobody can tell.
        """
        if self._hung:
            return FAULT_WEIGHT
        if self.exit_code is None or self.exit_code in (0, -signal.SIGTERM, -signal.SIGINT):
            return KILL_WEIGHT
        if self.exit_code != -signal.SIGKILL:
            return FAULT_WEIGHT
        return SHORTAGE_WEIGHT if count_memory_kills() != self._memory_kills else KILL_WEIGHT

    def end(self) -> str:
        """How it ended, in words."""
        if self._hung:
            return "was hung and was killed"
        if self.exit_code is None:
            return "ended"
        if self.exit_code < 0:
            return f"was killed by signal {-self.exit_code}"
        return f"ended with {self.exit_code}"
