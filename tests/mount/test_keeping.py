"""Mounts outlive their daemon, their zygote and both, are handed on to a new version, and are gone when unmounted."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitfs import __version__, client
from kitfs.calls import HandOverAnswer, HandOverCall, PingAnswer
from kitfs.control import ControlConnection, parse_descriptors

OTHER_VERSION = "import kitfs; kitfs.__version__ = '0.0.1'; from kitfs.cli.main import main; main()"
PASS = """
import os, sys
numbers = [int(number) for number in sys.argv[2].split(",")] if sys.argv[2] else []
high = [os.dup2(number, 500 + place) for place, number in enumerate(numbers)]
for place, number in enumerate(high):
    os.dup2(number, 3 + place)
os.closerange(3 + len(numbers), 600)
names = {"LISTEN_FDS": str(len(numbers)), "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": sys.argv[1]}
os.environ.update(names if numbers else {})
os.execv(sys.argv[3], sys.argv[3:])
"""
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
    assert (machine.mounts(), machine.sessions()) == ([], [])


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


def test_a_daemon_serves_on_when_its_successor_dies(machine, weights):
    """Who asks for all mounts and goes without a word changes nothing, whatever it has been sent."""
    place = machine.mount()
    (before,) = wait_whole(machine, 1)
    daemon = machine.client.ping().pid
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, ControlConnection.connect(machine.client.path) as connection:
        call = HandOverCall("0.0.1")
        answer = connection.call("HandOver", call, HandOverAnswer, descriptors=[theirs.fileno()])
        raw, ancillary, _, _ = ours.recvmsg(4096, socket.CMSG_LEN(12))
        assert (answer.pid, answer.count, raw.decode()) == (daemon, 1, before.session)
        taken = parse_descriptors(ancillary)
        assert len(taken) == 3
        for descriptor in taken:
            os.close(descriptor)
    (after,) = wait_whole(machine, 1)
    assert (machine.client.ping().pid, after.pid) == (daemon, before.pid)
    assert (place / "weights.bin").read_bytes() == weights


def test_processes_of_another_version_are_replaced(machine, reader, wait_for_end):
    """A daemon that meets a zygote of another version has one of that version take over, and the workers follow."""
    place = machine.mount()
    (before,) = wait_whole(machine, 1)
    reading = reader(place)
    found = find(machine)
    kill([*found["daemon"], *found["zygote"]], wait_for_end)
    command = [machine.interpreter, "-c", OTHER_VERSION, "daemon", "--foreground"]
    with subprocess.Popen(command, env=machine.environment, stderr=subprocess.DEVNULL) as other:
        other.wait(DEADLINE_S)
    (after,) = wait_whole(machine, 1, (before.pid, other.pid))
    assert after.session == before.session
    assert machine.client.ping().version == __version__
    assert reading.end() == []


@pytest.mark.parametrize(("is_service", "mend"), [(False, "kitfs daemon --replace"), (True, "restart its service")])
def test_another_version_is_named_with_what_mends_it(is_service, mend):
    """The same version is passed over, another one is said, another protocol is an error."""
    same = PingAnswer(__version__, 1, "/store", is_service=is_service)
    assert client.check_version(same) == ""
    said = client.check_version(PingAnswer("0.0.1", 1, "/store", is_service=is_service))
    assert "0.0.1" in said and mend in said
    with pytest.raises(client.ProtocolDiffers, match="speaks protocol 99") as caught:
        client.check_version(PingAnswer("9.9", 1, "/store", 99))
    assert caught.value.hint == "kitfs daemon --replace"


class StandIn:
    """What systemd is to a service that stores descriptors with it."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.kept: dict[str, list[int]] = {}
        self.services: list[subprocess.Popen[bytes]] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(machine.folder / "notify"))
        self.socket.settimeout(DEADLINE_S)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the service with what was stored, and wait until it is ready."""
        pairs = [(name, number) for name, numbers in self.kept.items() for number in numbers]
        passed = [number for _, number in pairs]
        names, numbers = ":".join(name for name, _ in pairs), ",".join(map(str, passed))
        command = [self.machine.interpreter, "-c", PASS, names, numbers]
        command += self.machine.command("daemon", "--foreground")
        environment = {**self.machine.environment, "NOTIFY_SOCKET": str(self.machine.folder / "notify")}
        service = subprocess.Popen(command, env=environment, pass_fds=passed, stderr=subprocess.DEVNULL)
        self.services.append(service)
        self.hear("READY=1")
        return service

    def hear(self, wanted: str) -> None:
        """Take what it says until it says this."""
        said = ""
        while said != wanted:
            raw, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_LEN(12))
            said, _, name = raw.decode().partition("\nFDNAME=")
            received = parse_descriptors(ancillary)
            for descriptor in self.kept.pop(name, []) if said.startswith("FDSTORE") else []:
                os.close(descriptor)
            if said == "FDSTORE=1":
                self.kept[name] = received

    def close(self) -> None:
        """End what was started, and let go of all."""
        for service in self.services:
            service.kill()
            service.wait()
        for descriptor in [number for numbers in self.kept.values() for number in numbers]:
            os.close(descriptor)
        self.kept.clear()
        self.socket.close()


@pytest.fixture
def manager(machine) -> Iterator[StandIn]:
    """A service manager of the machine's daemon."""
    made = StandIn(machine)
    yield made
    made.close()


def test_service_and_its_workers_are_killed_at_once(machine, manager, reader, wait_for_end):
    """What the service manager keeps is enough: the next daemon starts workers, and readers have waited."""
    service = manager.start()
    place = machine.mount()
    (before,) = wait_whole(machine, 1)
    manager.hear("FDSTORE=1")
    assert list(manager.kept) == [before.session]
    reading = reader(place)
    for _ in range(3):
        kill([pid for pids in find(machine).values() for pid in pids], wait_for_end)
        service.wait(DEADLINE_S)
        service = manager.start()
        (now,) = wait_whole(machine, 1, (before.pid,))
        assert now.session == before.session
    assert reading.end() == []
    machine.run("umount", place)
    manager.hear("FDSTOREREMOVE=1")
    assert manager.kept == {}
    service.send_signal(signal.SIGTERM)
    assert service.wait(DEADLINE_S) == 0
