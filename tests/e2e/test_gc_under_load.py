"""Garbage collection at full speed beside everything else takes nothing that is needed."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

DURATION_S = 60 if os.environ.get("KITFS_CAMPAIGN") else 12

COLLECT = """
import select, sys
from pathlib import Path
from kitfs.store.gc import gc
from kitfs.store.store import Store
rounds = taken = 0
with Store.open(Path(sys.argv[1])) as store:
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        taken += len(gc(store, dry_run=False, grace_s=0).victims)
        rounds += 1
print(rounds, taken)
"""


class Load:
    """Loops in threads until time is up; the first failure of any is kept."""

    def __init__(self) -> None:
        self.end = time.monotonic() + DURATION_S
        self.failures: list[BaseException] = []
        self.counts: dict[str, int] = {}

    def loop(self, name: str, step) -> threading.Thread:
        def run() -> None:
            number = 0
            try:
                while time.monotonic() < self.end and not self.failures:
                    step(number)
                    number += 1
            except BaseException as error:  # noqa: BLE001 - reported by the test
                self.failures.append(error)
            self.counts[name] = number

        thread = threading.Thread(target=run)
        thread.start()
        return thread


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


def test_collecting_all_the_time_takes_nothing_that_is_used(kitfs, shared_fixtures, recorded):
    """Import, tag, remove, mount, browsing and reading go on; no byte and no name is missing."""
    source = shared_fixtures / "kit-v1.7.0"
    kitfs.run("import", source, "--copy")
    everything = kitfs.mount("--all", at="all")
    load = Load()

    def import_and_remove(number: int) -> None:
        kitfs.run("import", shared_fixtures / "modctl/layout", "--copy", "--as", f"mp{number % 3}")
        kitfs.run("remove", "-f", f"mp{number % 3}:raw,tar")

    def tag_and_remove(number: int) -> None:
        kitfs.run("tag", "myllm:3.1.4-gzip" if number % 2 else "myllm:3.1.4", "moving:x")
        if number % 5 == 4:
            kitfs.run("remove", "-f", "moving:x")

    def mount_and_read(number: int) -> None:
        name = ("myllm:3.1.4", "myllm:3.1.4-gzip", "myllm:3.1.4-fast")[number % 3]
        directory = kitfs.mount(name, at=f"mount-{number}")
        descriptor = os.open(directory, os.O_RDONLY)
        check_tree(descriptor, recorded)
        os.close(descriptor)
        kitfs.run("umount", directory)

    def browse(number: int) -> None:
        try:
            descriptor = os.open(everything / ("moving/x" if number % 2 else "myllm/latest"), os.O_RDONLY)
        except FileNotFoundError:
            return
        check_tree(descriptor, recorded)
        os.close(descriptor)

    collector = subprocess.Popen(
        [sys.executable, "-c", COLLECT, kitfs.home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    steps = {"import": import_and_remove, "tag": tag_and_remove, "mount": mount_and_read, "browse": browse}
    threads = [load.loop(name, step) for name, step in steps.items()]
    for thread in threads:
        thread.join()
    output, _ = collector.communicate(input="stop\n", timeout=60)
    assert load.failures == []
    assert collector.returncode == 0
    rounds, taken = map(int, output.split())
    assert rounds > DURATION_S and taken > 0, output
    assert all(load.counts.values()), load.counts
    print(f"{rounds} collections took {taken} things beside {load.counts}")


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
