"""Case ``gzip``: a kit whose weights are one tar+gzip layer, read without unpacking it (P1 to P4).

Made bf16 weights in four safetensors shards. Measured: ``import`` with index; a cold mount until ``ls``; cold
reads of 4 KiB at random places; loading every tensor of all shards through a cold mount, against unpacking with
``igzip -dc | tar x`` and loading from the disk; loading a second time. Cold (root only): caches were dropped before.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.kits import MIB, make_shards, write_gzip_layout
from bench.memory import memory_mib
from bench.read import PAGE, drop_caches
from bench.report import Report
from bench.world import World, make_world

REFERENCE = "localhost/weights:1"
UNPACK_AND_LOAD = "igzip -dc | tar x, then load"
SHARDS = 4
RANDOM_READS = 100

LOAD = """
import sys, safetensors
size = 0
for path in sys.argv[1:]:
    with safetensors.safe_open(path, "numpy") as shard:
        for name in shard.keys():
            size += shard.get_tensor(name).nbytes
print(size)"""


def load(folder: Path) -> float:
    """Load every tensor of all shards in another process; returns the seconds that it takes."""
    shards = [str(folder / f"model-{number}.safetensors") for number in range(SHARDS)]
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", LOAD, *shards], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start_s


def unpack(blob: Path, target: Path) -> float:
    """Unpack a layer as a shell would; returns the seconds that it takes."""
    igzip = ["igzip"] if shutil.which("igzip") else [sys.executable, "-m", "isal.igzip"]
    target.mkdir()
    start_s = time.perf_counter()
    with subprocess.Popen([*igzip, "-dc", str(blob)], stdout=subprocess.PIPE) as inflating:
        subprocess.run(["tar", "x", "-C", str(target)], stdin=inflating.stdout, check=True)
    assert inflating.returncode == 0
    return time.perf_counter() - start_s


def read_at_random(folder: Path, seed: int) -> list[float]:
    """Milliseconds of reads of 4 KiB at places that no read-ahead has reached."""
    paths = [folder / f"model-{number}.safetensors" for number in range(SHARDS)]
    source = random.Random(seed)
    times_ms = []
    for _ in range(RANDOM_READS):
        path = source.choice(paths)
        place = source.randrange(path.stat().st_size // PAGE) * PAGE
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            start_s = time.perf_counter()
            assert len(os.pread(descriptor, PAGE, place)) == PAGE
            times_ms.append((time.perf_counter() - start_s) * 1e3)
        finally:
            os.close(descriptor)
    return times_ms


def measure(arguments: argparse.Namespace) -> Report:
    """Make the kit (``--size-mib``, default 256), then measure ``--rounds`` times (default 3)."""
    report = Report("gzip")
    prepare = drop_caches if os.geteuid() == 0 else (lambda: None)
    with make_world() as world:
        size = (arguments.size_mib or 256) * MIB
        layout = world.folder / "layout"
        make_shards(world.folder / "model", SHARDS, size)
        blob = write_gzip_layout(layout, world.folder / "model", REFERENCE)
        report.add("published size over decoded", "ratio", blob.stat().st_size / size)
        for number in range(arguments.rounds or 3):
            _measure_import(report, world, layout, size, prepare)
            _measure_load(report, world, blob, number, prepare)
    return report


def _measure_import(report: Report, world: World, layout: Path, size: int, prepare: Callable[[], None]) -> None:
    world.close()
    shutil.rmtree(world.folder / "home", ignore_errors=True)
    prepare()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.perf_counter()
    world.kitfs("--progress", "none", "import", layout)
    elapsed_s = time.perf_counter() - start_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report.add("import with index", "MB/s", size / elapsed_s / 1e6)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report.add("import with index, for each CPU-second", "MB/s", size / used_s / 1e6)
    index = world.folder / "home" / "index" / "data.mdb"
    report.add("index for each GB of the layer", "MB", index.stat().st_blocks * 512 / size * 1e3)


def _measure_load(report: Report, world: World, blob: Path, number: int, prepare: Callable[[], None]) -> None:
    unpacked = world.folder / "unpacked"
    prepare()
    reference_s = unpack(blob, unpacked)
    reference_s += load(unpacked / "model")
    report.add(UNPACK_AND_LOAD, "s", reference_s)
    shutil.rmtree(unpacked)
    prepare()
    start_s = time.perf_counter()
    mountpoint = world.mount(REFERENCE)
    assert os.listdir(mountpoint)
    report.add("mount until ls, cold, with start of the daemon", "ms", (time.perf_counter() - start_s) * 1e3)
    try:
        for value in sorted(read_at_random(mountpoint / "model", number))[RANDOM_READS // 2 :: RANDOM_READS]:
            report.add("random 4 KiB, cold, median", "ms", value)
        world.kitfs("umount", mountpoint)
        prepare()
        world.mount(REFERENCE)
        pid = int(str(world.mounts()[0]["pid"]))
        before_s = cpu_s(pid)
        report.add("load through a cold mount", "s", load(mountpoint / "model"), reference=UNPACK_AND_LOAD)
        report.add("  of it: the worker's CPU", "s", cpu_s(pid) - before_s)
        report.add("  the worker's memory then", "MiB", memory_mib(pid)["rss"])
        report.add("load a second time", "s", load(mountpoint / "model"), reference=UNPACK_AND_LOAD)
    finally:
        world.kitfs("umount", mountpoint)


def cpu_s(pid: int) -> float:
    """CPU time of a process (proc(5), ``stat``, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
