"""P3 and P4 of case `gzip`: all tensors loaded by mmap, cold through a mount, after unpacking, and through ratarmount.

A loader has imported what it needs before the caches are dropped and the clock starts; the mount is there by then.
Each kitfs round has a store that was made anew, so that nothing has been decoded before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.decoding import measure_decoding
from bench.gzip_kit import GzipKit, prepare_cold
from bench.loader import Loader
from bench.memory import parent_of
from bench.peer import Ratarmount
from bench.processes import Cpu, children_cpu, machine_busy_s, main_thread_cpu, memory_mib, missing_size, process_cpu
from bench.report import Report
from bench.sampling import can_sample, sampled

UNPACK_AND_LOAD = "igzip -dc | tar x, then load"
LOAD = "P3 load through a cold kitfs mount"
WARM = "load from the page cache, unpacked"
COLD = "load from the disk, unpacked"
BARE = "bare decoding, 2 threads"
NATIVE_TIMEOUT_S = 60.0


def unpack(blob: Path, target: Path) -> float:
    """Unpack a layer as a shell would; returns the seconds that it takes."""
    igzip = ["igzip"] if shutil.which("igzip") else [sys.executable, "-m", "isal.igzip"]
    target.mkdir()
    start_s = time.perf_counter()
    with subprocess.Popen([*igzip, "-dc", str(blob)], stdout=subprocess.PIPE) as inflating:
        subprocess.run(["tar", "x", "-C", str(target)], stdin=inflating.stdout, check=True)
    assert inflating.returncode == 0
    return time.perf_counter() - start_s


def measure_eager(report: Report, kit: GzipKit) -> None:
    """Unpack, then load; then load what was unpacked again, from the page cache and from the disk."""
    unpacked = kit.world.folder / "unpacked"
    with Loader() as loader:
        prepare_cold()
        before, busy_s = children_cpu(), machine_busy_s()
        unpack_s = unpack(kit.blob, unpacked)
        used = children_cpu() - before
        wall_s, loading = loader.load(kit.shards(unpacked))
        report.add(f"{UNPACK_AND_LOAD}: CPU of the machine", "s", machine_busy_s() - busy_s)
    report.add(UNPACK_AND_LOAD, "s", unpack_s + wall_s)
    report.add(f"{UNPACK_AND_LOAD}: unpacking alone", "s", unpack_s)
    report.add(f"{UNPACK_AND_LOAD}: CPU", "s", used.total_s + loading.total_s)
    for name in (WARM, COLD):
        with Loader() as loader:
            if name == COLD:
                prepare_cold()
            report.add(name, "s", loader.load(kit.shards(unpacked))[0])
    shutil.rmtree(unpacked)


def measure_peer(report: Report, kit: GzipKit, peer: Ratarmount, read_ahead_kib: int = 0) -> None:
    """Load through a mount by ratarmount with an index that is there; root can give it kitfs's read-ahead."""
    if read_ahead_kib and os.geteuid() != 0:
        return
    mountpoint = kit.world.folder / "peer"
    name = f"load through a cold {peer.name} mount{f', read-ahead {read_ahead_kib} KiB' if read_ahead_kib else ''}"
    with peer.mounted(mountpoint) as pid, Loader() as loader:
        if read_ahead_kib:
            device = mountpoint.stat().st_dev
            setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
            setting.write_text(str(read_ahead_kib))
        prepare_cold()
        before = process_cpu(pid)
        wall_s, loading = loader.load(kit.shards(mountpoint))
        report.add(name, "s", wall_s, reference=UNPACK_AND_LOAD)
        report.add(f"{name}: CPU", "s", (process_cpu(pid) - before).total_s + loading.total_s)
        report.add(f"{name}: largest RSS", "MiB", memory_mib(pid, "VmHWM"))


def measure_kitfs(report: Report, kit: GzipKit) -> None:
    """Load through a cold mount of a store in which nothing has been decoded, then again, then from members."""
    assert not kit.materialised()
    mountpoint = kit.mount()
    with Loader() as loader:
        pid = int(str(kit.state()["pid"]))
        prepare_cold()
        busy_s = machine_busy_s()
        before, before_main = process_cpu(pid), main_thread_cpu(pid)
        wall_s, loading = loader.load(kit.shards(mountpoint))
        used, main = process_cpu(pid) - before, main_thread_cpu(pid) - before_main
        report.add(f"{LOAD}: CPU of the machine", "s", machine_busy_s() - busy_s)
    peers = tuple(f"load through a cold {peer.name} mount" for peer in kit.peers)
    report.add(LOAD, "s", wall_s, reference=(UNPACK_AND_LOAD, *peers, BARE))
    report.add(f"{LOAD}: speed", "MB/s", kit.size / wall_s / 1e6)
    _add_cpu(report, used, main, loading)
    report.add(f"{LOAD}: worker's largest RSS", "MiB", memory_mib(pid, "VmHWM"))
    report.add(f"{LOAD}: worker's memory that is no file's, then", "MiB", memory_mib(pid, "RssAnon"))
    report.note(f"state right after the first load: {kit.state()['state']}")
    _measure_again(report, kit, "P4 second load, from the page cache", WARM)
    _await_native(report, kit)
    prepare_cold()
    _measure_again(report, kit, "P4 load after dropping caches", COLD)
    kit.umount()


def _add_cpu(report: Report, used: Cpu, main: Cpu, loading: Cpu) -> None:
    others = used - main
    parts = {
        "worker and loader": used.total_s + loading.total_s,
        "worker's threads that decode, hash and write, user": others.user_s,
        "worker's threads that decode, hash and write, kernel": others.system_s,
        "worker's thread that speaks FUSE, user": main.user_s,
        "worker's thread that speaks FUSE, kernel": main.system_s,
        "loader, user": loading.user_s,
        "loader, kernel": loading.system_s,
    }
    for part, used_s in parts.items():
        reference = f"{UNPACK_AND_LOAD}: CPU" if part == "worker and loader" else ()
        report.add(f"{LOAD}: CPU of {part}", "s", used_s, reference=reference)


def _measure_again(report: Report, kit: GzipKit, name: str, reference: str) -> None:
    """Load once more and count what the worker is asked meanwhile."""
    shards = kit.shards(kit.world.folder / "mnt")
    with Loader() as loader:
        if reference == COLD:
            prepare_cold()
        else:
            missing = sum(missing_size(path) for path in shards)
            report.add(f"{name}: not in the page cache before it", "MB", missing / 1e6)
        before = kit.state()
        wall_s, _ = loader.load(shards)
    after = kit.state()
    report.add(name, "s", wall_s, reference=(reference, LOAD))
    report.add(f"{name}: FUSE reads", "", _count(after, "reads") - _count(before, "reads"))
    report.add(f"{name}: spans decoded", "", _count(after, "spans_decoded") - _count(before, "spans_decoded"))
    report.add(f"{name}: bytes of them", "MB", (_count(after, "bytes_read") - _count(before, "bytes_read")) / 1e6)
    report.note(f"state after {name}: {after['state']}, native {after['native']}")


def _count(state: dict[str, object], name: str) -> int:
    value = state[name]
    assert isinstance(value, int)
    return value


def _await_native(report: Report, kit: GzipKit) -> None:
    """Wait until all shards are member files; not at all when nothing is on its way to become one."""
    start_s = time.monotonic()
    members = kit.home / "members"
    while kit.materialised():
        sizes = sorted(path.stat().st_size for path in members.rglob("*") if path.is_file())
        if sizes == sorted(path.stat().st_size for path in kit.shards(kit.source.parent)):
            report.add("P4 from the second load's end until all members are files", "s", time.monotonic() - start_s)
            return
        if time.monotonic() - start_s > NATIVE_TIMEOUT_S:
            report.note(f"NOT materialised {NATIVE_TIMEOUT_S:.0f} s after the load: {len(sizes)} member files")
            return
        time.sleep(0.01)
    report.note("NOT materialised: a load leaves nothing in members/ or partial/")


def measure_limit(report: Report, kit: GzipKit) -> None:
    """What this machine decodes with no mount, on two threads and on one, and what each step of it costs."""
    for threads in (2, 1):
        found = measure_decoding(kit.home, kit.blob.name, threads)
        name = BARE if threads == 2 else "bare decoding, 1 thread"
        report.add(name, "s", found["wall_s"])
        report.add(f"{name}: speed", "MB/s", found["size"] / found["wall_s"] / 1e6)
        report.add(f"{name}: CPU", "s", found["cpu_s"])
        for step, used_s in found["steps"].items():
            report.add(f"{name}: CPU of {step}", "s", used_s)


def sample_load(report: Report, kit: GzipKit) -> None:
    """One more cold load, sampled: where worker, loader, daemon and zygote spend their CPU time."""
    if not can_sample():
        report.note("SKIPPED: sampling, which needs perf and root")
        return
    kit.import_anew()
    mountpoint = kit.mount()
    worker = int(str(kit.state()["pid"]))
    zygote = parent_of(worker)
    with Loader() as loader:
        roles = {worker: "worker", loader.pid: "loader", zygote: "zygote", parent_of(zygote): "daemon"}
        prepare_cold()
        with sampled([worker, loader.pid], kit.world.folder) as samples:
            loader.load(kit.shards(mountpoint))
    for pid, kinds in samples.used_s.items():
        for kind, used_s in sorted(kinds.items(), key=lambda item: -item[1]):
            report.add(f"sampled, {roles.get(pid, 'other')}: {kind}", "s", used_s)
    kit.umount()


def verify(report: Report, kit: GzipKit) -> None:
    """Every byte of every shard through the mount is what was packed.

    Raises:
        AssertionError: when one is not; then no figure counts.
    """
    mountpoint = kit.mount()
    for mounted, packed in zip(kit.shards(mountpoint), kit.shards(kit.source.parent), strict=True):
        with mounted.open("rb") as one, packed.open("rb") as other:
            assert hashlib.file_digest(one, "sha256").digest() == hashlib.file_digest(other, "sha256").digest()
    report.note("all bytes of the mount are those that were packed")
    kit.umount()
