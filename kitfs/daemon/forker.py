"""The daemon's end of the zygote: keeps one running, has it fork workers, gives it copies of what keeps mounts alive.

Used by ``kitfs.daemon.session``. A zygote that dies is followed by another, which gets all copies before it forks
anything; its workers live on and become the daemon's children (``adopt_orphans``), which reaps them itself. A daemon
that its zygote has started goes on with that one, and is no parent of anybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec
import trio

from kitfs import __version__
from kitfs.control import encode_descriptors, parse_descriptors
from kitfs.daemon.forkcalls import (
    DATAGRAM_SIZE_MAX,
    DaemonCall,
    DropCall,
    ForkCall,
    KeepCall,
    ReadyCall,
    Restart,
    ZygoteMessage,
)
from kitfs.daemon.kept import KeptSet
from kitfs.daemon.limits import Limits
from kitfs.daemon.procfs import find_parent
from kitfs.daemon.worker import Worker
from kitfs.errors import DaemonError

log = logging.getLogger(__name__)

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER (prctl(2))."""

_DEATHS_MAX = 5
_DEATHS_WINDOW_S = 10.0
_PAUSE_S = 1.0
"""The zygote keeps copies of all devices, so that mounts outlive the daemon: it is not done without for long."""

_FORK_TIMEOUT_S = 30.0
"""A fork takes 2 ms; a zygote that has just been started needs 0.2 s of imports first."""

_ANSWER_TIMEOUT_S = 5.0
"""For a zygote to take copies, or to close them, which it does at once; one that does not is killed."""

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
    """A call under way.

    Attributes:
        control: Of a fork call, our end of the worker's control socket.
    """

    control: socket.socket | None
    done: trio.Event = field(default_factory=trio.Event)
    worker: Worker | None = None
    error: str = ""


class _Zygote:
    """One zygote process and our end of its socket."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.socket = trio.socket.from_stdlib_socket(connection)

    @classmethod
    def spawn(cls, restart: Restart | None) -> Self:
        """Start one, as our child, which starts a daemon anew when it is told how."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-P", "-m", "kitfs.daemon.zygote", str(number)]
            if restart is not None:
                command.append(msgspec.json.encode(restart).decode())
            actions = [(os.POSIX_SPAWN_DUP2, number, number)]
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        return cls(ours, pid)

    def kill(self) -> None:
        """Send SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def end(self) -> None:
        """Kill and forget it; reap it when it is our child."""
        self.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        select.select([self.pidfd], [], [])
        os.close(self.pidfd)
        self.socket.close()


class Forker:
    """Forks workers. One per daemon; ``run`` must be running.

    Args:
        home: The store's folder.
        limits: How patient to be with workers, None for what the environment says.
        socket_path: Where the daemon listens, for workers that lose it.
        restart: How a zygote starts a daemon that follows this one; None when it shall not.
        parent: The socket to the zygote that has forked this process, and its process id.

    Attributes:
        zygote_restarts: Zygotes that have died.
        zygote_differs: Set when a zygote has another version than this program: the package was installed anew.
        limits: How patient to be with them.
        socket: Where the daemon listens, empty for nowhere.
        restart: How a zygote starts a daemon that follows this one; None when it shall not.
    """

    def __init__(
        self,
        home: Path,
        limits: Limits | None = None,
        *,
        socket_path: Path | None = None,
        restart: Restart | None = None,
        parent: tuple[socket.socket, int] | None = None,
    ) -> None:
        self._home = home
        self.zygote_differs = trio.Event()
        self.restart = restart
        self.socket = os.fspath(socket_path) if socket_path else ""
        self._parent = parent
        self._kept: dict[str, KeptSet] = {}
        self._watchers: trio.Nursery | None = None
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
    def home(self) -> Path:
        """The store's folder."""
        return self._home

    @property
    def zygote_pid(self) -> int:
        """Process id of the zygote, 0 while there is none."""
        return self._zygote.pid if self._zygote else 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a zygote until cancelled. After 5 deaths in 10 s the next comes a second later, or with a fork call."""
        deaths: deque[float] = deque(maxlen=_DEATHS_MAX)
        async with trio.open_nursery() as watchers:
            self._watchers = watchers
            task_status.started()
            while True:
                await self._follow(watchers)
                self.zygote_restarts += 1
                deaths.append(trio.current_time())
                if len(deaths) == _DEATHS_MAX and deaths[-1] - deaths[0] < _DEATHS_WINDOW_S:
                    log.error("the zygote died %d times within %g s", _DEATHS_MAX, _DEATHS_WINDOW_S)
                    self._wanted = trio.Event()
                    if not self._pending:
                        with trio.move_on_after(_PAUSE_S):
                            await self._wanted.wait()

    async def _follow(self, watchers: trio.Nursery) -> None:
        """Start a zygote, or go on with our parent, and listen to it until it dies."""
        zygote, first = await self._find_zygote()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, zygote, watchers)
                nursery.start_soon(self._greet, zygote, first)
                await trio.lowlevel.wait_readable(zygote.pidfd)
                nursery.cancel_scope.cancel()
            self._drain(zygote, watchers)
            log.warning("the zygote (process %d) died, starting another", zygote.pid)
        finally:
            self._zygote = None
            self._zygote_came = trio.Event()
            zygote.end()
            self._note_death()

    async def _find_zygote(self) -> tuple[_Zygote, list[tuple[DaemonCall, list[int]]]]:
        """A zygote, and what it must hear first: where the copies are that it shall have, or that its daemon serves."""
        try:
            if self._parent is not None:
                return _Zygote(*self._parent), [(ReadyCall(), [])]
        except ProcessLookupError:
            self._parent[0].close() if self._parent else None
        finally:
            self._parent = None
        return _Zygote.spawn(self.restart), []

    async def _greet(self, zygote: _Zygote, first: list[tuple[DaemonCall, list[int]]]) -> None:
        async with self._sending:
            self._zygote = zygote
            for call, descriptors in first:
                await self._send_to(zygote, call, descriptors)
            for kept in list(self._kept.values()):
                await self._send_to(zygote, KeepCall(kept.session), kept.descriptors())
        self._zygote_came.set()

    def end_zygote(self) -> None:
        """Kill the zygote before this process ends, so that it does not start another daemon."""
        if self._zygote is not None:
            self._zygote.end()

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
        if message.version and message.version != __version__:
            log.warning("the zygote is of version %s, this daemon of %s", message.version, __version__)
            self.zygote_differs.set()
        pending = self._pending.get(message.number)
        if pending is not None and pending.control is not None and message.pid and descriptors:
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

    def adopt(self, pid: int, pidfd: int) -> Worker:
        """Follow a worker that another daemon had; its control socket comes when it has noticed (``Worker.attach``).

        Args:
            pid: Its process id.
            pidfd: Its pidfd, which is the worker's from now on.
        """
        assert self._watchers is not None
        worker = Worker(pid, pidfd, None, hung_s=self.limits.hung_s)
        if self._zygote is None or find_parent(pid) != self._zygote.pid:
            worker.note_orphaned()
        self._workers[pid] = worker
        self._watchers.start_soon(self._watch, worker)
        return worker

    async def keep(self, kept: KeptSet) -> None:
        """Have every zygote, this one and later ones, hold copies of what keeps a mount alive."""
        self._kept[kept.session] = kept
        await self._tell(KeepCall(kept.session), kept.descriptors())

    async def drop(self, session: str) -> None:
        """Have no zygote hold copies any more; they are closed when this returns."""
        if self._kept.pop(session, None) is None:
            return
        call = DropCall(next(self._numbers), session)
        pending = self._pending[call.number] = _Pending(None)
        try:
            await self._tell(call, [])
            if self._zygote is not None:
                with trio.move_on_after(_ANSWER_TIMEOUT_S) as scope:
                    await pending.done.wait()
                if scope.cancelled_caught and self._zygote is not None:
                    self._zygote.kill()
        finally:
            del self._pending[call.number]

    async def _tell(self, call: DaemonCall, descriptors: Sequence[int]) -> None:
        """Tell the zygote something, if there is one; one that does not listen is killed."""
        with trio.move_on_after(_ANSWER_TIMEOUT_S) as scope:
            async with self._sending:
                if self._zygote is not None:
                    await self._send_to(self._zygote, call, descriptors)
        if scope.cancelled_caught and self._zygote is not None:
            self._zygote.kill()

    async def _send_to(self, zygote: _Zygote, call: DaemonCall, descriptors: Sequence[int]) -> None:
        """Send a call to a zygote; when it turns out to be dead, whoever follows it sets ``done``."""
        with contextlib.suppress(OSError):
            rights = encode_descriptors(descriptors) if descriptors else []
            await zygote.socket.sendmsg([msgspec.json.encode(call)], rights)

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
        async with self._sending:
            if self._zygote is None:
                raise _ZygoteDied("no worker could be forked: the zygote died")
            await self._send_to(self._zygote, call, [control])
