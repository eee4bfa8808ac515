"""Case ``memory``: resident and proportional memory of daemon, zygote and workers, for one mount and for five.

Each mount has had its tree listed and one file read. The reference is an interpreter that has imported pyfuse3
and trio and does nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from bench.kits import make_example
from bench.report import Report
from bench.world import World, make_world

REFERENCE = "interpreter with pyfuse3 and trio"


def memory_mib(pid: int) -> dict[str, float]:
    """RSS, PSS and private memory of a process (proc(5), ``smaps_rollup``), in MiB."""
    sizes: dict[str, float] = {"rss": 0.0, "pss": 0.0, "private": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        kind = {"Rss": "rss", "Pss": "pss", "Private_Clean": "private", "Private_Dirty": "private"}.get(name)
        if kind is not None:
            sizes[kind] += int(value.split()[0]) / 1024
    return sizes


def parent_of(pid: int) -> int:
    """The parent of a process (proc(5), ``stat``, field 4)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid: int) -> list[int]:
    """The children of a process."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [child for child in pids if Path(f"/proc/{child}/stat").exists() and parent_of(child) == pid]


def _measure_reference(report: Report) -> None:
    code = "import pyfuse3, trio, sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for kind, value in memory_mib(process.pid).items():
            report.add(f"{REFERENCE}, {kind}", "MiB", value)
        process.communicate()


def _add(report: Report, name: str, sizes: list[dict[str, float]]) -> None:
    for kind in ("rss", "pss", "private"):
        for size in sizes:
            report.add(f"{name}, {kind}", "MiB", size[kind], reference=f"{REFERENCE}, {kind}")


def _measure_processes(report: Report, world: World, mounts: str) -> None:
    workers = [int(str(row["pid"])) for row in world.mounts()]
    zygote = parent_of(workers[0])
    related = {parent_of(zygote), *children_of(zygote)} - set(workers) - {1}
    daemon = next(pid for pid in related if "kitfs" in Path(f"/proc/{pid}/cmdline").read_text())
    _add(report, f"{mounts}: daemon", [memory_mib(daemon)])
    _add(report, f"{mounts}: zygote", [memory_mib(zygote)])
    sizes = [memory_mib(pid) for pid in workers]
    _add(report, f"{mounts}: a worker", sizes)
    total = sum(size["pss"] for size in [memory_mib(daemon), memory_mib(zygote), *sizes])
    report.add(f"{mounts}: all together, pss", "MiB", total, reference=f"{REFERENCE}, pss")


def measure(arguments: argparse.Namespace) -> Report:
    """Measure with one mount and with five, ``--rounds`` times (default 1)."""
    report = Report("memory")
    for _ in range(arguments.rounds or 1):
        _measure_reference(report)
        with make_world() as world:
            make_example(world.folder / "kit")
            world.pack(world.folder / "kit", "tiny:1")
            for number in range(5):
                mountpoint = world.mount("tiny:1", f"mnt{number}")
                assert [path for path in mountpoint.rglob("*") if path.is_file() and path.read_bytes()]
                if number in (0, 4):
                    _measure_processes(report, world, "1 mount" if number == 0 else "5 mounts")
    return report
