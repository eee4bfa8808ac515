"""A command's way to the daemon: find it, start it, ask it. Blocking; imports no trio (95 ms), and no store (24 ms).

Used by ``kitfs.cli.mounts``. Each call has its own connection, so a client may be kept for any time; only ``Prepare``
and ``Mount`` share one, whose end tells the daemon that nothing will be mounted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from kitfs import __version__
from kitfs.calls import (
    PROTOCOL,
    ListAnswer,
    MountCall,
    MountState,
    Nothing,
    PingAnswer,
    PrepareAnswer,
    PrepareCall,
    StatusAnswer,
    WaitEndedAnswer,
    WaitEndedCall,
)
from kitfs.control import ControlConnection, DaemonUnreachable, check_socket, make_socket_folder, socket_path
from kitfs.errors import BusyError, DaemonError, KitfsError, UsageError

START_TIMEOUT_S = 30.0
"""A daemon is ready 0.2 s after its start."""

MOUNT_TIMEOUT_S = 90.0
"""For ``Prepare``, and for ``Mount``: the daemon itself gives a worker 60 s."""

IDLE_VARIABLE = "KITFS_DAEMON_IDLE_S"
"""Environment variable: for how long a daemon that a command started outlives its last mount (600 s)."""

_READY = b"ready\n"

T = TypeVar("T")


class ImportDue(KitfsError):
    """kit's storage may hold something newer than the store; asked without ``kitops_home``, the store alone counts."""


class ProtocolDiffers(DaemonError):
    """A daemon that speaks another version of the protocol."""

    hint = "kitfs daemon --replace"

    def __init__(self, answer: PingAnswer) -> None:
        super().__init__(
            f"the daemon (version {answer.version}) speaks protocol {answer.protocol}, this kitfs {PROTOCOL}"
        )


class Client:
    """Calls to one daemon.

    Attributes:
        path: Its socket.
        note: What is to be said when it is of another version than this program, else empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.note = ""

    def _call(self, method: str, parameters: Any, answer: type[T], *, timeout_s: float = 30.0) -> T:
        with ControlConnection.connect(self.path) as connection:
            return connection.call(method, parameters, answer, timeout_s=timeout_s)

    def ping(self) -> PingAnswer:
        """Who answers.

        Raises:
            DaemonUnreachable: when nobody does.
        """
        return self._call("Ping", Nothing(), PingAnswer)

    def prepare(self, call: PrepareCall) -> Preparation:
        """Have a session made and held ready.

        Raises:
            ImportDue: when kit's storage has to be looked at first.
            DaemonUnreachable: when nobody answers.
            KitfsError: why it can not be mounted.
        """
        connection = ControlConnection.connect(self.path)
        try:
            answer = connection.call("Prepare", call, PrepareAnswer, timeout_s=MOUNT_TIMEOUT_S)
        except BaseException:
            connection.close()
            raise
        if answer.import_first:
            connection.close()
            raise ImportDue(f"{call.reference} may have to be imported first")
        return Preparation(connection, answer)

    def wait_ended(self, session: str, *, timeout_s: float = 10.0) -> bool:
        """Wait until the daemon has dropped a session; True when it has.

        Raises:
            DaemonUnreachable: when nobody answers.
        """
        call = WaitEndedCall(session, timeout_s)
        return self._call("WaitEnded", call, WaitEndedAnswer, timeout_s=timeout_s + 10.0).ended

    def list_mounts(self) -> list[MountState]:
        """All mounts that the daemon serves.

        Raises:
            DaemonUnreachable: when nobody answers.
        """
        return self._call("List", Nothing(), ListAnswer).mounts

    def stop(self) -> None:
        """Have the daemon end, and wait until it has.

        Raises:
            BusyError: when it serves mounts.
            DaemonUnreachable: when nobody answers, or it does not end.
        """
        pid = self.ping().pid
        process = os.pidfd_open(pid)
        try:
            self._call("Stop", Nothing(), Nothing)
            if not select.select([process], [], [], START_TIMEOUT_S)[0]:
                raise DaemonUnreachable(f"the daemon (process {pid}) does not end")
        finally:
            os.close(process)


class Preparation:
    """A session that the daemon holds ready until it is mounted or this is closed.

    Attributes:
        session: Its identity.
        reference: What is mounted, as it is shown.
    """

    def __init__(self, connection: ControlConnection, answer: PrepareAnswer) -> None:
        self.session = answer.session
        self.reference = answer.reference
        self._connection = connection

    def mount(self, device: str, descriptor: int) -> None:
        """Have it served through ``descriptor``, which stays the caller's; returns when reads work.

        Args:
            device: ``major:minor`` of the mount.
            descriptor: Its /dev/fuse.

        Raises:
            KitfsError: when it can not be served; the daemon has let go of the device then.
        """
        call = MountCall(self.session, device)
        self._connection.call("Mount", call, Nothing, descriptors=[descriptor], timeout_s=MOUNT_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the connection; after an error, wait until the daemon has let go of what was not mounted."""
        if kind is not None:
            self._connection.finish()
        self._connection.close()


def find_daemon(home: Path, socket: Path | None) -> Client | None:
    """The store's daemon when one answers, else None.

    Raises:
        SocketUntrusted: when something that is not ours lies where its socket belongs.
        ProtocolDiffers: when it can not be talked with.
    """
    client = Client(socket_path(home, socket))
    try:
        check_socket(client.path)
        client.note = check_version(client.ping())
    except (FileNotFoundError, DaemonUnreachable):
        return None
    return client


def find_status(home: Path, socket: Path | None, *, timeout_s: float = 5.0) -> StatusAnswer | None:
    """How the store's daemon is and all its mounts, or None when none listens.

    Raises:
        DaemonUnreachable: when one listens and does not answer in time.
        SocketUntrusted: when something that is not ours lies where its socket belongs.
    """
    path = socket_path(home, socket)
    try:
        check_socket(path)
        connection = ControlConnection.connect(path, timeout_s=timeout_s)
    except (FileNotFoundError, DaemonUnreachable):
        return None
    with connection:
        try:
            return connection.call("Status", Nothing(), StatusAnswer, timeout_s=timeout_s)
        except UsageError:  # of a version without it
            answer = connection.call("Ping", Nothing(), PingAnswer, timeout_s=timeout_s)
            mounts = connection.call("List", Nothing(), ListAnswer, timeout_s=timeout_s).mounts
            status = StatusAnswer(answer.version, answer.pid, answer.home, os.fspath(path), 0.0, mounts=mounts)
            status.is_service = answer.is_service
            return status


def ensure_daemon(
    home: Path, socket: Path | None, environment: Callable[[], Mapping[str, str]] = lambda: os.environ
) -> Client:
    """The store's daemon; it is started when none answers.

    Args:
        home: The store's folder.
        socket: Its socket, None for the usual place.
        environment: Called when one is started: the environment that it gets.

    Raises:
        DaemonUnreachable: when it does not start.
        SocketUntrusted: when something that is not ours lies where its socket belongs.
    """
    client = find_daemon(home, socket)
    if client is not None:
        return client
    path = socket_path(home, socket)
    make_socket_folder(path, override=socket is not None)
    with _start_lock(path):
        client = find_daemon(home, socket)
        if client is None:
            _start(home, path, environment())
            client = Client(path)
    return client


def replace_daemon(
    home: Path, socket: Path | None, environment: Callable[[], Mapping[str, str]] = lambda: os.environ
) -> Client:
    """A daemon of the installed version, which takes the mounts of the running one over; their readers do not notice.

    Raises:
        BusyError: when a service manager keeps the running one.
        DaemonUnreachable: when the new one does not start, or can not take over: the running one goes on then.
    """
    path = socket_path(home, socket)
    make_socket_folder(path, override=socket is not None)
    with _start_lock(path):
        try:
            answer = Client(path).ping()
        except DaemonUnreachable:
            answer = None
        if answer is not None and answer.is_service:
            error = BusyError("a service manager keeps this store's daemon")
            error.hint = "systemctl restart kitfs   (or how your service manager restarts it)"
            raise error
        _start(home, path, environment(), take_over=answer is not None)
        return Client(path)


def check_version(answer: PingAnswer) -> str:
    """What is to be said about a daemon of another version than this program's; empty when it is the same.

    Raises:
        ProtocolDiffers: when the two can not talk with each other.
    """
    if answer.protocol != PROTOCOL:
        raise ProtocolDiffers(answer)
    if answer.version == __version__:
        return ""
    mend = "restart its service" if answer.is_service else "kitfs daemon --replace"
    return f"the daemon is of version {answer.version}, this is {__version__}; {mend}"


@contextlib.contextmanager
def _start_lock(path: Path) -> Iterator[None]:
    """Held while a daemon is started, so that of many commands at once one starts it."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path.with_name(f"{path.name}.lock"), flags, 0o600)
    except OSError as error:
        raise DaemonUnreachable(f"the daemon can not be started: {error}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start(home: Path, path: Path, environment: Mapping[str, str], *, take_over: bool = False) -> None:
    """Start a daemon in the background and wait until it listens."""
    reader, writer = os.pipe()
    command = [sys.executable, "-P", "-m", "kitfs.daemon"]
    command += ["--home", os.fspath(home), "--socket", os.fspath(path), "--ready-fd", str(writer)]
    if idle_s := os.environ.get(IDLE_VARIABLE):
        command += ["--idle-s", idle_s]
    command += ["--take-over"] if take_over else []
    actions = [(os.POSIX_SPAWN_DUP2, writer, writer)]
    try:
        pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
    finally:
        os.close(writer)
    with open(reader, "rb", buffering=0) as pipe:
        said = _read_all(pipe.fileno(), START_TIMEOUT_S)
    os.waitpid(pid, 0)
    if said != _READY:
        reason = said.decode("utf-8", "replace").strip() or f"it did not become ready; {path.with_suffix('.log')}"
        raise DaemonUnreachable(f"the daemon did not start: {reason}")


def _read_all(descriptor: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    said = b""
    while select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
        piece = os.read(descriptor, 4096)
        if not piece:
            break
        said += piece
    return said
