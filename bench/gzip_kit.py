"""The kit of case `gzip`, and what its parts do with it: import it anew, mount it, read its state.

The layer is a file of an OCI layout that `kitfs import` hard-links, which is checked: nothing is copied.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.kits import MIB, make_shards, write_gzip_layout
from bench.peer import Ratarmount, find_ratarmount, versions
from bench.processes import Cpu, children_cpu, files_below
from bench.read import drop_caches
from bench.report import Report
from bench.world import World

REFERENCE = "localhost/weights:1"
SHARDS = 4
FOLDER = "model"


@dataclass
class GzipKit:
    """What is measured, and where.

    Attributes:
        world: Where `kitfs` runs.
        layout: The OCI layout.
        blob: The layer in it.
        size: Bytes of the shards, decoded.
        source: The shards as they were packed.
        peers: ratarmount, in each way; empty where it is missing.
    """

    world: World
    layout: Path
    blob: Path
    size: int
    source: Path
    peers: list[Ratarmount] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The store."""
        return self.world.folder / "home"

    def shards(self, folder: Path) -> list[Path]:
        """The safetensors files below what was mounted or unpacked."""
        return [folder / FOLDER / f"model-{number}.safetensors" for number in range(SHARDS)]

    def remove_store(self) -> None:
        """End all that uses the store, and the store."""
        self.world.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def import_layout(self, layout: Path) -> tuple[float, Cpu]:
        """Import what a layout holds; returns wall and CPU seconds of the whole command."""
        before, start_s = children_cpu(), time.perf_counter()
        self.world.kitfs("--progress", "none", "import", layout)
        elapsed_s = time.perf_counter() - start_s
        return elapsed_s, children_cpu() - before

    def import_anew(self) -> tuple[float, Cpu]:
        """A new store with this kit only; as `import_layout`."""
        self.remove_store()
        spent = self.import_layout(self.layout)
        self.check_fresh()
        return spent

    def check_fresh(self) -> None:
        """The layer is the layout's own file, linked, and nothing of it has been decoded into files."""
        placed = self.home / "blobs" / "sha256" / self.blob.name[:2] / self.blob.name
        assert os.path.samefile(placed, self.blob), "the layer was copied, not linked"
        assert not self.materialised()

    def materialised(self) -> list[Path]:
        """Files with decoded bytes in the store, whole and partial ones."""
        return [*files_below(self.home / "members"), *files_below(self.home / "partial")]

    def mount(self) -> Path:
        """Mount the kit."""
        return self.world.mount(REFERENCE)

    def umount(self) -> None:
        """Unmount it."""
        self.world.kitfs("umount", self.world.folder / "mnt")

    def state(self) -> dict[str, object]:
        """What `kitfs ps` says of the mount."""
        return self.world.mounts()[0]


def prepare_cold() -> None:
    """Drop the page cache, where this is allowed."""
    if os.geteuid() == 0:
        drop_caches()


def make_gzip_kit(world: World, report: Report, size: int, encoder: str) -> GzipKit:
    """Make shards and layout, find ratarmount, and say in the report what there is."""
    make_shards(world.folder / FOLDER, SHARDS, size)
    blob = write_gzip_layout(world.folder / "layout", world.folder / FOLDER, REFERENCE, encoder)
    report.note(f"{size // MIB} MiB of made bf16 weights in {SHARDS} shards, one tar+gzip layer by {encoder}")
    report.add("published size over decoded", "", blob.stat().st_size / size)
    archive = world.folder / "layer.tar.gz"  # a hard link would move the times of the blob that kitfs links
    archive.symlink_to(blob)
    peers = find_ratarmount(archive, world.folder)
    report.note(versions() if peers else "SKIPPED: ratarmount is not installed (pip install '.[bench]')")
    if os.geteuid() != 0:
        report.note("SKIPPED: dropping caches, which needs root; what is called cold was in the page cache")
    return GzipKit(world, world.folder / "layout", blob, size, world.folder / FOLDER, peers)
