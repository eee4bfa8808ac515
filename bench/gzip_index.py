"""P2 of case `gzip`: import with index against ratarmount's index.

Each command is timed whole. Before it the same program has run once on a tiny archive, so that its own files are in
the page cache and the data's are not; how long that took is reported too.
"""

from __future__ import annotations

from bench.gzip_kit import GzipKit, prepare_cold
from bench.kits import make_shards, write_gzip_layout
from bench.peer import Ratarmount
from bench.processes import allocated_size, children_cpu
from bench.report import Report
from bench.world import World

IMPORT = "P2 kitfs import with index, blob linked"


class TinyKits:
    """What is imported and indexed to time the start of a program: three kits of 4 KiB."""

    def __init__(self, world: World) -> None:
        self.layouts = [world.folder / f"layout-{number}" for number in range(3)]
        self.archives = []
        for number, layout in enumerate(self.layouts):
            folder = world.folder / f"tiny-{number}"
            make_shards(folder, 1, 4096 + 64 * number)
            self.archives.append(write_gzip_layout(layout, folder, f"localhost/tiny:{number}"))

    def start_kitfs(self, report: Report, kit: GzipKit) -> None:
        """Make a store by importing one, drop the caches, import two more, the second with the program in memory."""
        kit.remove_store()
        report.add("P2 kitfs import, tiny, into a new store", "s", kit.import_layout(self.layouts[0])[0])
        prepare_cold()
        kit.import_layout(self.layouts[1])
        report.add("P2 kitfs import, tiny", "s", kit.import_layout(self.layouts[2])[0])

    def start_peer(self, report: Report, peer: Ratarmount) -> None:
        """Drop the caches, then index two, the second with the program in memory."""
        prepare_cold()
        peer.make_index(self.archives[0])
        report.add(f"P2 {peer.name} index, tiny", "s", peer.make_index(self.archives[1]))


def measure_import(report: Report, kit: GzipKit, tiny: TinyKits) -> None:
    """One round; leaves a store with the kit, and an index of each ratarmount."""
    names = [f"P2 {peer.name} index" for peer in kit.peers]
    tiny.start_kitfs(report, kit)
    elapsed_s, used = kit.import_layout(kit.layout)
    kit.check_fresh()
    report.add(IMPORT, "s", elapsed_s, reference=tuple(names))
    report.add(f"{IMPORT}: CPU", "s", used.total_s, reference=tuple(f"{name}: CPU" for name in names))
    report.add(f"{IMPORT}: speed", "MB/s", kit.size / elapsed_s / 1e6)
    for peer, name in zip(kit.peers, names, strict=True):
        tiny.start_peer(report, peer)
        before = children_cpu()
        report.add(name, "s", peer.make_index())
        report.add(f"{name}: CPU", "s", (children_cpu() - before).total_s)
    per_gb = [f"index per GB of weights, {peer.name}" for peer in kit.peers]
    index = allocated_size(kit.home / "index" / "data.mdb")
    report.add("index per GB of weights, kitfs", "MB", index / kit.size * 1e3, reference=tuple(per_gb))
    for peer, name in zip(kit.peers, per_gb, strict=True):
        report.add(name, "MB", allocated_size(peer.index) / kit.size * 1e3)
