"""What ``/proc`` says of a process and of the machine's memory, and the one knob of a connection. Looks at no mount.

Used by ``kitfs.daemon.worker``, ``kitfs.daemon.supervision`` and ``kitfs.daemon.session``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

STOPPED = frozenset("Tt")
"""States of a process that somebody has stopped, by SIGSTOP or as a debugger."""

WAITS_FOR_DISK = "D"


def find_state(pid: int) -> str:
    """State of a process's main thread as one letter (proc(5)), ``X`` when there is none."""
    try:
        status = Path(f"/proc/{pid}/task/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return "X"
    return status.rpartition(")")[2].split()[0]


def find_parent(pid: int) -> int:
    """Process id of a process's parent, 0 when there is none (proc(5))."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])


def has_no_new_privileges() -> bool:
    """Whether this process can never get capabilities that it has not (prctl(2), PR_SET_NO_NEW_PRIVS)."""
    try:
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return False
    return "NoNewPrivs:\t1" in lines


def cpu_wait_s(pid: int) -> float:
    """For how long all threads of a process together were ready to run and had no core (``schedstat``)."""
    waited_ns = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            waited_ns += int(path.read_text("ascii").split()[1])
    return waited_ns / 1e9


def count_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory, in a cgroup or in the machine (``oom_kill``)."""
    try:
        lines = Path("/proc/vmstat").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def abort_connection(device: str) -> None:
    """End a FUSE connection that a process holds which can not be killed, where fusectl is mounted for us to do so.

    Args:
        device: ``major:minor`` of its mount.
    """
    minor = device.rpartition(":")[2]
    if minor.isdecimal():
        with contextlib.suppress(OSError):
            Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1", "ascii")
