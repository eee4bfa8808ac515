"""Kill or fail a command at its n-th system call, by strace, and look at what it leaves.

For a command of your own: ``counts = strace.count(command)`` runs it once and counts its calls; ``points(counts)``
chooses (name, number) pairs, all of them when ``KITFS_CAMPAIGN`` is set; ``strace.run(command, name, number, fault)``
runs it with the fault; ``assert_holds(home)`` checks the invariants I1 to I7 as far as every store must meet them.
strace counts per thread, so a command should do its work in its main thread.
"""

import collections
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.store import Store

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
POINTS_PER_CALL = 2
"""How many places of each call the default run tries; a campaign tries all."""

WRITING_CALLS = (
    "fsync", "fdatasync", "write", "pwrite64", "pwritev", "writev", "rename", "renameat2", "link", "linkat", "unlink",
    "ftruncate", "fchmod",
)  # fmt: skip
"""Calls that change what is on disk. unlink is killed at, not failed: a file that stays is GC's."""

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Strace:
    """Runs commands under strace with one fault."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._runs = 0

    def log(self, command, *options, calls=WRITING_CALLS):
        """Run a command without a fault; its calls, one a line, with the paths of descriptors."""
        log = self._log()
        outcome = self._run(["strace", "-f", "-y", *options, "-o", str(log), "-e", "trace=" + ",".join(calls)], command)
        assert outcome.returncode == 0, outcome
        return log.read_text().splitlines()

    def count(self, command, calls=WRITING_CALLS):
        """How often a command makes each of the calls."""
        names = [match.group(1) for line in self.log(command, calls=calls) if (match := _CALL.match(line))]
        return collections.Counter(names)

    def run(self, command, name, number, fault):
        """Run a command whose ``number``-th call ``name`` meets a fault: ``signal=KILL``, ``error=EIO``."""
        options = ["-f", "-o", str(self._log()), "-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={number}"]
        return self._run(["strace", *options], command)

    def plain(self, command):
        """Run a command without a fault and without strace; it has to succeed."""
        outcome = self._run([], command)
        assert outcome.returncode == 0, outcome

    def _log(self):
        self._runs += 1
        return self._folder / f"strace-{self._runs}.log"

    def _run(self, strace, command):
        project = str(Path(__file__).parent.parent.parent)
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": project}
        done = subprocess.run(
            [*strace, *map(str, command)], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def strace(tmp_path):
    """strace, where it is installed and may trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("strace may not trace here")
    return Strace(tmp_path)


def _points(counts, calls=WRITING_CALLS):
    chosen = []
    for name in calls:
        total = counts.get(name, 0)
        number = total if CAMPAIGN else min(total, POINTS_PER_CALL)
        chosen += [(name, 1 + step * total // number) for step in range(number)]
    return chosen


@pytest.fixture
def points():
    """Chooses the calls to try: ``points(counts, calls)`` gives (name, number) pairs."""
    return _points


def _assert_holds(home):
    with Store.open(home) as store:
        found = check(store, read_data=True)
        assert not found.problems, found.problems
        gc(store)
        after = check(store, read_data=True)
        assert not after.findings, after.findings
        for folder in (store.layout.ingest, store.layout.leases):
            assert list(folder.iterdir()) == []
        return {(repository, tag): record.manifest for repository, tag, record in store.iter_tags()}


@pytest.fixture
def assert_holds():
    """Checks a store after a fault: nothing to repair, and nothing left over after one GC; returns its tags."""
    return _assert_holds


@pytest.fixture
def python():
    """The command that runs a script with this interpreter."""
    return [sys.executable, "-B"]
