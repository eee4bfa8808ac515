"""How a worker that has lost its daemon finds another: it hands over what keeps its mount alive, and serves on.

Used by ``kitfs.fuse.worker``. It asks at the daemon's socket, at first each 20 ms; whoever listens there, or is started
by connecting, adopts the session (``Adopt``). When nobody has answered for a second it starts a daemon, unless a
service manager does that; a daemon that it starts has no more privilege than a worker has.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from kitfs import __version__
from kitfs.calls import AdoptCall, Nothing
from kitfs.control import ControlConnection, DaemonUnreachable
from kitfs.errors import KitfsError
from kitfs.fuse.memory import SessionMemory

log = logging.getLogger(__name__)

PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 0.5
START_AFTER_S = 1.0
START_AGAIN_S = 5.0
_TIMEOUT_S = 10.0
"""A daemon that is being started by the connection takes a second."""


@dataclass(frozen=True)
class Lifeline:
    """What a worker needs to find another daemon.

    Attributes:
        home: The store.
        socket: Where daemons listen.
        may_start: Whether to start one.
        memory: The session's memory.
        device: The connection's device.
        lock: The session's lock.
    """

    home: Path
    socket: Path
    may_start: bool
    memory: SessionMemory
    device: int
    lock: int


async def find_daemon(lifeline: Lifeline) -> trio.socket.SocketType:
    """Hand the session over to a daemon, however long that takes; the control socket to it."""
    pause_s = PAUSE_FIRST_S
    start_s = trio.current_time() + START_AFTER_S
    said = ""
    while True:
        may_start = lifeline.may_start
        try:
            connection = await trio.to_thread.run_sync(_hand_over, lifeline, abandon_on_cancel=True)
            return trio.socket.from_stdlib_socket(connection)
        except (KitfsError, OSError) as error:
            may_start = may_start and isinstance(error, DaemonUnreachable)
            if str(error) != said:
                said = str(error)
                log.info("no daemon has taken this session over yet: %s", said)
        if may_start and trio.current_time() >= start_s:
            await trio.to_thread.run_sync(_start_daemon, lifeline, abandon_on_cancel=True)
            start_s = trio.current_time() + START_AGAIN_S
        await trio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, PAUSE_MAX_S)


def _hand_over(lifeline: Lifeline) -> socket.socket:
    """Ask once. Our end of the control socket when it was taken over."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs, ControlConnection.connect(lifeline.socket) as connection:
            descriptors = [lifeline.device, lifeline.memory.fileno(), lifeline.lock, theirs.fileno()]
            call = AdoptCall(lifeline.memory.session, __version__)
            connection.call("Adopt", call, Nothing, descriptors=descriptors, timeout_s=_TIMEOUT_S)
    except BaseException:
        ours.close()
        raise
    return ours


def _start_daemon(lifeline: Lifeline) -> None:
    """Start a daemon unless somebody else does; returns when it listens. No descriptor of ours is open in it."""
    log.warning("no daemon answers: one is started")
    arguments = [os.fspath(lifeline.home), os.fspath(lifeline.socket)]
    command = [sys.executable, "-P", "-m", "kitfs.ensure", *arguments]
    os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)
