"""Garbage collection at full speed beside everything else takes nothing that is needed.

``KITFS_GC_CAMPAIGN_S`` says for how many seconds; the session ``gc`` of ``noxfile.py`` sets 120.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kitfs.oci.manifest import find_index_digest, parse_manifest
from kitfs.store.store import Store

DURATION_S = float(os.environ.get("KITFS_GC_CAMPAIGN_S") or (120 if os.environ.get("KITFS_CAMPAIGN") else 8))

NAMES = 4
"""Tags that packing moves, removing takes away, and unpacking and mounting look for."""

COLLECT = """
import select, sys, time
from pathlib import Path
from kitfs.store.gc import gc
from kitfs.store.store import Store
rounds = taken = 0
due = time.monotonic()
with Store.open(Path(sys.argv[1])) as store:
    while not select.select([sys.stdin], [], [], max(0, due - time.monotonic()))[0]:
        due = max(due + 0.1, time.monotonic())
        taken += len(gc(store, dry_run=False, grace_s=0).victims)
        rounds += 1
print(rounds, taken)
"""


class Load:
    """Loops in threads until time is up and each has done its work once; the first failure of any is kept.

    Attributes:
        counts: How often each step did what, as "mount: read" or "mount: absent".
    """

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.names: set[str] = set()
        self.failures: list[BaseException] = []
        self.counts: Counter[str] = Counter()

    @property
    def idle(self) -> set[str]:
        """Steps that have found nothing to do yet."""
        return self.names - {done.partition(":")[0] for done in self.counts.copy() if not done.endswith("absent")}

    @property
    def over(self) -> bool:
        """Whether to stop: a slow machine gets a minute more."""
        passed_s = time.monotonic() - self.start
        return bool(self.failures) or passed_s > DURATION_S + 60 or (passed_s > DURATION_S and not self.idle)

    def run(self, steps: dict[str, Callable[[int], str]]) -> None:
        """Run all steps at once, each again and again."""
        self.names = set(steps)
        threads = [threading.Thread(target=self._loop, args=item, name=item[0]) for item in steps.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _loop(self, name: str, step: Callable[[int], str]) -> None:
        number = 0
        try:
            while not self.over:
                self.counts[f"{name}: {step(number)}"] += 1
                number += 1
        except BaseException as error:  # noqa: BLE001 - reported by the test
            self.failures.append(error)


def tree_of(generation: int) -> dict[str, bytes]:
    """The files of a small ModelKit; two of them are shared between generations."""
    own, every_third = random.Random(generation), random.Random(-1 - generation % 3)
    return {
        "generation": str(generation).encode(),
        "model/own.bin": own.randbytes(150_000 + generation % 7),
        "model/third.bin": every_third.randbytes(200_000),
        "data/same.bin": bytes(range(256)) * 500,
    }


def write_tree(folder: Path, generation: int) -> Path:
    """A directory to pack."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in tree_of(generation).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "Kitfile").write_text(
        "manifestVersion: 1.0.0\nmodel:\n  path: model\ndatasets:\n  - path: data\ncode:\n  - path: .\n"
    )
    return folder


def check_generation(folder: Path) -> None:
    """Every byte below a mount or an unpacked directory is that of the generation it says it is."""
    generation = int((folder / "generation").read_bytes())
    for name, data in tree_of(generation).items():
        assert (folder / name).read_bytes() == data, (generation, name)


@pytest.fixture
def recorded(shared_fixtures) -> dict[str, str]:
    """Path to SHA-256 for every file of myllm:3.1.4."""
    entries = json.loads((shared_fixtures / "kit-v1.7.0/expected/myllm_3.1.4.json").read_text())
    return {entry["path"]: entry["sha256"] for entry in entries if entry["type"] == "file"}


def check_tree(directory: int, recorded: dict[str, str]) -> None:
    """Read every file below an open directory and compare."""
    for path, digest in recorded.items():
        descriptor = os.open(path, os.O_RDONLY, dir_fd=directory)
        with open(descriptor, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest, path


class Campaign:
    """What goes on beside the collector; each step is a command or two of its own, and reads what it got."""

    def __init__(self, kitfs, fixtures: Path, recorded: dict[str, str]) -> None:
        self._kitfs = kitfs
        self._fixtures = fixtures
        self._recorded = recorded
        self._folder = kitfs.folder
        kitfs.run("import", fixtures / "kit-v1.7.0", "--copy")
        self._everything = kitfs.mount("--all", at="all")
        kitfs.run("pack", write_tree(self._folder / "held-source", 500), "-t", "held:1")
        self._held = kitfs.mount("held:1", at="held")
        kitfs.run("remove", "-f", "held:1")

    def steps(self) -> dict[str, Callable[[int], str]]:
        """The loops that run at once."""
        return {
            "pack": self.pack,
            "pack again": self.pack_again,
            "import": self.import_and_remove,
            "unpack": self.unpack,
            "tag": self.tag,
            "remove": self.remove,
            "mount": self.mount,
            "browse": self.browse,
            "read held": self.read_held,
        }

    def pack(self, number: int) -> str:
        """Another tree under a moving tag, by turns in each compression."""
        folder = write_tree(self._folder / "pack", number)
        form = ("none", "gzip", "zstd", "gzip-fastest")[(number + number // NAMES) % 4]
        self._kitfs.run("pack", folder, "-t", f"mine:{number % NAMES}", "--compression", form)
        return "packed"

    def pack_again(self, number: int) -> str:
        """What was there before and may be going right now is there afterwards."""
        folder = write_tree(self._folder / "again", 900 + number % 2)
        self._kitfs.run("pack", folder, "-t", "again:x")
        target = self._folder / "again-out"
        self._kitfs.run("unpack", "again:x", "-d", target)
        check_generation(target)
        shutil.rmtree(target)
        self._kitfs.run("remove", "-f", "again:x")
        return "packed, unpacked, removed"

    def import_and_remove(self, number: int) -> str:
        """A layout under a name that goes at once."""
        self._kitfs.run("import", self._fixtures / "modctl/layout", "--copy", "--as", f"mp{number % 3}")
        self._kitfs.run("remove", "-f", f"mp{number % 3}:raw,tar")
        return "imported, removed"

    def unpack(self, number: int) -> str:
        """A moving tag is unpacked whole, or is not there."""
        target = self._folder / "out"
        if not self._found("unpack", f"mine:{number % NAMES}", "-d", target):
            return "absent"
        check_generation(target)
        shutil.rmtree(target)
        return "unpacked"

    def tag(self, number: int) -> str:
        """Names come and go over what others pack and remove."""
        found = self._found("tag", f"mine:{number % NAMES}", f"kept:{number % 2}")
        self._kitfs.run("tag", "myllm:3.1.4-gzip" if number % 2 else "myllm:3.1.4", "moving:x")
        if number % 5 == 4:
            self._kitfs.run("remove", "-f", "moving:x")
        return "tagged" if found else "absent"

    def remove(self, number: int) -> str:
        """A moving tag goes; what it named may be kept by another name, and comes back under its own."""
        name = f"mine:{number % NAMES}"
        if not self._found("remove", name):
            self._found("tag", f"kept:{number % 2}", name)
            return "absent"
        return "removed"

    def mount(self, number: int) -> str:
        """A fresh mount is read whole and unmounted."""
        name = ("myllm:3.1.4", f"mine:{number % NAMES}", "myllm:3.1.4-gzip", f"kept:{number % 2}")[number % 4]
        directory = self._folder / f"mount-{number}"
        directory.mkdir()
        if not self._found("mount", name, directory):
            return "absent"
        if name.startswith("myllm"):
            descriptor = os.open(directory, os.O_RDONLY)
            check_tree(descriptor, self._recorded)
            os.close(descriptor)
        else:
            check_generation(directory)
        self._kitfs.run("umount", directory)
        return "read"

    def browse(self, number: int) -> str:
        """A tree of the mount of everything stays whole while it is open."""
        try:
            descriptor = os.open(self._everything / ("moving/x" if number % 2 else "myllm/latest"), os.O_RDONLY)
        except FileNotFoundError:
            return "absent"
        check_tree(descriptor, self._recorded)
        os.close(descriptor)
        return "read"

    def read_held(self, number: int) -> str:
        """A mount whose tag is gone keeps its bytes."""
        check_generation(self._held)
        return "read"

    def _found(self, *arguments: object) -> bool:
        """Run a verb on a name that may be gone; any other failure fails."""
        done = self._kitfs.run(*arguments, status=None)
        assert done.returncode in (0, 3), f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.returncode == 0

    def unmount(self) -> None:
        """End the mounts that were there all the time."""
        self._kitfs.run("umount", self._held)
        self._kitfs.run("umount", self._everything)


def reachable(store: Store) -> set[str]:
    """Every blob that a tag leads to."""
    found = set()
    for _, _, record in store.iter_tags():
        manifest = parse_manifest(store.read_blob(record.manifest))
        indexes = [index for layer in manifest.layers if (index := find_index_digest(layer))]
        found |= {record.manifest, manifest.config.digest, *(layer.digest for layer in manifest.layers), *indexes}
    return {digest.hex for digest in found}


def files_below(folder: Path) -> set[str]:
    """Names of all files of one kind."""
    return {path.name for path in folder.rglob("*") if path.is_file()}


def check_nothing_is_left(kitfs) -> None:
    """After one more collection the store holds what tags lead to, and without tags nothing."""
    kitfs.run("fsck", "--read-data")
    kitfs.run("gc")
    assert json.loads(kitfs.run("gc", "--dry-run", "--format", "json").stdout)["removed"] == []
    with Store.open(kitfs.home) as store:
        kept = files_below(kitfs.home / "blobs") | files_below(kitfs.home / "recipes")
        assert kept == {digest.hex for digest, _ in store.iter_blobs()} == reachable(store)
        names = [f"{repository}:{tag}" for repository, tag, _ in store.iter_tags()]
    for name in names:
        kitfs.run("remove", name)
    kitfs.run("gc")
    left = {
        kind: files_below(kitfs.home / kind) for kind in ("blobs", "recipes", "members", "partial", "ingest", "leases")
    }
    assert not any(left.values()), left


def test_collecting_all_the_time_takes_nothing_that_is_used(kitfs, shared_fixtures, recorded):
    """Pack, import, unpack, tag, remove, mount, browsing and reading go on; no byte and no name is missing."""
    campaign = Campaign(kitfs, shared_fixtures, recorded)
    collector = subprocess.Popen(
        [sys.executable, "-c", COLLECT, kitfs.home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    load = Load()
    load.run(campaign.steps())
    output, _ = collector.communicate(input="stop\n", timeout=60)
    assert load.failures == []
    assert collector.returncode == 0
    rounds, taken = map(int, output.split())
    print(f"{rounds} collections took {taken} things beside {dict(load.counts)}")
    assert rounds > DURATION_S and taken > 0, output
    assert load.idle == set()
    campaign.unmount()
    check_nothing_is_left(kitfs)


def test_moved_parent_tags_change_nothing_in_a_live_mount(kitfs, shared_fixtures):
    """A mount keeps the parent that it was made with, also after its worker was killed and replaced."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    directory = kitfs.mount("registry.example.com:8080/acme/team_a/tuned:1")
    inode = os.stat(directory / "model/vocab.txt").st_ino
    held = os.open(directory / "model/vocab.txt", os.O_RDONLY)
    kitfs.run("tag", "whole:dot", "myllm:3.1.4")
    kitfs.run("remove", "-f", "myllm:latest,3.1.4-gzip,3.1.4-fast")
    kitfs.run("gc")
    os.kill(kitfs.mounts()[0]["pid"], 9)
    assert len(os.pread(held, 300_000, 0)) == 231_508
    os.close(held)
    assert os.stat(directory / "model/vocab.txt").st_ino == inode
    names = sorted(Path(directory / "model").iterdir())
    assert directory / "model/1_Pooling" in names
    assert len((directory / "model/model-00002-of-00002.safetensors").read_bytes()) == 1_774_760
