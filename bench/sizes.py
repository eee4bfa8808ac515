"""Case `sizes`: the index of a gzip layer per GB of weights and of text, by what compressed it; and its import.

Sizes do not vary between rounds, so there is one by default. Nothing is cold here. `docs/benchmarks.md` says what each
line means.
"""

from __future__ import annotations

import argparse

from bench.gzip_kit import GzipKit
from bench.kits import ENCODERS, MIB, make_shards, make_text, write_gzip_layout
from bench.processes import allocated_size
from bench.report import Report
from bench.world import make_world


def measure(arguments: argparse.Namespace) -> Report:
    """Make weights and text of ``--size-mib`` (default 256), import them packed by each encoder."""
    report = Report("sizes")
    size = (arguments.size_mib or 256) * MIB
    for what in ("weights", "text"):
        report.note(f"{size // MIB} MiB of made {what}")
        with make_world() as world:
            folder = world.folder / what
            if what == "weights":
                make_shards(folder, 4, size)
            else:
                make_text(folder, size)
            for encoder in ENCODERS:
                layout = world.folder / encoder.replace(" ", "")
                blob = write_gzip_layout(layout, folder, f"localhost/{what}:1", encoder)
                kit = GzipKit(world, layout, blob, size, folder)
                _measure_kit(report, kit, f"{what} by {encoder}", arguments.rounds or 1)
    return report


def _measure_kit(report: Report, kit: GzipKit, name: str, rounds: int) -> None:
    index = kit.home / "index" / "data.mdb"
    report.add(f"{name}: published size over decoded", "", kit.blob.stat().st_size / kit.size)
    for _ in range(rounds):
        elapsed_s, used = kit.import_anew()
        report.add(f"{name}: index per GB", "MB", allocated_size(index) / kit.size * 1e3)
        report.add(f"{name}: import into a new store", "MB/s", kit.size / elapsed_s / 1e6)
        report.add(f"{name}: import, for each CPU-second", "MB/s", kit.size / used.total_s / 1e6)
