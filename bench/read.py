"""Case ``read``: first reads of a plain tar kit through the mount against the same file on the local disk (P7).

The weights are random bytes. Each round of the mount is a mount made anew, so that every byte asked for crosses
FUSE once; ``warm`` has the layer in the page cache, ``cold`` (root only) has dropped the caches before. The
reference does the same reads with the same code on the file that was packed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

from bench.kits import MIB, make_large
from bench.report import Report
from bench.world import World, make_world

REFERENCE = "large:1"
RANDOM_READS = 2000
PAGE = 4096


def read_sequentially(path: Path) -> tuple[str, float]:
    """Read a file once, 1 MiB at a time; returns the unit and the speed."""
    buffer = bytearray(MIB)
    done = 0
    start = time.perf_counter()
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            done += size
    assert done == path.stat().st_size
    return "MB/s", done / (time.perf_counter() - start) / 1e6


def read_at_random(path: Path) -> tuple[str, float]:
    """Read 4 KiB at random page-aligned places; returns the unit and the mean time of one."""
    pages = path.stat().st_size // PAGE
    places = random.Random(4).sample(range(pages), min(RANDOM_READS, pages))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        start = time.perf_counter()
        for place in places:
            assert len(os.pread(descriptor, PAGE, place * PAGE)) == PAGE
        return "µs", (time.perf_counter() - start) / len(places) * 1e6
    finally:
        os.close(descriptor)


def drop_caches() -> None:
    """Empty the page cache (root only)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def warm(paths: list[Path]) -> None:
    """Bring files into the page cache, with nothing left to be written back meanwhile."""
    os.sync()
    for path in paths:
        read_sequentially(path)


def measure(arguments: argparse.Namespace) -> Report:
    """Make the kit, then read it ``--rounds`` times (default 3) in every way."""
    report = Report("read")
    with make_world() as world:
        source = make_large(world.folder / "large", (arguments.size_mib or 2048) * MIB)
        world.pack(source.parent, REFERENCE)
        blobs = [path for path in (world.folder / "home" / "blobs").rglob("*") if path.is_file()]
        caches = ["warm", "cold"] if os.geteuid() == 0 else ["warm"]
        for _ in range(arguments.rounds or 3):
            for cache in caches:
                for way, read in (("sequential", read_sequentially), ("random 4 KiB", read_at_random)):
                    prepare = drop_caches if cache == "cold" else lambda: warm([source, *blobs])
                    _compare(report, world, source, f"{way}, {cache}", prepare, read)
    return report


def _compare(report: Report, world: World, source: Path, name: str, prepare: Callable[[], None],
             read: Callable[[Path], tuple[str, float]]) -> None:  # fmt: skip
    prepare()
    unit, value = read(source)
    report.add(f"local disk, {name}", unit, value)
    mountpoint = world.mount(REFERENCE)
    try:
        prepare()
        before = resource.getrusage(resource.RUSAGE_SELF)
        unit, value = read(mountpoint / "weights.bin")
        after = resource.getrusage(resource.RUSAGE_SELF)
        report.add(f"mount, {name}", unit, value, reference=f"local disk, {name}")
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        report.add(f"mount, {name}: reader's CPU", "ms", used_s * 1e3)
    finally:
        world.kitfs("umount", mountpoint)
