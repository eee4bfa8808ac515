"""Case ``many``: a gzip layer of 200 000 small files: imported, mounted, listed, walked, read (P9).

The mount is compared with that of a small kit in the same round. ``find`` lists every path, ``ls -l`` a folder of a
tenth of them, ``tar c`` reads every file in order, which decodes each span about once. Memory is the worker's.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import time
from pathlib import Path

from bench.kits import make_example, write_many_layout
from bench.memory import memory_mib
from bench.processes import process_cpu
from bench.report import Report
from bench.world import KITFS, World, make_world

MEMBERS = 200_000
REFERENCE = "localhost/many:1"
SMALL = "mount and listing of a small kit"


def measure(arguments: argparse.Namespace) -> Report:
    """Import once; mount and walk ``--rounds`` times (default 5), read once."""
    report = Report("many")
    count = arguments.members or MEMBERS
    with make_world() as world:
        make_example(world.folder / "kit")
        world.pack(world.folder / "kit", "tiny:1")
        write_many_layout(world.folder / "layout", count, REFERENCE)
        _measure_import(report, world, count)
        mountpoint = world.mount("tiny:1")  # starts the daemon
        world.kitfs("umount", mountpoint)
        for _ in range(arguments.rounds or 5):
            _measure_mount(report, world, mountpoint, "tiny:1", SMALL)
            world.kitfs("umount", mountpoint)
            _measure_mount(report, world, mountpoint, REFERENCE, f"mount and listing of {count} files")
            _measure(report, world, ["find", str(mountpoint)], f"find, {count} files")
            _measure(report, world, ["ls", "-l", str(mountpoint / "data" / "flat")], f"ls -l, {count // 10} files")
            world.kitfs("umount", mountpoint)
        world.mount(REFERENCE)
        _measure(report, world, ["tar", "c", "-C", str(mountpoint), "data"], f"tar c, {count} files")
        report.add("  spans decoded by then", "", float(str(world.mounts()[0]["spans_decoded"])))
        _measure(report, world, ["tar", "c", "-C", str(mountpoint), "data"], "tar c again, from the page cache")
    return report


def _measure_import(report: Report, world: World, count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    world.kitfs("--progress", "none", "import", world.folder / "layout")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report.add("import with index, CPU for each member", "µs", used_s / count * 1e6)
    report.add("  memory of the command at most", "MiB", after.ru_maxrss / 1024)
    index = world.folder / "home" / "index" / "data.mdb"
    report.add("index for each member", "B", index.stat().st_blocks * 512 / count)


def _measure_mount(report: Report, world: World, mountpoint: Path, reference: str, name: str) -> None:
    start_s = time.perf_counter()
    subprocess.run([*KITFS, "mount", reference, mountpoint], check=True, env=world.environment)
    assert "Kitfile" in os.listdir(mountpoint)
    report.add(name, "ms", (time.perf_counter() - start_s) * 1e3, reference="" if name == SMALL else SMALL)
    pid = _worker(world)
    report.add(f"  CPU of the worker, {name}", "ms", process_cpu(pid).total_s * 1e3)
    report.add(f"  memory of the worker, {name}", "MiB", memory_mib(pid)["rss"])


def _measure(report: Report, world: World, command: list[str], name: str) -> None:
    pid = _worker(world)
    before_s = process_cpu(pid).total_s
    start_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        while running.stdout.read(1 << 20):
            pass
    assert running.returncode == 0
    report.add(name, "s", time.perf_counter() - start_s)
    report.add(f"  worker's CPU, {name}", "s", process_cpu(pid).total_s - before_s)
    report.add(f"  worker's memory, {name}", "MiB", memory_mib(pid)["rss"])


def _worker(world: World) -> int:
    return int(str(world.mounts()[0]["pid"]))
