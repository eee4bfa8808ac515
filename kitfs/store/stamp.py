"""Stamps: how a file whose bytes were verified is recognised later without reading it.

Used by ingests, changes, reads of members and fsck. A stamp sees every write(2), truncation, mode change, new
link and replacement, because each moves ctime. It does not see rot below the file system (lazy.md 3).

A ctime younger than ``TICK_NS`` is not believed: two writes in one clock tick look alike, so such a file gets no
stamp yet and has to be hashed, or looked at again later.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kitfs.store.records import Stamp

TICK_NS = 20_000_000
"""20 ms: above the coarsest tick of a kernel's file times (10 ms at 100 Hz)."""


def stamp_of(status: os.stat_result) -> Stamp:
    """What a file looks like now, believed or not."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_settled(stamp: Stamp, now_ns: int) -> bool:
    """Whether a change of the file after ``now_ns`` would show: its ctime is a tick old, and not in the future."""
    return stamp.ctime_ns + TICK_NS <= now_ns


def settle(stamp: Stamp) -> None:
    """Wait until a stamp just taken is a tick old, at most ``TICK_NS``; a clock set back is not waited for."""
    wait_ns = stamp.ctime_ns + TICK_NS - time.time_ns()
    if 0 < wait_ns <= TICK_NS:
        time.sleep(wait_ns / 1e9)


def find_status(path: Path) -> os.stat_result | None:
    """The status of what lies at a path (a symlink itself), or None when nothing does."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def matches(stamp: Stamp | None, status: os.stat_result | None) -> bool:
    """Whether a file still looks as it did when ``stamp`` was taken; nothing matches None."""
    return stamp is not None and status is not None and stamp == stamp_of(status)
