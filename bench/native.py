"""Case ``native``: a materialised member read through the mount against the same file on the local disk.

The kernel reads such a file by itself (passthrough): ``read`` is 1 MiB at a time, ``map`` copies out of a map that is
made for it, ``open`` is an open and a close with nobody else beside it, which asks worker and daemon. ``warm`` has the
file in the page cache, ``cold`` (root only) has dropped the caches before. Which of the two is measured first changes
from round to round. ``READ requests`` counts those that reached kitfs in the whole run: 0.
"""

from __future__ import annotations

import argparse
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from bench.kits import MIB, make_large
from bench.read import drop_caches, read_at_random, read_sequentially, warm
from bench.report import Report
from bench.world import make_world

REFERENCE = "large:1"
OPENS = 200


def read_map(path: Path) -> tuple[str, float]:
    """Copy a file out of a map, 1 MiB at a time; returns the unit and the speed."""
    buffer = memoryview(bytearray(MIB))
    size = path.stat().st_size
    start_s = time.perf_counter()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        for offset in range(0, size, MIB):
            piece = view[offset : offset + MIB]
            buffer[: len(piece)] = piece
            piece.release()
    return "MB/s", size / (time.perf_counter() - start_s) / 1e6


def open_often(path: Path) -> tuple[str, float]:
    """Open and close a file; returns the unit and the mean time of one."""
    start_s = time.perf_counter()
    for _ in range(OPENS):
        os.close(os.open(path, os.O_RDONLY))
    return "µs", (time.perf_counter() - start_s) / OPENS * 1e6


WAYS: list[tuple[str, Callable[[Path], tuple[str, float]]]] = [
    ("read", read_sequentially),
    ("read 4 KiB at random", read_at_random),
    ("map", read_map),
    ("open", open_often),
]


def measure(arguments: argparse.Namespace) -> Report:
    """Make the kit, then read it ``--rounds`` times (default 5) in every way."""
    report = Report("native")
    with make_world() as world:
        source = make_large(world.folder / "large", (arguments.size_mib or 1024) * MIB)
        world.pack(source.parent, REFERENCE)
        path = world.mount(REFERENCE) / "weights.bin"
        caches = ["warm", "cold"] if os.geteuid() == 0 else ["warm"]
        for number in range(arguments.rounds or 5):
            for cache in caches:
                for way, read in WAYS:
                    _compare(report, source, path, f"{way}, {cache}", read, is_mount_first=bool(number % 2))
        (state,) = world.mounts()
        report.add("READ requests", "", float(str(state["reads"])))
        if state["reads"]:
            report.note("the file was not passed through: kitfs doctor says why")
        world.kitfs("umount", path.parent)
    return report


def _compare(report: Report, source: Path, path: Path, name: str, read: Callable[[Path], tuple[str, float]],
             *, is_mount_first: bool) -> None:  # fmt: skip
    for place in (path, source) if is_mount_first else (source, path):
        if name.endswith("cold"):
            drop_caches()
        else:
            warm([place])
        unit, value = read(place)
        if place is source:
            report.add(f"local disk, {name}", unit, value)
        else:
            report.add(f"mount, {name}", unit, value, reference=f"local disk, {name}")
