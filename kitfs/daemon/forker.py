"""The daemon's end of the zygote: keeps one running and has it fork workers.

Used by ``kitfs.daemon.session``. A zygote that dies is followed by another; its workers live on and become the
daemon's children (``adopt_orphans``), which reaps them itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from kitfs.control import encode_descriptors, parse_descriptors
from kitfs.daemon.forkcalls import DATAGRAM_SIZE_MAX, ForkCall, ZygoteMessage
from kitfs.daemon.limits import Limits
from kitfs.daemon.worker import Worker
from kitfs.errors import DaemonError

log = logging.getLogger(__name__)

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER (prctl(2))."""

_DEATHS_MAX = 5
_DEATHS_WINDOW_S = 10.0
_FORK_TIMEOUT_S = 30.0
"""A fork takes 2 ms; a zygote that has just been started needs 0.2 s of imports first."""

_ATTEMPTS_MAX = 3


def adopt_orphans() -> None:
    """Make this process the parent of its descendants whose own parent dies, for as long as it lives."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


class ForkFailed(DaemonError):
    """No worker could be forked."""


class _ZygoteDied(ForkFailed):
    """The zygote died before it answered."""


@dataclass
class _Pending:
    """A fork call under way."""

    control: socket.socket
    done: trio.Event = field(default_factory=trio.Event)
    worker: Worker | None = None
    error: str = ""


class _Zygote:
    """One zygote process and our end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-P", "-m", "kitfs.daemon.zygote", str(number)]
            actions = [(os.POSIX_SPAWN_DUP2, number, number)]
            self.pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        self.pidfd = os.pidfd_open(self.pid)
        self.socket = trio.socket.from_stdlib_socket(ours)

    def end(self) -> None:
        """Kill, reap and forget it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.socket.close()


class Forker:
    """Forks workers. One per daemon; ``run`` must be running.

    Attributes:
        zygote_restarts: Zygotes that have died.
        limits: How patient to be with them.
    """

    def __init__(self, home: Path, limits: Limits | None = None) -> None:
        self._home = home
        self.zygote_restarts = 0
        self.limits = limits or Limits.read()
        self._zygote: _Zygote | None = None
        self._wanted = trio.Event()
        self._zygote_came = trio.Event()
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._workers: dict[int, Worker] = {}
        self._sending = trio.Lock()

    @property
    def zygote_pid(self) -> int:
        """Process id of the zygote, 0 while there is none."""
        return self._zygote.pid if self._zygote else 0

    async def run(self) -> None:
        """Keep a zygote until cancelled. After 5 deaths in 10 s the next one comes with the next fork call."""
        deaths: deque[float] = deque(maxlen=_DEATHS_MAX)
        async with trio.open_nursery() as watchers:
            while True:
                await self._follow(watchers)
                self.zygote_restarts += 1
                deaths.append(trio.current_time())
                if len(deaths) == _DEATHS_MAX and deaths[-1] - deaths[0] < _DEATHS_WINDOW_S:
                    log.error("the zygote died %d times within %g s", _DEATHS_MAX, _DEATHS_WINDOW_S)
                    self._wanted = trio.Event()
                    if not self._pending:
                        await self._wanted.wait()

    async def _follow(self, watchers: trio.Nursery) -> None:
        """Start a zygote and listen to it until it dies."""
        zygote = self._zygote = _Zygote()
        self._zygote_came.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, zygote, watchers)
                await trio.lowlevel.wait_readable(zygote.pidfd)
                nursery.cancel_scope.cancel()
            self._drain(zygote, watchers)
            log.warning("the zygote (process %d) died, starting another", zygote.pid)
        finally:
            self._zygote = None
            self._zygote_came = trio.Event()
            zygote.end()
            self._note_death()

    def _note_death(self) -> None:
        for pending in self._pending.values():
            pending.done.set()
        for worker in self._workers.values():
            worker.note_orphaned()

    async def _listen(self, zygote: _Zygote, watchers: trio.Nursery) -> None:
        """Take what a zygote says; returns when it is dead (ECONNRESET: it had not read all that we sent)."""
        flags = socket.MSG_CMSG_CLOEXEC
        with contextlib.suppress(OSError):
            while True:
                raw, ancillary, _, _ = await zygote.socket.recvmsg(DATAGRAM_SIZE_MAX, socket.CMSG_LEN(4), flags)
                if not raw:
                    return
                self._take(raw, parse_descriptors(ancillary), watchers)

    def _drain(self, zygote: _Zygote, watchers: trio.Nursery) -> None:
        """Take what a dead zygote had still said."""
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        with socket.socket(fileno=os.dup(zygote.socket.fileno())) as rest, contextlib.suppress(OSError):
            while True:
                raw, ancillary, _, _ = rest.recvmsg(DATAGRAM_SIZE_MAX, socket.CMSG_LEN(4), flags)
                if not raw:
                    return
                self._take(raw, parse_descriptors(ancillary), watchers)

    def _take(self, raw: bytes, descriptors: list[int], watchers: trio.Nursery) -> None:
        message = msgspec.json.decode(raw, type=ZygoteMessage)
        pending = self._pending.get(message.number)
        if pending is not None and message.pid and descriptors:
            control = trio.socket.from_stdlib_socket(pending.control)
            pending.worker = Worker(message.pid, descriptors.pop(), control, hung_s=self.limits.hung_s)
            self._workers[message.pid] = pending.worker
            watchers.start_soon(self._watch, pending.worker)
        if pending is not None:
            pending.error = message.error
            pending.done.set()
        elif message.exit_code is not None and message.pid in self._workers:
            self._workers[message.pid].note_reaped(message.exit_code)
        for descriptor in descriptors:
            os.close(descriptor)

    async def _watch(self, worker: Worker) -> None:
        try:
            await worker.watch()
        finally:
            if self._workers.get(worker.pid) is worker:
                del self._workers[worker.pid]

    async def fork(self) -> Worker:
        """Fork a worker, which waits for its first order.

        Raises:
            ForkFailed: when the zygote can not fork, hangs, or died each of ``_ATTEMPTS_MAX`` times.
        """
        for _ in range(_ATTEMPTS_MAX - 1):
            with contextlib.suppress(_ZygoteDied):
                return await self._fork_once()
        return await self._fork_once()

    async def _fork_once(self) -> Worker:
        """One attempt, with a socket of its own: a child of a lost attempt must see its control socket close."""
        call = ForkCall(next(self._numbers), os.fspath(self._home))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pending = _Pending(ours)
        try:
            with theirs:
                return await self._call(call, pending, theirs.fileno())
        except BaseException:
            if pending.worker is None:
                ours.close()
            else:
                pending.worker.kill()
            raise

    async def _call(self, call: ForkCall, pending: _Pending, control: int) -> Worker:
        self._pending[call.number] = pending
        self._wanted.set()
        try:
            with trio.fail_after(_FORK_TIMEOUT_S):
                await self._zygote_came.wait()
                await self._send(call, control)
                await pending.done.wait()
        except trio.TooSlowError:
            if self._zygote:
                os.kill(self._zygote.pid, signal.SIGKILL)
            raise ForkFailed(f"the zygote did not fork a worker within {_FORK_TIMEOUT_S:g} s") from None
        finally:
            del self._pending[call.number]
        if pending.worker is not None:
            return pending.worker
        if pending.error:
            raise ForkFailed(f"no worker could be forked: {pending.error}")
        raise _ZygoteDied("no worker could be forked: the zygote died")

    async def _send(self, call: ForkCall, control: int) -> None:
        """Send a call to the zygote; when it turns out to be dead, whoever follows it sets ``done``."""
        async with self._sending:
            zygote = self._zygote
            if zygote is None:
                raise _ZygoteDied("no worker could be forked: the zygote died")
            with contextlib.suppress(OSError):
                await zygote.socket.sendmsg([msgspec.json.encode(call)], encode_descriptors([control]))
