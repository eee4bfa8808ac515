"""Case `unpack`: made bf16 weights written into a new directory, by kitfs and by kit from the same published layers.

kit packs, kitfs links kit's blobs; besides, kitfs unpacks what it packed itself and keeps split. Each round unpacks all
in turn, from the page cache and from the disk; nobody syncs. `docs/benchmarks.md` says what each line means.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.gzip_kit import SHARDS
from bench.kit_command import find_kit, run
from bench.kits import MIB
from bench.pack import MAKE
from bench.processes import files_below
from bench.report import Report
from bench.world import KITFS, World, make_world

KITFILE = "manifestVersion: 1.0.0\npackage:\n  name: weights\nmodel:\n  path: model\n"
COMPRESSIONS = ("none", "gzip")


@dataclass
class _Unpacking:
    """Where it is measured.

    Attributes:
        report: What it is told to.
        world: Where `kitfs` and kit run.
        source: The weights.
        kit: The command, or None.
    """

    report: Report
    world: World
    source: Path
    kit: str | None

    def measure(self, name: str, command: list[str | Path], store: Path, cache: str, reference: str | None) -> None:
        """Unpack once into a new directory and compare what is there with what was packed."""
        target = self.world.folder / "unpacked"
        _prepare(self.world.folder, store, cache)
        done = run([*command, "-d", target, "--progress", "none"], self.world.environment)
        label = f"{name}, {cache}"
        self.report.add(label, "s", done.elapsed_s, reference=f"{reference}, {cache}" if reference else ())
        self.report.add(f"  {label}: CPU", "s", done.cpu.total_s)
        self.report.add(f"  {label}: largest RSS", "MiB", done.rss_mib)
        subprocess.run(["diff", "-r", self.source / "model", target / "model"], check=True)
        shutil.rmtree(target)


def _prepare(folder: Path, store: Path, cache: str) -> None:
    """Have what is read in the page cache, or nothing of it; the programs themselves stay there."""
    os.sync()
    if cache == "cold":
        for path in files_below(folder):
            evict(path)
        return
    for path in files_below(store):
        if path.stat().st_size >= MIB:
            run(["cat", str(path)])


def measure(arguments: argparse.Namespace) -> Report:
    """Make weights of ``--size-mib`` (default 1024), then unpack them ``--rounds`` times (default 3) in every way."""
    report = Report("unpack")
    size = (arguments.size_mib or 1024) * MIB
    report.note(f"{size // MIB} MiB of made bf16 weights in {SHARDS} shards, one layer")
    kit = find_kit(report)
    with make_world() as linked, make_world() as plain, make_world() as compressed:
        source = linked.folder / "weights"
        subprocess.run([sys.executable, "-c", MAKE, source / "model", str(SHARDS), str(size)], check=True)
        (source / "Kitfile").write_text(KITFILE)
        ways = _ways(_Unpacking(report, linked, source, kit))
        for world, compression in ((plain, "none"), (compressed, "gzip")):
            ways.append(_packed_way(_Unpacking(report, world, source, kit), compression))
        for _ in range(arguments.rounds or 3):
            for cache in ("warm", "cold"):
                for way in ways:
                    way(cache)
    return report


def evict(path: Path) -> None:
    """Take a file that is on disk out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


Way = Callable[[str], None]


def _ways(at: _Unpacking) -> list[Way]:
    """kit, and kitfs from kit's blobs, by compression."""
    if at.kit is None:
        return []
    ways: list[Way] = []
    for compression in COMPRESSIONS:
        reference = f"weights:{compression}"
        options = ["-t", reference, "--compression", compression, "--progress", "none"]
        run([at.kit, "pack", at.source, *options], at.world.environment)
        ways += [_way(at, f"kit unpack, {compression}", at.kit, reference, "kitops", None)]
    at.world.kitfs("--progress", "none", "import", at.world.folder / "kitops")
    for compression in COMPRESSIONS:
        reference = f"weights:{compression}"
        name = f"kitfs unpack, {compression}, linked"
        ways += [_way(at, name, KITFS[0], reference, "kitops", f"kit unpack, {compression}")]
    return ways


def _packed_way(at: _Unpacking, compression: str) -> Way:
    """kitfs from a store that has only what it packed itself, split where it is plain."""
    reference = f"weights:{compression}"
    at.world.kitfs("--progress", "none", "pack", at.source, "-t", reference, "--compression", compression)
    name = f"kitfs unpack, {compression}, packed by kitfs"
    return _way(at, name, KITFS[0], reference, "home", f"kit unpack, {compression}")


def _way(at: _Unpacking, name: str, program: str, reference: str, store: str, other: str | None) -> Way:
    command: list[str | Path] = [program, "unpack", reference]
    return lambda cache: at.measure(name, command, at.world.folder / store, cache, other)
