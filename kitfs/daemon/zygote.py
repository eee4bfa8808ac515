"""The zygote: a process with everything imported and one thread, which forks a worker in 2 ms.

``python -m kitfs.daemon.zygote FD`` is started by ``kitfs.daemon.forker`` with one end of a SOCK_SEQPACKET pair. It
has no event loop, opens no index, parses nothing but the daemon's own messages, and ends when the daemon does. Its
children (the workers) outlive it: they are then the daemon's to reap. It keeps no descriptor of theirs.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from kitfs import logs
from kitfs.control import parse_descriptors
from kitfs.daemon.forkcalls import DATAGRAM_SIZE_MAX, ForkCall, ZygoteMessage

log = logging.getLogger(__name__)

_SHARED_MODULES = (
    "kitfs.fuse.worker",
    "kitfs.modelkit.storeview",
    "kitfs.oci.kitfile_regenerate",
    "kitfs.store.change",
)
"""Imported once and shared by all children; all but the first would else be imported by each worker (10 ms)."""

_OOM_SCORE_ADJ = 900
_OOM_SCORE_ADJ_WORKER = 1000
"""Workers die first when memory runs out, then the zygote (proc(5)): they hold nothing that their successors can not
derive, and a reader that has weights in memory would else be chosen."""

_ENDED_BADLY = 70
"""Exit code of a worker that an exception ended (EX_SOFTWARE, sysexits.h)."""


class Zygote:
    """Answers fork calls and reports deaths. One thread."""

    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon
        self._poll = select.poll()
        self._poll.register(daemon, select.POLLIN)
        self._children: dict[int, int] = {}

    def run(self) -> None:
        """Serve until the daemon's end of the socket is closed."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._report_death(descriptor)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        try:
            raw, ancillary, _, _ = self._daemon.recvmsg(DATAGRAM_SIZE_MAX, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return False
        descriptors = parse_descriptors(ancillary)
        if not raw:
            return False
        call = msgspec.json.decode(raw, type=ForkCall)
        try:
            self._fork(call, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, call: ForkCall, descriptors: list[int]) -> None:
        if len(descriptors) != 1:
            self._send(ZygoteMessage(number=call.number, error=f"{len(descriptors)} descriptors came along"))
            return
        try:
            pid = os.fork()
        except OSError as error:
            self._send(ZygoteMessage(number=call.number, error=f"fork: {error.strerror}"))
            return
        if pid == 0:
            self._become_worker(call, descriptors[0])
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._send(ZygoteMessage(number=call.number, pid=pid), pidfd)

    def _report_death(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._send(ZygoteMessage(pid=pid, exit_code=os.waitstatus_to_exitcode(status)))

    def _send(self, message: ZygoteMessage, descriptor: int | None = None) -> None:
        rights = [] if descriptor is None else [descriptor]
        try:
            socket.send_fds(self._daemon, [msgspec.json.encode(message)], rights)
        except OSError as error:
            log.warning("the daemon does not listen: %s", error)

    def _become_worker(self, call: ForkCall, control: int) -> NoReturn:
        try:
            self._daemon.close()
            for pidfd in self._children:
                os.close(pidfd)
            name_process("kitfs-worker")
            set_oom_score(_OOM_SCORE_ADJ_WORKER)
            logs.name_process("kitfs-worker")
            _run_worker(Path(call.home), control)
        except BaseException:  # nothing may return into the zygote's loop from a child
            log.exception("a worker")
            os._exit(_ENDED_BADLY)


def _run_worker(home: Path, control: int) -> NoReturn:
    from kitfs.fuse.worker import run_worker

    run_worker(home=home, control=control)


def name_process(name: str) -> None:
    """Set the name that ``ps`` shows, at most 15 characters (proc(5), ``comm``)."""
    Path("/proc/self/comm").write_text(name, "ascii")


def set_oom_score(value: int) -> None:
    """Set how gladly this process is killed when memory runs out (proc(5), ``oom_score_adj``)."""
    Path("/proc/self/oom_score_adj").write_text(f"{value}", "ascii")


def main(arguments: list[str]) -> None:
    """Import everything that a worker needs, then fork workers on request."""
    logs.configure_service("kitfs-zygote")
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    name_process("kitfs-zygote")
    set_oom_score(_OOM_SCORE_ADJ)
    for module in _SHARED_MODULES:
        importlib.import_module(module)

    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)  # a free block of its heap would be LMDB's buffer in each child: 2 MiB to copy
    with socket.socket(fileno=int(arguments[0])) as daemon:
        Zygote(daemon).run()


if __name__ == "__main__":
    main(sys.argv[1:])
