"""Case `pack`: made bf16 weights packed into a new store, against hashing them once and against kit.

Everything is in the page cache when it is read, and what kitfs reports as packed is on the disk. Each round packs in
all forms. `docs/benchmarks.md` says what each line means.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.kit_command import find_kit, run
from bench.kits import MIB
from bench.report import Report
from bench.world import KITFS, World, make_world

REFERENCE = "sha256sum"
SHARDS = 4
MAKE = (
    "import sys; from pathlib import Path; from bench.kits import make_shards; "
    "make_shards(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
)
COMPRESSIONS = ("gzip", "gzip-fastest", "zstd")
KIT_COMPRESSIONS = ("none", "gzip", "gzip-fastest")


def measure(arguments: argparse.Namespace) -> Report:
    """Make weights of ``--size-mib`` (default 1024), then pack them ``--rounds`` times (default 3)."""
    report = Report("pack")
    size = (arguments.size_mib or 1024) * MIB
    report.note(f"{size // MIB} MiB of made bf16 weights in {SHARDS} shards, each a layer")
    kit = find_kit(report)
    with make_world() as world:
        folder = world.folder / "weights"
        # In a process of its own: what a process held is counted to the commands that it runs.
        subprocess.run([sys.executable, "-c", MAKE, folder, str(SHARDS), str(size)], check=True)
        (folder / "Kitfile").write_text(_kitfile())
        for _ in range(arguments.rounds or 3):
            _measure_hash(report, folder)
            for compression in ("none", *COMPRESSIONS):
                _measure_pack(report, world, folder, compression)
            if kit is not None:
                _measure_kit(report, world, folder, kit)
    return report


def _kitfile() -> str:
    parts = "".join(f"    - path: model-{number}.safetensors\n" for number in range(1, SHARDS))
    return f"manifestVersion: 1.0.0\nmodel:\n  path: model-0.safetensors\n  parts:\n{parts}"


def _measure_hash(report: Report, folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    run(["cat", *map(str, shards)])
    report.add(REFERENCE, "s", run([REFERENCE, *map(str, shards)]).elapsed_s)


def _measure_pack(report: Report, world: World, folder: Path, compression: str) -> None:
    home = world.folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    world.kitfs("list")
    os.sync()
    command: list[str | Path] = [
        *KITFS,
        "--progress",
        "none",
        "pack",
        folder,
        "-t",
        "weights:1",
        "--compression",
        compression,
    ]
    references = (REFERENCE,) if compression == "none" else (f"kit pack, {compression}",)
    name = f"kitfs pack, {compression}"
    done = run(command, world.environment)
    report.add(name, "s", done.elapsed_s, reference=references)
    report.add(f"  {name}: CPU", "s", done.cpu.total_s)
    report.add(f"  {name}: largest RSS", "MiB", done.rss_mib)
    report.add(f"  {name}: published size", "MiB", _published_size(home) / MIB)
    report.add(f"  {name}: again, nothing to write", "s", run(command, world.environment).elapsed_s, reference=name)


def _measure_kit(report: Report, world: World, folder: Path, kit: str) -> None:
    for compression in KIT_COMPRESSIONS:
        home = world.folder / "kitops"
        shutil.rmtree(home, ignore_errors=True)
        os.sync()
        command: list[str | Path] = [
            kit,
            "pack",
            folder,
            "-t",
            "weights:1",
            "--compression",
            compression,
            "--progress",
            "none",
        ]
        done = run(command, world.environment)
        name = f"kit pack, {compression}"
        report.add(name, "s", done.elapsed_s)
        report.add(f"  {name}: CPU", "s", done.cpu.total_s)
        report.add(f"  {name}: largest RSS", "MiB", done.rss_mib)
        report.add(f"  {name}: published size", "MiB", _published_size(home / "storage") / MIB)
        shutil.rmtree(home)


def _published_size(folder: Path) -> int:
    """Bytes of blobs, and of the members that split ones consist of."""
    kinds = ("blobs", "members")
    return sum(path.stat().st_size for kind in kinds for path in (folder / kind).rglob("*") if path.is_file())
