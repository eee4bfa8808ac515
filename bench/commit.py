"""Case `commit`: a change in a ModelKit of made weights becomes a new ModelKit, against hashing and against kit.

P8. One layer has nearly all bytes, three are small. What is changed through writable mounts is changed likewise in a
folder, which kit packs whole: it has no other way to a new version. Everything is in the page cache when it is read;
what kitfs reports as committed is on the disk. `docs/benchmarks.md` says what each line means.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.kit_command import find_kit, run
from bench.kits import MIB
from bench.pack import MAKE, REFERENCE
from bench.processes import allocated_size, files_below
from bench.report import Report
from bench.world import KITFS, World, make_world

SHARDS = 4
SMALL = ("small", "src/train.py", 10_000)
"""Name, the file, and how many of its bytes are changed."""

LARGE = ("large", "weights/model-1.safetensors", 64 * MIB)
GOAL_S = 0.150
KITFILE = """\
manifestVersion: 1.0.0
package:
  name: large
model:
  path: weights
datasets:
  - path: data
code:
  - path: src
docs:
  - path: docs
"""

Change = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class _Kit:
    """The ModelKit that is changed.

    Attributes:
        report: What is measured.
        world: Where `kitfs` and kit run.
        source: The folder that it was packed from, and that kit packs.
        kit: The command, or None.
    """

    report: Report
    world: World
    source: Path
    kit: str | None

    def prepare(self) -> None:
        """Pack it by both, and mount it once for each change."""
        self.world.pack(self.source, "large:1")
        if self.kit is not None:
            run([self.kit, "pack", self.source, "-t", "large:1", "--progress", "none"], self.world.environment)
        for name, _, _ in (SMALL, LARGE):
            (self.world.folder / name).mkdir()
            staging = self.world.folder / f"staging-{name}"
            self.world.kitfs("mount", "large:1", self.world.folder / name, "--writable", "--staging", staging)
            self.world.kitfs("commit", self.world.folder / name, f"large:{name}", "--dry-run")  # code is compiled

    def measure(self, change: Change, number: int) -> None:
        """Make one change, commit it, and let kit pack the same."""
        name, path, size = change
        for folder in (self.world.folder / name, self.source):
            _write(folder / path, size, number)
        os.sync()
        for shard in sorted((self.source / "weights").iterdir()):
            run(["cat", str(shard)])
        if change == LARGE:
            self._measure_hash()
        tag, by_kit = f"large:{name}-{number}", f"kit pack, {name} change"
        references = (by_kit,) if change == SMALL else (REFERENCE, by_kit)
        command: list[str | Path] = [*KITFS, "--progress", "none", "commit", self.world.folder / name, tag]
        self._measure(f"kitfs commit, {name} change", command, "home", references)
        if self.kit is not None:
            command = [self.kit, "pack", self.source, "-t", tag, "--progress", "none"]
            self._measure(by_kit, command, "kitops", ())

    def _measure(self, name: str, command: list[str | Path], store: str, references: tuple[str, ...]) -> None:
        before = _size_of(self.world.folder / store)
        done = run(command, self.world.environment)
        self.report.add(name, "s", done.elapsed_s, reference=references)
        self.report.add(f"  {name}: CPU", "s", done.cpu.total_s)
        self.report.add(f"  {name}: largest RSS", "MiB", done.rss_mib)
        self.report.add(f"  {name}: growth on disk", "MiB", (_size_of(self.world.folder / store) - before) / MIB)

    def _measure_hash(self) -> None:
        done = run([REFERENCE, *map(str, sorted((self.source / "weights").iterdir()))])
        self.report.add(REFERENCE, "s", done.elapsed_s)
        self.report.add(f"  {REFERENCE}: CPU", "s", done.cpu.total_s)

    def drop(self, number: int) -> None:
        """Give back the room that the children of a round take."""
        for name, _, _ in (SMALL, LARGE):
            self.world.kitfs("remove", f"large:{name}-{number}")
            if self.kit is not None:
                run([self.kit, "remove", f"large:{name}-{number}"], self.world.environment)
        self.world.kitfs("gc")

    def check(self, number: int) -> None:
        """Compare the last children's trees with the folder, the store with itself.

        Raises:
            subprocess.CalledProcessError: when something differs.
        """
        shutil.rmtree(self.world.folder / "kitops", ignore_errors=True)
        for name, path, _ in (SMALL, LARGE):
            target = self.world.folder / "unpacked"
            self.world.kitfs("--progress", "none", "unpack", f"large:{name}-{number}", "-d", target)
            part = path.partition("/")[0]
            subprocess.run(["diff", "-r", self.source / part, target / part], check=True)
            shutil.rmtree(target)
        self.world.kitfs("fsck", "--read-data")


def measure(arguments: argparse.Namespace) -> Report:
    """Make weights of ``--size-mib`` (default 4096), then commit two changes ``--rounds`` times (default 3)."""
    report = Report("commit")
    size, rounds = (arguments.size_mib or 4096) * MIB, arguments.rounds or 3
    report.note(f"{size // MIB} MiB of made bf16 weights in {SHARDS} shards, one layer of four")
    report.note(
        f"the small change is {SMALL[2]} bytes, in {GOAL_S * 1e3:.0f} ms at most; the large one {LARGE[2] // MIB} MiB"
    )
    with make_world() as world:
        kit = _Kit(report, world, world.folder / "source", find_kit(report))
        _make(kit.source, size)
        kit.prepare()
        for number in range(rounds):
            if number:
                kit.drop(number - 1)
            report.add("kitfs version", "s", run([*KITFS, "version"], world.environment).elapsed_s)
            for change in (LARGE, SMALL):  # so that kit has the layer of the large one when it packs the small one
                kit.measure(change, number)
        kit.check(rounds - 1)
    return report


def _make(folder: Path, size: int) -> None:
    # In a process of its own: what a process held is counted to the commands that it runs.
    subprocess.run([sys.executable, "-c", MAKE, folder / "weights", str(SHARDS), str(size)], check=True)
    (folder / "Kitfile").write_text(KITFILE)
    for path in ("data/reviews.jsonl", SMALL[1], "docs/README.md"):
        (folder / path).parent.mkdir()
        (folder / path).write_bytes(bytes(4 * SMALL[2]))


def _write(path: Path, size: int, seed: int) -> None:
    """Overwrite bytes in the middle of a file."""
    source = random.Random(seed)
    with path.open("r+b") as file:
        file.seek(max(path.stat().st_size - size, 0) // 2)
        for at in range(0, size, MIB):
            file.write(source.randbytes(min(MIB, size - at)))


def _size_of(folder: Path) -> int:
    return sum(map(allocated_size, files_below(folder)))
