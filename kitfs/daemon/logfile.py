"""The log of a daemon in the background stays bounded, also over weeks and whatever fails again and again.

Daemon, zygote and workers write to one open file (O_APPEND) as their standard error, so it can not be renamed; its
older half is cut off in place. What a worker writes at that very moment may be lost.
"""

from __future__ import annotations

import os
from pathlib import Path

import trio

LOG_SIZE_MAX = 1 << 20
"""A longer log loses its older half."""

_LOOK_S = 30.0


def log_path(socket: Path) -> Path:
    """Where a daemon in the background logs."""
    return socket.with_suffix(".log")


async def keep_log_bounded(socket: Path) -> None:
    """Look at the size now and then, until cancelled; returns at once where standard error is no log of ours."""
    try:
        is_ours = os.path.samestat(os.fstat(2), log_path(socket).stat())
    except OSError:
        return
    while is_ours:
        bound_log(2)
        await trio.sleep(_LOOK_S)


def bound_log(descriptor: int, size_max: int = LOG_SIZE_MAX) -> None:
    """Cut the older half of a log off when it is longer than ``size_max``; lines stay whole.

    Args:
        descriptor: Open for appending.
        size_max: Longest log.
    """
    size = os.fstat(descriptor).st_size
    if size <= size_max:
        return
    with open(f"/proc/self/fd/{descriptor}", "rb") as log:
        log.seek(size - size_max // 2)
        kept = log.read(size_max // 2).partition(b"\n")[2]
    os.ftruncate(descriptor, 0)
    os.write(descriptor, kept)
