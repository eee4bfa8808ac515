"""P1 of case `gzip`: mounting a known kit until `ls` works, first bytes of a member, cold random reads."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.gzip_kit import GzipKit, prepare_cold
from bench.read import PAGE
from bench.report import Report

MOUNTS = 5
RANDOM_READS = 200
SLOT_SIZE = 1 << 20
FIRST_SIZE = 64 << 10
INTERPRETER = "python -c pass"


def measure_mount(report: Report, kit: GzipKit) -> None:
    """From the command to its listing: daemon running, caches dropped before, and with start of the daemon."""
    kit.world.close()
    for cache in ("with start of the daemon", *["daemon running"] * MOUNTS, "daemon running, cold"):
        if cache.endswith("cold"):
            prepare_cold()
        else:
            start_s = time.perf_counter()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            report.add(INTERPRETER, "ms", (time.perf_counter() - start_s) * 1e3)
        start_s = time.perf_counter()
        mountpoint = kit.mount()
        assert "Kitfile" in os.listdir(mountpoint)
        elapsed_ms = (time.perf_counter() - start_s) * 1e3
        peer_name = f"P1 ratarmount -P 1 mount until ls{', cold' if cache.endswith('cold') else ''}"
        report.add(f"P1 kitfs mount until ls, {cache}", "ms", elapsed_ms, reference=(INTERPRETER, peer_name))
        kit.umount()
    for peer in kit.peers[:1]:
        for cache in ("", ", cold"):
            if cache:
                prepare_cold()
            start_s = time.perf_counter()
            with peer.mounted(kit.world.folder / "peer"):
                assert os.listdir(kit.world.folder / "peer")
                report.add(f"P1 {peer.name} mount until ls{cache}", "ms", (time.perf_counter() - start_s) * 1e3)


def measure_reads(report: Report, kit: GzipKit, seed: int) -> None:
    """First 64 KiB and random 4 KiB of the unpacked files, a kitfs mount and a ratarmount mount, all cold."""
    local = "unpacked on the local disk"
    for first in (0, -1):
        _measure_first(report, local, kit.shards(kit.source.parent)[first], ())
        mountpoint = kit.mount()
        _measure_first(report, "kitfs", kit.shards(mountpoint)[first], (local, "ratarmount -P 1"))
        kit.umount()
        for peer in kit.peers[:1]:
            with peer.mounted(kit.world.folder / "peer"):
                _measure_first(report, peer.name, kit.shards(kit.world.folder / "peer")[first], ())
    _measure_random(report, local, kit.shards(kit.source.parent), seed, ())
    mountpoint = kit.mount()
    _measure_random(report, "kitfs", kit.shards(mountpoint), seed, (local, "ratarmount -P 1"))
    kit.umount()
    for peer in kit.peers[:1]:
        with peer.mounted(kit.world.folder / "peer"):
            _measure_random(report, peer.name, kit.shards(kit.world.folder / "peer"), seed, ())


def _read(path: Path, size: int, place: int) -> float:
    """Open a file and read once; returns the milliseconds of both."""
    start_s = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        assert len(os.pread(descriptor, size, place)) == size
        return (time.perf_counter() - start_s) * 1e3
    finally:
        os.close(descriptor)


def _measure_first(report: Report, name: str, path: Path, references: tuple[str, ...]) -> None:
    prepare_cold()
    reference = tuple(f"{other}, first 64 KiB, cold" for other in references)
    report.add(f"{name}, first 64 KiB, cold", "ms", _read(path, FIRST_SIZE, 0), reference=reference)


def _measure_random(report: Report, name: str, paths: list[Path], seed: int, references: tuple[str, ...]) -> None:
    """Reads at places in as many different MiB, in any order."""
    source = random.Random(seed)
    slots = [(path, start) for path in paths for start in range(0, path.stat().st_size - SLOT_SIZE + 1, SLOT_SIZE)]
    prepare_cold()
    times_ms = [
        _read(path, PAGE, start + source.randrange(SLOT_SIZE // PAGE) * PAGE)
        for path, start in source.sample(slots, min(RANDOM_READS, len(slots)))
    ]
    reference = tuple(f"{other}, random 4 KiB, cold: median" for other in references)
    report.add(f"{name}, random 4 KiB, cold: median", "ms", statistics.median(times_ms), reference=reference)
    reference = tuple(f"{other}, random 4 KiB, cold: p95" for other in references)
    report.add(f"{name}, random 4 KiB, cold: p95", "ms", statistics.quantiles(times_ms, n=20)[-1], reference=reference)
