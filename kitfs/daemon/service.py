"""The running daemon: socket, locks, and the tasks that live as long as it does.

Used by ``kitfs.daemon.main``. Two locks (flock) order everything: the *store lock*, on the store's folder, is held
for the daemon's whole life, so a store has one daemon; the *start lock*, beside the socket, is held by whoever starts
a daemon until it listens, and by a daemon that ends because it is idle, so nobody meets one that is half way.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import trio

from kitfs.calls import Lack
from kitfs.daemon.forkcalls import Restart
from kitfs.daemon.forker import Forker, adopt_orphans
from kitfs.daemon.keepers import Keepers
from kitfs.daemon.kept import KeptSet
from kitfs.daemon.logfile import keep_log_bounded
from kitfs.daemon.overview import Overview
from kitfs.daemon.procfs import has_no_new_privileges
from kitfs.daemon.reach import wait_until_lost
from kitfs.daemon.server import Server
from kitfs.daemon.systemd import Supervisor
from kitfs.daemon.table import Table
from kitfs.errors import BusyError, DaemonError, KitfsError

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 5
"""For how long a daemon that is just ending is waited for."""

_BACKLOG = 1024


class StoreHasDaemon(BusyError):
    """Another daemon serves this store."""

    def __init__(self, home: Path) -> None:
        super().__init__(f"another daemon serves the store {home}")
        self.hint = "kitfs daemon stop"


class SocketPathTaken(DaemonError):
    """Something that is not our socket lies where the socket belongs."""


@dataclass(frozen=True)
class Inheritance:
    """What another daemon has left.

    Attributes:
        kept: Of each mount, the descriptors that keep it alive.
        zygote: The socket to the zygote that has forked this process, and its process id; None for another's.
        replace: Whether workers are to be replaced, which may be of another version.
    """

    kept: list[list[int]] = field(default_factory=list)
    zygote: tuple[socket.socket, int] | None = None
    replace: bool = False


@dataclass(frozen=True)
class Plan:
    """How to run.

    Attributes:
        home: The store's folder, its real path.
        socket: Where to listen.
        idle_s: End when there was no mount for so long; 0 is never.
        start_lock_held: Whether whoever started us holds the start lock.
        ready: Called when connections are accepted.
        supervisor: The service manager that started us, if any.
        metrics: Where to serve metrics, as ``kitfs.daemon.address`` reads it; empty for nowhere.
        inheritance: What another daemon has left.
    """

    home: Path
    socket: Path
    idle_s: float
    start_lock_held: bool
    ready: Callable[[], None]
    supervisor: Supervisor
    metrics: str = ""
    inheritance: Inheritance = Inheritance()


def run(plan: Plan) -> None:
    """Serve until stopped, idle, or told by SIGTERM or SIGINT. No mount is served any more when it returns.

    Under a service manager SIGTERM ends the process with its workers going on: a restart of the service must not be
    noticed by readers. It does not return then.

    Raises:
        StoreHasDaemon: when another daemon serves the store.
        SocketPathTaken: when the socket can not be made.
    """
    _raise_descriptor_limit()
    adopt_orphans()
    os.umask(0o077)
    with contextlib.ExitStack() as stack:
        start_lock = stack.enter_context(contextlib.ExitStack())
        if not plan.start_lock_held:
            start_lock.enter_context(lock(start_lock_path(plan.socket), DaemonError("the daemon can not be started")))
        timeout_s = 1 if plan.inheritance.zygote else LOCK_TIMEOUT_S
        stack.enter_context(lock(plan.home, StoreHasDaemon(plan.home), timeout_s=timeout_s))
        listener = stack.enter_context(_open_listener(plan))
        metrics = _open_metrics(plan.metrics, stack)
        plan.ready()
        start_lock.close()
        log.info("listening at %s for the store %s", plan.socket, plan.home)
        trio.run(_serve, plan, listener, metrics)


async def _serve(plan: Plan, listener: socket.socket, metrics: socket.socket | Lack | None) -> None:
    restart = None if plan.supervisor else Restart(os.fspath(plan.home), os.fspath(plan.socket), plan.idle_s)
    forker = Forker(plan.home, socket_path=plan.socket, restart=restart, parent=plan.inheritance.zygote)
    async with trio.open_nursery() as outer:
        await outer.start(forker.run)
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope.cancel
            table = Table(plan.home, Keepers(forker, plan.supervisor if plan.supervisor else None), nursery)
            adopt_all(table, plan)
            overview = Overview(table, forker, plan.home, plan.socket)
            overview.is_service = bool(plan.supervisor)
            if not plan.supervisor and os.geteuid() == 0 and has_no_new_privileges():
                what = "a worker has started this daemon, which has no capabilities: files are not passed through"
                overview.lacks.append(Lack(what, "kitfs daemon --replace"))
            leave = None if plan.supervisor else functools.partial(_leave, forker)
            home = os.fspath(plan.home)
            server = Server(table, home, stop, overview.describe, leave=leave, idle_s=plan.idle_s)
            if not plan.supervisor:
                nursery.start_soon(_replace_when_differs, plan, forker)
            nursery.start_soon(keep_log_bounded, plan.socket)
            if isinstance(metrics, Lack):
                overview.lacks.append(metrics)
            elif metrics is not None:
                from kitfs.daemon.metrics import serve_metrics

                overview.metrics = plan.metrics
                nursery.start_soon(serve_metrics, metrics, overview)
            nursery.start_soon(_obey_signals, plan, table, forker, stop)
            nursery.start_soon(server.serve, trio.socket.from_stdlib_socket(listener))
            if plan.idle_s:
                nursery.start_soon(_end_when_idle, plan, table, stop)
            if plan.supervisor:
                nursery.start_soon(_report, plan.supervisor, forker)
            if plan.supervisor.listener < 0:
                nursery.start_soon(_end_when_lost, plan, table, forker, stop)
        outer.cancel_scope.cancel()
    log.info("the daemon ends")


def adopt_all(table: Table, plan: Plan) -> None:
    """Go on with what another daemon has left, and with what a service manager has kept."""
    kept = [*enumerate(plan.inheritance.kept), *plan.supervisor.kept.items()]
    for name, descriptors in kept:
        try:
            table.adopt(KeptSet.of(descriptors), replace=plan.inheritance.replace)
        except (KitfsError, OSError) as error:
            log.error("a mount that another daemon has left can not be served: %s", error)
            if isinstance(name, str):
                plan.supervisor.drop(name)


def _leave(forker: Forker) -> NoReturn:
    """End this process, and its zygote before; workers go on, and hand over to the next daemon."""
    forker.end_zygote()
    log.info("the daemon ends; its mounts are served on")
    logging.shutdown()
    os._exit(0)


async def _replace_when_differs(plan: Plan, forker: Forker) -> None:
    """Have a daemon of the version on disk take over when that is another one: our zygotes are of that version."""
    await forker.zygote_differs.wait()
    command = [sys.executable, "-P", "-m", "kitfs.ensure", os.fspath(plan.home), os.fspath(plan.socket)]
    await trio.run_process([*command, "--replace"], check=False)


async def _report(supervisor: Supervisor, forker: Forker) -> None:
    """Say that we are ready once a worker could be forked, then that the event loop turns."""
    worker = await forker.fork()
    worker.kill()
    await worker.dead.wait()
    supervisor.tell("READY=1")
    while supervisor.watchdog_s:
        supervisor.tell("WATCHDOG=1")
        await trio.sleep(supervisor.watchdog_s)


async def _obey_signals(plan: Plan, table: Table, forker: Forker, stop: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal %d", number)
            plan.supervisor.tell("STOPPING=1")
            if plan.supervisor and number == signal.SIGTERM and len(table):
                _leave(forker)
            stop()


async def _end_when_lost(plan: Plan, table: Table, forker: Forker, stop: Callable[[], None]) -> None:
    """Make room for the daemon that commands will find, once they do not find this one any more."""
    await wait_until_lost(plan.socket)
    log.info("%s is not this daemon's socket any more", plan.socket)
    if len(table):
        _leave(forker)
    stop()


async def _end_when_idle(plan: Plan, table: Table, stop: Callable[[], None]) -> None:
    while True:
        changed = table.changed
        if len(table):
            await changed.wait()
            continue
        with trio.move_on_after(plan.idle_s) as scope:
            await changed.wait()
        if scope.cancelled_caught and not len(table) and _close_quietly(plan):
            log.info("no mount for %g s", plan.idle_s)
            stop()
            return


def _close_quietly(plan: Plan) -> bool:
    """Take the socket away unless somebody is just starting a daemon. True when it is gone."""
    try:
        with lock(start_lock_path(plan.socket), BusyError(), timeout_s=0):
            plan.socket.unlink(missing_ok=True)
    except BusyError:
        return False
    return True


def start_lock_path(path: Path) -> Path:
    """The file of the start lock."""
    return path.with_name(f"{path.name}.lock")


@contextlib.contextmanager
def lock(path: Path, otherwise: KitfsError, *, timeout_s: int = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the flock of a folder, or of a file that is made when it is absent and stays.

    Main thread only when ``timeout_s`` is not 0: SIGALRM ends the wait.

    Raises:
        KitfsError: ``otherwise``, when somebody else holds it for longer than ``timeout_s``.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        if not _take_lock(descriptor, timeout_s):
            raise otherwise
        yield
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int, timeout_s: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    if timeout_s == 0:
        return False

    def interrupt(_number: int, _frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(timeout_s)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except TimeoutError:
        return False
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return True


def _open_listener(plan: Plan) -> contextlib.AbstractContextManager[socket.socket]:
    """The socket that was passed to us, which stays when we end, or one of our own."""
    if plan.supervisor.listener < 0:
        return _listen(plan.socket)
    listener = socket.socket(fileno=plan.supervisor.listener)
    if listener.getsockname() != os.fspath(plan.socket):
        raise SocketPathTaken(f"the socket {listener.getsockname()!r} was passed, this store's is {plan.socket}")
    return listener


def _open_metrics(address: str, stack: contextlib.ExitStack) -> socket.socket | Lack | None:
    """Where metrics are served, or why they are not: no mount is given up for numbers."""
    if address in ("", "off"):
        return None
    try:
        from kitfs.daemon.metrics import open_listener  # prometheus-client takes 60 ms, and few want it

        return stack.enter_context(open_listener(address))
    except (KitfsError, ImportError) as error:
        log.error("%s", error)
        return Lack(str(error), getattr(error, "hint", "pip install prometheus-client"))


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path``, mode 0600; a socket of ours that a dead daemon left is replaced, anything else is not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            status = path.lstat()
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
                raise SocketPathTaken(f"{path} is taken by something that is not the daemon's socket")
            path.unlink()
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            raise SocketPathTaken(f"the daemon can not listen at {path}: {error.strerror or error}") from None
        listener.listen(_BACKLOG)
        ours = path.lstat()
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                now = path.lstat()
                if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
                    path.unlink()


def _raise_descriptor_limit() -> None:
    """A mount takes 8 descriptors of the daemon, so 1000 mounts need more than the usual 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))
