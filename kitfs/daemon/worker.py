"""A worker process as the daemon sees it: its pidfd, its control socket, its last counters, its end.

Made by ``kitfs.daemon.forker``, used by ``kitfs.daemon.session``. ``dead`` is set only when the process is gone *and*
reaped, so that whoever follows it may ask the kernel to send its unanswered requests again.
"""

from __future__ import annotations

import contextlib
import os
import signal

import msgspec
import trio

from kitfs.errors import KitfsError

_DATAGRAM_SIZE_MAX = 64 << 10
_STATS_TIMEOUT_S = 1.0


class WorkerFailed(KitfsError):
    """A worker could not start; the message is its own."""


class WorkerDied(KitfsError):
    """A worker ended before it could serve."""


class WorkerMessage(msgspec.Struct):
    """What a worker sends: that it serves, or why it can not, or its counters."""

    ready: bool = False
    failed: str = ""
    reads: int = 0
    bytes_read: int = 0
    opens: int = 0
    lookups: int = 0
    native: float = 0.0
    state: str = "lazy"


class Worker:
    """A forked worker process.

    Attributes:
        pid: Its process id.
        dead: Set when it is gone and reaped.
        exit_code: Its exit code, minus a signal, or None when nobody could tell.
    """

    def __init__(self, pid: int, pidfd: int, control: trio.socket.SocketType) -> None:
        self.pid = pid
        self.dead = trio.Event()
        self.exit_code: int | None = None
        self._pidfd = pidfd
        self._control = control
        self._parent_has_spoken = trio.Event()
        self._started = trio.Event()
        self._failed = ""
        self._stats = WorkerMessage(state="starting")
        self._stats_came = trio.Event()

    def kill(self) -> None:
        """Send SIGKILL; nothing happens when it is dead."""
        if not self.dead.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def note_reaped(self, exit_code: int) -> None:
        """Its zygote has reaped it."""
        self.exit_code = exit_code
        self._parent_has_spoken.set()

    def note_orphaned(self) -> None:
        """Its zygote is dead: the daemon is its parent and reaps it."""
        self._parent_has_spoken.set()

    async def watch(self) -> None:
        """Follow it until it is dead and reaped. Started once, by the forker."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await trio.lowlevel.wait_readable(self._pidfd)
            await self._parent_has_spoken.wait()
            nursery.cancel_scope.cancel()
        if self.exit_code is None:
            self._reap()
        os.close(self._pidfd)
        self._control.close()
        self.dead.set()
        self._started.set()
        self._stats_came.set()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if result is not None:
                self.exit_code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    async def _listen(self) -> None:
        while True:
            try:
                raw = await self._control.recv(_DATAGRAM_SIZE_MAX)
                message = msgspec.json.decode(raw, type=WorkerMessage) if raw else None
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                self.kill()
                return
            if message is None:
                return
            if message.ready or message.failed:
                self._failed = message.failed
                self._started.set()
            else:
                self._stats = message
                self._stats_came.set()

    async def send(self, datagram: bytes) -> None:
        """Send a datagram; nothing happens when it is dead."""
        with contextlib.suppress(OSError):
            await self._control.send(datagram)

    async def wait_started(self) -> None:
        """Wait until it serves.

        Raises:
            WorkerFailed: when it says that it can not.
            WorkerDied: when it died first.
        """
        await self._started.wait()
        if self._failed:
            raise WorkerFailed(self._failed)
        if self.dead.is_set():
            raise WorkerDied(f"the worker {self.end()} before it could serve")

    async def stats(self) -> WorkerMessage:
        """Its counters; the last known ones when it does not answer within a second."""
        self._stats_came = trio.Event()
        if not self.dead.is_set():
            with trio.move_on_after(_STATS_TIMEOUT_S):
                await self.send(b'{"stats": true}')
                await self._stats_came.wait()
        return self._stats

    def end(self) -> str:
        """How it ended, in words."""
        if self.exit_code is None:
            return "ended"
        if self.exit_code < 0:
            return f"was killed by signal {-self.exit_code}"
        return f"ended with {self.exit_code}"
