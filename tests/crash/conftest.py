"""Kill or fail a command at its n-th system call, by strace, and look at what it leaves.

For a command of your own: ``counts = strace.count(command)`` runs it once and counts its calls; ``points(counts)``
chooses (name, number) pairs, all of them when ``KITFS_CAMPAIGN`` is set; ``strace.run(command, name, number, fault)``
runs it with the fault; ``assert_holds(home)`` checks the invariants I1 to I7 as far as every store must meet them.
strace counts per thread, so a command should do its work in its main thread.

For many rounds on one store: ``victims()`` is a process that runs commands in children, quickly; ``kill_at_random``
kills them at any moment and lets a campaign judge what is left, ``find_leftovers(store)`` finds files of nobody's.
"""

import collections
import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.store import schema
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.records import MemberRecord
from kitfs.store.store import Store

FAULT_AT = 500
CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
POINTS_PER_CALL = 1
"""How many places of each call the default run tries, in its middle; a campaign tries all."""

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
        chosen += [(name, 1 + (2 * step + 1) * total // (2 * number)) for step in range(number)]
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


class Victims:
    """The process that runs commands, and how to hand it one."""

    def __init__(self, folder: Path, strace: list[str], preloaded: tuple[str, ...]) -> None:
        script = Path(__file__).with_name("victim.py")
        self.log = folder / "victim.log"
        self._process = subprocess.Popen(
            [*strace, sys.executable, script, *preloaded], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: list[str], call: str | None = None, number: int = 0) -> int:
        """Begin a command that meets the fault at its n-th call of a kind; its pid."""
        request = {"arguments": arguments, "call": call, "number": number, "log": str(self.log)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the command, negative for a signal."""
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


@pytest.fixture
def victims(tmp_path):
    """Makes the process that runs commands, with a fault at the 500th call of each kind; ``preloaded`` are modules."""
    started = []

    def start(calls=(), fault="", preloaded=()):
        strace = ["strace", "-f", "-o", "/dev/null", f"--trace={','.join(calls)}"]
        strace += [f"--inject={call}:{fault}:when={FAULT_AT}" for call in calls]
        if not fault.startswith("signal"):
            strace.append("--seccomp-bpf")  # faster, but strace 6.1 sends no signal under it
        started.append(Victims(tmp_path, strace if calls else [], preloaded))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def memory(tmp_path):
    """In memory where there is such a place: what SIGKILL leaves does not depend on the disk, and fsync is free."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def _find_leftovers(store):
    layout = store.layout
    recorded = {layout.blob_in_form(digest, record.form) for digest, record in store.iter_blobs()}
    with store.index.read() as txn:
        recorded |= {layout.member(Digest.from_raw(key)) for key, _ in txn.iter(schema.MEMBERS, MemberRecord)}
    folders = ("blobs", "recipes", "members", "partial", "ingest", "leases")
    files = {path for name in folders for path in (store.home / name).rglob("*") if path.is_file()}
    return sorted(files - recorded)


@pytest.fixture
def find_leftovers():
    """Files that no record of a store names, blobs in a form that theirs does not say among them."""
    return _find_leftovers


def _report(name, outcomes, started_s):
    counts = {" ".join(key) if isinstance(key, tuple) else key: count for key, count in outcomes.items() if count}
    print(f"\n{name}, {time.monotonic() - started_s:.0f} s: {dict(sorted(counts.items()))}")


@pytest.fixture
def report():
    """Prints what became of the rounds; ``pytest -s`` shows it."""
    return _report


def _kill_at_random(runner, campaign, kills):
    times = []
    for _ in range(5):
        start = time.monotonic()
        runner.start(campaign.arguments())
        assert runner.wait() == 0, runner.log.read_text()
        times.append(time.monotonic() - start)
        assert campaign.judge() == "new"
    outcomes, started_s = collections.Counter(), time.monotonic()
    generator = random.Random(20261124)
    while outcomes["killed"] < kills:
        pid = runner.start(campaign.arguments())
        watch = os.pidfd_open(pid)
        select.select([watch], [], [], generator.uniform(0, statistics.median(times)))
        with contextlib.suppress(ProcessLookupError):  # it was done before
            signal.pidfd_send_signal(watch, signal.SIGKILL)
        os.close(watch)
        code = runner.wait()
        state = campaign.judge()
        assert code == -signal.SIGKILL or (code, state) == (0, "new")
        outcomes["killed" if code else "done before"] += 1
        outcomes[f"killed and {state}"] += bool(code)
    _report("random kills", outcomes, started_s)


@pytest.fixture
def kill_at_random():
    """Kills commands at random moments: ``kill_at_random(runner, campaign, kills)``.

    ``campaign.arguments()`` are the command's; ``campaign.judge()`` looks at what a round left, puts everything back
    and says whether that was ``old`` or ``new``.
    """
    return _kill_at_random
