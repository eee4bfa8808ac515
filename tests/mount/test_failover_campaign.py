"""Workers, zygotes and daemons are killed at random under eight processes that open, map, read, close and verify.

Their members become files of their own meanwhile, and are evicted again. A short form runs always; with
``KITFS_CAMPAIGN=1`` (``nox -s failover``) 1000 workers, 100 daemons and 100 zygotes are killed, and the distribution of
the readers' stalls is printed.
"""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
KILLS = {"worker": 1000, "daemon": 100, "zygote": 100} if CAMPAIGN else {"worker": 12, "daemon": 4, "zygote": 4}
UPGRADES = 50 if CAMPAIGN else 3
PAIRS = 0.2
"""Share of the kills that end another process in the same moment."""

PAUSE_S = 0.05
"""Longest pause between a whole set of processes and the next kill."""

HEAL_S = 30.0
READERS = 8
VERIFIER = Path(__file__).with_name("verifier.py").read_text()
SIX_BITS = bytes(value & 0x3F for value in range(256))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Six files of 1 to 4 MB that gzip makes smaller."""
    folder, rng = tmp_path / "plain", random.Random(5)
    folder.mkdir()
    for number in range(6):
        size = (number % 4 + 1) * 1_000_000 + number
        (folder / f"file{number}").write_bytes(rng.randbytes(size).translate(SIX_BITS))
    return folder


@dataclass
class Killer:
    """Ends processes of a machine and waits until all are there again.

    Attributes:
        machine: Whose.
        left: How many of each kind are to be killed yet.
        kills: What was killed: when, and which kinds at once.
    """

    machine: object
    left: dict[str, int]
    mounts: int
    kills: list[tuple[float, str]] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(11))

    def find(self) -> dict[str, list[int]]:
        """Processes by kind; each kind by the name that ``ps`` shows."""
        found: dict[str, list[int]] = {"worker": [], "daemon": [], "zygote": []}
        for pid in self.machine.processes():
            with contextlib.suppress(OSError):
                kind = Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("kitfs-")
                if kind in found and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                    found[kind].append(pid)
        return found

    def wait_until_whole(self, before: dict[str, list[int]] | None = None) -> dict[str, list[int]]:
        """One daemon that answers and lists all mounts, one zygote, a worker for each mount; none as before."""
        deadline = time.monotonic() + HEAL_S
        while time.monotonic() < deadline:
            found = self.find()
            is_new = all(set(pids).isdisjoint((before or {}).get(kind, ())) for kind, pids in found.items())
            if is_new and [len(found[kind]) for kind in ("daemon", "zygote", "worker")] == [1, 1, self.mounts]:
                with contextlib.suppress(Exception):  # the daemon that is found may be just ending
                    states = self.machine.states()
                    if {state.pid for state in states if state.state != "starting"} == {*found["worker"]}:
                        return found
            select.select([], [], [], 0.002)
        pytest.fail(f"{self.kills[-3:]}: not whole after {HEAL_S} s: {found}\n{self.machine.describe()}")

    def kill_once(self) -> None:
        """Kill a process, or two of different kinds at once, and wait until all is whole again."""
        found = self.wait_until_whole()
        select.select([], [], [], self.rng.random() * PAUSE_S)
        kinds = [kind for kind, count in self.left.items() for _ in range(count)]
        chosen = {self.rng.choice(kinds)}
        if self.rng.random() < PAIRS:
            chosen.add(self.rng.choice(kinds))
        self.kills.append((time.monotonic(), "+".join(sorted(chosen))))
        for kind in chosen:
            self.left[kind] -= 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(found[kind]), signal.SIGKILL)


class Readers:
    """Processes that run the verifier."""

    def __init__(self, machine: object, places: list[Path], plain: Path) -> None:
        pipe = subprocess.PIPE
        command = [*machine.prefix, machine.interpreter, "-c", VERIFIER]
        self.running = [
            subprocess.Popen(
                [*command, str(places[number % len(places)]), str(plain), str(number)],
                stdin=pipe, stdout=pipe, stderr=pipe, text=True,
            )
            for number in range(READERS)
        ]  # fmt: skip
        for one in self.running:
            assert one.stdout.readline() == "begun\n", one.stderr.read()

    def end(self) -> list[dict[str, object]]:
        """What each saw; none may have died."""
        seen = []
        for one in self.running:
            said, wrong = one.communicate(timeout=60)
            assert one.returncode == 0, (one.returncode, wrong)
            seen.append(json.loads(said))
        return seen

    def close(self) -> None:
        """End those that have not ended."""
        for one in self.running:
            one.kill()
            one.wait()


def describe(seen: list[dict[str, object]], kills: list[tuple[float, str]]) -> str:
    """Stalls by what was killed, as percentiles of the longest of each kill."""
    stalls = [tuple(stall) for one in seen for stall in one["stalls"]]
    lines = [f"{sum(one['reads'] for one in seen)} looks, {len(kills)} kills; longest stall of a kill, in ms:"]
    ends = [when for when, _ in kills[1:]] + [float("inf")]
    longest: dict[str, list[float]] = {}
    for (when, kind), end in zip(kills, ends, strict=True):
        here = [took for began, took in stalls if began < end and began + took > when]
        longest.setdefault(kind, []).append(1000 * max(here, default=0.0))
    for kind, values in sorted(longest.items()):
        values.sort()
        quantiles = [values[min(len(values) - 1, int(share * len(values)))] for share in (0.5, 0.9, 0.99)]
        lines.append(f"  {kind:16} {len(values):5} median {quantiles[0]:6.1f} 90 % {quantiles[1]:6.1f} "
                     f"99 % {quantiles[2]:6.1f} worst {values[-1]:6.1f}")  # fmt: skip
    return "\n".join(lines)


@pytest.fixture
def places(machine, plain, import_gzip) -> list[Path]:
    """Where the files are mounted: from a gzip layer and from a plain tar; members may take half of what they need."""
    machine.environment["KITFS_CACHE_SIZE_MAX"] = "8M"
    import_gzip("packed", {path.name: path.read_bytes() for path in plain.iterdir()})
    kit = plain.with_name("kit")
    (kit / "model").mkdir(parents=True)
    for path in plain.iterdir():
        (kit / "model" / path.name).write_bytes(path.read_bytes())
    (kit / "Kitfile").write_text("manifestVersion: 1.0.0\npackage: {name: t}\nmodel: {name: m, path: model}\n")
    machine.run("pack", kit, "-t", "tar:1")
    return [machine.mount("gzip", "packed:1"), machine.mount("tar", "tar:1") / "model"]


def test_readers_do_not_notice_that_anything_is_killed(machine, places, plain):
    """Workers, daemons and zygotes die one or two at a time: no error, no wrong byte, and nothing is left behind."""
    readers = Readers(machine, places, plain)
    killer = Killer(machine, dict(KILLS), len(places))
    try:
        while any(killer.left.values()):
            killer.kill_once()
        killer.wait_until_whole()
        seen = readers.end()
    finally:
        readers.close()
    print("\n" + describe(seen, killer.kills))
    assert [one["wrong"] for one in seen] == [[]] * READERS
    machine.run("umount", "--all")
    assert machine.sessions() == []


def test_readers_do_not_notice_upgrades(machine, places, plain):
    """One daemon after the other takes over, with a zygote and workers of its own: no error, no wrong byte."""
    readers = Readers(machine, places, plain)
    killer = Killer(machine, {}, len(places))
    try:
        before = killer.wait_until_whole()
        for _ in range(UPGRADES):
            killer.kills.append((time.monotonic(), "upgrade"))
            machine.run("daemon", "--replace")
            before = killer.wait_until_whole(before)
        seen = readers.end()
    finally:
        readers.close()
    print("\n" + describe(seen, killer.kills))
    assert [one["wrong"] for one in seen] == [[]] * READERS
