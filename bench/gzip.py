"""Case `gzip`: a kit whose weights are one tar+gzip layer, read without unpacking it (P1 to P4).

Made bf16 weights in safetensors shards. Every round measures all in turn: import with index against ratarmount's
index; mounting; cold first and random reads; loading every tensor through a cold mount, against unpacking with
``igzip -dc | tar x`` and loading from the disk, and against a mount by ratarmount; loading again. Once at the end: a
sampled load. `docs/benchmarks.md` says what each line means.
"""

from __future__ import annotations

import argparse

from bench.gzip_index import TinyKits, measure_import
from bench.gzip_kit import make_gzip_kit
from bench.gzip_load import measure_eager, measure_kitfs, measure_limit, measure_peer, sample_load, verify
from bench.gzip_mount import measure_mount, measure_reads
from bench.kits import MIB
from bench.report import Report
from bench.world import make_world


def measure(arguments: argparse.Namespace) -> Report:
    """Make the kit (``--size-mib``, default 1024), then measure ``--rounds`` times (default 3)."""
    report = Report("gzip")
    size = (arguments.size_mib or 1024) * MIB
    with make_world() as world, make_world() as tiny_world:
        kit = make_gzip_kit(world, report, size, arguments.encoder)
        tiny = TinyKits(tiny_world)
        for number in range(arguments.rounds or 3):
            measure_import(report, kit, tiny)
            measure_mount(report, kit)
            measure_reads(report, kit, number)
            measure_eager(report, kit)
            kit.import_anew()
            measure_kitfs(report, kit)
            for peer in kit.peers:
                measure_peer(report, kit, peer)
            for peer in kit.peers[-1:]:
                measure_peer(report, kit, peer, read_ahead_kib=1024)
            kit.import_anew()
            measure_limit(report, kit)
        sample_load(report, kit)
        verify(report, kit)
    return report
