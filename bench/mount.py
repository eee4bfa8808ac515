"""Case ``mount``: from the command to the first listing, the daemon running (P1), and where the time goes.

``kitfs mount and listing`` is what a person waits for: the whole command, process start included, and the first
``readdir`` of the mount. The parts come from the same command run in an interpreter that times the functions it
goes through; clocks of two processes agree, because ``perf_counter`` is CLOCK_MONOTONIC. The reference is an
interpreter that does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.kits import make_example
from bench.report import Report
from bench.world import KITFS, World, make_world

REFERENCE = "interpreter that does nothing"
WHOLE = "kitfs mount and listing"


def measure(arguments: argparse.Namespace) -> Report:
    """Mount, list and unmount a small ModelKit ``--rounds`` times (default 20)."""
    report = Report("mount")
    with make_world() as world:
        make_example(world.folder / "kit")
        world.pack(world.folder / "kit", "tiny:1")
        mountpoint = world.mount("tiny:1")  # starts the daemon, and warms what is read from disk
        world.kitfs("umount", mountpoint)
        for _ in range(arguments.rounds or 20):
            _measure_reference(report, world)
            _measure_whole(report, world, mountpoint)
            _measure_parts(report, world, mountpoint)
    return report


def _elapsed_ms(start_s: float) -> float:
    return (time.perf_counter() - start_s) * 1e3


def _measure_reference(report: Report, world: World) -> None:
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True, env=world.environment)
    report.add(REFERENCE, "ms", _elapsed_ms(start_s))
    start_s = time.perf_counter()
    subprocess.run([*KITFS, "--version"], check=True, env=world.environment, stdout=subprocess.DEVNULL)
    report.add("kitfs --version", "ms", _elapsed_ms(start_s), reference=REFERENCE)


def _measure_whole(report: Report, world: World, mountpoint: Path) -> None:
    start_s = time.perf_counter()
    subprocess.run([*KITFS, "mount", "tiny:1", mountpoint], check=True, env=world.environment)
    mounted_ms = _elapsed_ms(start_s)
    assert "Kitfile" in os.listdir(mountpoint)
    whole_ms = _elapsed_ms(start_s)
    report.add(WHOLE, "ms", whole_ms, reference=REFERENCE)
    report.add("  of it: first listing", "ms", whole_ms - mounted_ms)
    start_s = time.perf_counter()
    subprocess.run([*KITFS, "umount", mountpoint], check=True, env=world.environment)
    report.add("kitfs umount", "ms", _elapsed_ms(start_s), reference=REFERENCE)


def _measure_parts(report: Report, world: World, mountpoint: Path) -> None:
    environment = {**world.environment, "BENCH_START_S": repr(time.perf_counter())}
    command = [sys.executable, "-m", "bench.probe", "mount", "tiny:1", str(mountpoint)]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    for name, value_ms in json.loads(done.stdout).items():
        report.add(f"  part: {name}", "ms", value_ms)
    world.kitfs("umount", mountpoint)
