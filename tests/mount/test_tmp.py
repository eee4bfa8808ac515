"""Mounts outlive their daemon, their zygote and both, are handed on to a new version, and are gone when unmounted."""

import contextlib
import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

VERIFIER = Path(__file__).with_name("verifier.py").read_text()
DEADLINE_S = 30

pytestmark = pytest.mark.mount


def find(machine) -> dict[str, list[int]]:
    """Processes by kind."""
    found = {"daemon": [], "zygote": [], "worker": []}
    for pid in machine.processes():
        with contextlib.suppress(OSError):
            kind = Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("kitfs-")
            if kind in found and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                found[kind].append(pid)
    return found


def kill(pids, wait_for_end) -> None:
    """SIGKILL at once: none of them sees another's death."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    for pid in pids:
        wait_for_end(pid)


def wait_whole(machine, count: int, before: tuple[int, ...] = ()):
    """The states, once one daemon is there, one zygote with copies of all, and a worker that answers for each mount."""
    process = os.pidfd_open(os.getpid())
    watch = select.poll()
    watch.register(process, 0)
    try:
        for _ in range(DEADLINE_S * 100):
            found = find(machine)
            with contextlib.suppress(Exception):
                states = machine.states()
                pids = {state.pid for state in states if state.state != "starting"}
                sizes = [len(found[kind]) for kind in ("daemon", "zygote", "worker")]
                is_whole = sizes == [1, 1, count] and pids == {*found["worker"]} and not pids & {*before}
                if is_whole and held(found["zygote"][0], "/dev/fuse") == count:
                    return states
            watch.poll(10)
    finally:
        os.close(process)
    pytest.fail(f"{find(machine)}\n{machine.describe()}")


@pytest.fixture
def reader(machine, weights, tmp_path):
    """``reader(place)``: a process that reads and verifies a mount until ``end()``, which tells what was wrong."""
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "weights.bin").write_bytes(weights)
    started = []

    class Running:
        def __init__(self, place: Path) -> None:
            pipe = subprocess.PIPE
            command = [*machine.prefix, machine.interpreter, "-c", VERIFIER, str(place), str(plain), "3"]
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            started.append(self.process)
            assert self.process.stdout.readline() == "begun\n"

        def end(self) -> list[str]:
            said, complaints = self.process.communicate(timeout=60)
            assert self.process.returncode == 0, complaints
            return json.loads(said)["wrong"]

    yield Running
    for process in started:
        process.kill()
        process.communicate()


def held(pid: int, what: str) -> int:
    """How many descriptors a process has of something."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += what in str(entry.readlink())
    return count


@pytest.mark.parametrize(
    "kinds",
    [
        ("daemon",),
        ("zygote",),
        ("daemon", "zygote"),
        ("daemon", "worker"),
        ("zygote", "worker"),
    ],
    ids="+".join,
)
def test_any_two_may_die_at_once(machine, reader, wait_for_end, kinds):
    """Readers go on, ps lists the same mounts, each holder has each set once, and umount leaves nothing."""
    places = [machine.mount("one"), machine.mount("two")]
    before = wait_whole(machine, 2)
    reading = [reader(place) for place in places]
    for _ in range(3):
        now = wait_whole(machine, 2)
        found = find(machine)
        pids = [found[kind][0] for kind in kinds]
        kill(pids, wait_for_end)
        now = wait_whole(machine, 2, tuple(pids))
        assert [(one.session, one.mountpoint, one.reference) for one in now] == [
            (one.session, one.mountpoint, one.reference) for one in before
        ]
    assert [one.end() for one in reading] == [[], []]
    found = find(machine)
    assert [held(found[kind][0], "/dev/fuse") for kind in ("daemon", "zygote", "worker")] == [2, 2, 1]
    assert [held(pid, "memfd:kitfs-session") for pid in found["zygote"]] == [2]
    machine.run("umount", "--all")
    assert (machine.mounts(), machine.sessions(), machine.states()) == ([], [], [])
    assert [held(found[kind][0], "/dev/fuse") for kind in ("daemon", "zygote")] == [0, 0]
    machine.run("daemon", "stop")
    for pids in found.values():
        for pid in pids:
            wait_for_end(pid)


def test_an_adopted_worker_is_replaced_when_it_dies(machine, reader, wait_for_end):
    """Its daemon is not its parent and follows it all the same, whether or not the zygote that forked it lives."""
    place = machine.mount()
    (first,) = wait_whole(machine, 1)
    reading = reader(place)
    for kinds in (("daemon",), ("daemon", "zygote")):
        kill([find(machine)[kind][0] for kind in kinds], wait_for_end)
        (adopted,) = wait_whole(machine, 1)
        kill([adopted.pid], wait_for_end)
        (successor,) = wait_whole(machine, 1, (adopted.pid,))
        assert (successor.session, successor.restarts) == (first.session, adopted.restarts + 1)
    assert reading.end() == []


def test_replace_puts_new_processes_in_place_of_all(machine, reader):
    """No process is the same, no reader notices, and the mounts are those that were; again and again."""
    places = [machine.mount("one"), machine.mount("two")]
    reading = [reader(place) for place in places]
    for _ in range(3):
        before = wait_whole(machine, 2)
        old = [pid for pids in find(machine).values() for pid in pids]
        machine.run("daemon", "--replace")
        after = wait_whole(machine, 2, tuple(old))
        assert not {*old} & {pid for pids in find(machine).values() for pid in pids}
        assert [(one.session, one.restarts) for one in after] == [(one.session, one.restarts + 1) for one in before]
    assert [one.end() for one in reading] == [[], []]
    machine.run("umount", "--all")
    assert (machine.mounts(), machine.sessions()) == ([], []), machine.describe()


def test_replace_starts_a_daemon_where_there_is_none(machine):
    """As ``kitfs daemon`` does."""
    machine.run("daemon", "--replace")
    assert machine.states() == []


@pytest.mark.parametrize("kinds", [("daemon",), ("daemon", "zygote"), ("daemon", "worker")], ids="+".join)
def test_umount_goes_at_any_moment(machine, wait_for_end, kinds):
    """Right after the deaths, while nobody has followed yet: nothing is mounted, and nothing is left of it later."""
    place = machine.mount()
    wait_whole(machine, 1)
    kill([find(machine)[kind][0] for kind in kinds], wait_for_end)
    machine.run("umount", place)
    assert machine.mounts() == []
    machine.mount("second")
    (state,) = wait_whole(machine, 1)
    machine.run("gc")
    assert [path.stem for path in machine.sessions()] == [state.session]
    found = find(machine)
    assert [held(found[kind][0], "/dev/fuse") for kind in ("daemon", "zygote", "worker")] == [1, 1, 1]


def test_an_orderly_end_is_not_repaired(machine, wait_for_end):
    """A daemon that is told to end ends its mounts; its zygote starts no other."""
    machine.mount()
    wait_whole(machine, 1)
    found = find(machine)
    os.kill(found["daemon"][0], signal.SIGTERM)
    for pids in found.values():
        for pid in pids:
            wait_for_end(pid)
    assert machine.processes() == []
