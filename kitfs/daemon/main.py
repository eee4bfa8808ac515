"""Start of the daemon's process: in the background for a client that waits, or in the foreground.

Used by ``kitfs.client`` (as ``python -m kitfs.daemon``) and by ``kitfs daemon --foreground``. A daemon in the
background has its own session, ``/`` as its folder, no descriptor of whoever started it, and its log beside the socket.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs import logs
from kitfs.control import make_socket_folder, socket_path
from kitfs.daemon.address import METRICS_VARIABLE, parse_address
from kitfs.errors import KitfsError

if TYPE_CHECKING:
    from kitfs.daemon.service import Inheritance

IDLE_S = 600.0
"""A daemon that a command started ends when its last mount has been gone for so long."""

READY = b"ready\n"
"""What a daemon in the background writes to ``--ready-fd``; anything else is why it did not start."""


def main(arguments: list[str] | None = None) -> None:
    """Run ``python -m kitfs.daemon`` in the background; the process that was started ends at once."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    if os.fork():
        os._exit(0)
    os.setsid()
    log_path = options.socket.with_suffix(".log")
    _detach(log_path, options.ready_fd)
    code = 1
    logs.configure_service("kitfs-daemon")
    try:
        idle_s, inheritance = options.idle_s, None
        if options.take_over:
            inheritance, idle_s = _take_over(options.socket)
        serve(options.home, options.socket, idle_s=idle_s, ready_fd=options.ready_fd, inheritance=inheritance)
        code = 0
    except (KitfsError, OSError) as error:
        logging.error("%s", error)
        os.write(options.ready_fd, str(error).encode())
    os._exit(code)


def _take_over(path: Path) -> tuple[Inheritance, float]:
    from kitfs.daemon.service import Inheritance
    from kitfs.daemon.takeover import take_over

    taken = take_over(path)
    return Inheritance(list(taken.kept.values()), replace=True), taken.idle_s


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m kitfs.daemon")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    parser.add_argument("--take-over", action="store_true")
    return parser.parse_args(arguments)


def _detach(log_path: Path, ready_fd: int) -> None:
    """Leave the starter's folder and close all its descriptors but the one that it waits at."""
    os.chdir("/")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log_fd = os.open(log_path, flags, 0o600)
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, log_fd), (2, log_fd)):
        os.dup2(source, target)
    os.closerange(3, ready_fd)
    os.closerange(ready_fd + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(ready_fd, False)


def serve(
    home: Path,
    socket: Path | None,
    *,
    idle_s: float = 0.0,
    ready_fd: int | None = None,
    inheritance: Inheritance | None = None,
) -> None:
    """Serve a store's mounts in this process until stopped.

    Args:
        home: The store's folder.
        socket: Where to listen, None for the store's usual place.
        idle_s: End when there was no mount for so long; 0 is never.
        ready_fd: Written to and closed once connections are accepted; whoever gave it holds the start lock.
        inheritance: What another daemon has left.

    Raises:
        KitfsError: when another daemon serves the store, the socket can not be made, or metrics can not be served.
    """
    from kitfs.daemon.service import Inheritance, Plan, run
    from kitfs.daemon.systemd import Supervisor
    from kitfs.daemon.zygote import name_process

    metrics = os.environ.get(METRICS_VARIABLE, "")
    parse_address(metrics)
    logs.configure_service("kitfs-daemon")
    real = Path(os.path.realpath(home))
    path = socket_path(real, socket)
    make_socket_folder(path, override=socket is not None)
    os.chdir("/")
    name_process("kitfs-daemon")
    is_own = ready_fd is None and inheritance is None  # a command's service manager is not ours
    supervisor = Supervisor(os.environ if is_own else {})
    announce = _announcer(ready_fd)
    run(Plan(real, path, idle_s, ready_fd is not None, announce, supervisor, metrics, inheritance or Inheritance()))


def _announcer(ready_fd: int | None) -> Callable[[], None]:
    def announce() -> None:
        if ready_fd is not None:
            os.write(ready_fd, READY)
            os.close(ready_fd)

    return announce
