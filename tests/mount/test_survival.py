"""Workers, zygote and daemon are killed under readers; bytes stay right, and what can not go on ends cleanly."""

import contextlib
import errno
import os
import random
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from kitfs import mounting

pytestmark = pytest.mark.mount


class Reader(threading.Thread):
    """Opens, reads at random and closes until told to stop; keeps what went wrong.

    O_DIRECT: every read goes to the worker, none to the page cache.
    """

    def __init__(self, path: Path, expected: bytes) -> None:
        super().__init__()
        self.path, self.expected = path, expected
        self.reads = 0
        self.wrong: list[object] = []
        self.stop = threading.Event()

    def run(self) -> None:
        choose = random.Random(id(self))
        while not self.stop.is_set():
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
                try:
                    self._read(descriptor, choose.randrange(0, len(self.expected) - 65536, 4096))
                finally:
                    os.close(descriptor)
            except OSError as error:
                self.wrong.append(error)

    def _read(self, descriptor: int, start: int) -> None:
        import mmap

        buffer = mmap.mmap(-1, 65536)
        count = os.preadv(descriptor, [buffer], start)
        if count != 65536 or buffer[:] != self.expected[start : start + 65536]:
            self.wrong.append((start, count))
        self.reads += 1


def worker_of(machine) -> int:
    """The pid of the only mount's worker, once there is one that answers."""
    while True:
        (state,) = machine.states()
        if state.pid and state.state != "starting":
            return state.pid


def test_readers_do_not_notice_that_workers_are_killed(machine, weights, wait_for_end):
    """20 SIGKILLs one after the other: no error, no wrong byte, and every reader goes on."""
    place = machine.mount()
    readers = [Reader(place / "weights.bin", weights) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        killed = set()
        for _ in range(20):
            pid = worker_of(machine)
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
            killed.add(pid)
            os.listdir(place)
        before = [reader.reads for reader in readers]
        while not all(reader.reads > count for reader, count in zip(readers, before, strict=True)):
            assert all(reader.is_alive() for reader in readers)
    finally:
        for reader in readers:
            reader.stop.set()
        for reader in readers:
            reader.join(60)
    assert [reader.wrong for reader in readers] == [[]] * 4
    assert len(killed) == 20
    (state,) = machine.states()
    assert state.restarts == 20


def test_a_read_in_flight_is_answered_by_the_next_worker(machine, weights, wait_for_end):
    """A worker that is stopped with a READ in its hands and then killed loses nothing."""
    place = machine.mount()
    pid = worker_of(machine)
    os.kill(pid, signal.SIGSTOP)
    reader = Reader(place / "weights.bin", weights)
    reader.start()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    os.listdir(place)
    reader.stop.set()
    reader.join(60)
    assert not reader.is_alive() and reader.wrong == []


def test_a_killed_zygote_disturbs_nobody(machine, weights, wait_for_end):
    """Workers go on; one of them that dies afterwards is replaced by the next zygote's."""
    place = machine.mount()
    worker = worker_of(machine)
    zygote = parent_of(worker)
    os.kill(zygote, signal.SIGKILL)
    wait_for_end(zygote)
    assert worker_of(machine) == worker
    assert (place / "weights.bin").read_bytes() == weights
    os.kill(worker, signal.SIGKILL)
    wait_for_end(worker)
    assert os.listdir(place)
    assert worker_of(machine) != worker
    machine.mount("second")
    machine.run("umount", "--all")


def test_zygote_and_worker_may_die_at_once(machine, weights, wait_for_end):
    """The successor comes from the next zygote."""
    place = machine.mount()
    for _ in range(3):
        worker = worker_of(machine)
        zygote = children_of(machine.client.ping().pid)
        for pid in (*zygote, worker):
            if pid in machine.processes():
                os.kill(pid, signal.SIGKILL)
        wait_for_end(worker)
        assert (place / "Kitfile").read_bytes()
        assert len((place / "weights.bin").read_bytes()) == len(weights)


def test_a_worker_outlives_its_daemon(machine, weights, wait_for_end):
    """kill -9 of the daemon: the mount goes on with its worker, and the next daemon, which comes by itself, has it."""
    place = machine.mount()
    worker = worker_of(machine)
    daemon = machine.client.ping().pid
    os.kill(daemon, signal.SIGKILL)
    wait_for_end(daemon)
    assert (place / "weights.bin").read_bytes() == weights
    machine.mount("second")
    assert {state.mountpoint for state in machine.states()} == {str(place), str(machine.folder / "second")}
    assert worker in {state.pid for state in machine.states()}
    machine.run("umount", place)
    wait_for_end(worker)
    assert [mounted.mountpoint for mounted in machine.mounts()] == [machine.folder / "second"]


def test_a_daemon_that_is_told_to_end_ends_its_mounts(machine, wait_for_end):
    """SIGTERM: workers end, readers get ENOTCONN instead of hanging, umount clears the rest away."""
    place = machine.mount()
    worker = worker_of(machine)
    daemon = machine.client.ping().pid
    os.kill(daemon, signal.SIGTERM)
    wait_for_end(daemon)
    wait_for_end(worker)
    with pytest.raises(OSError) as caught:
        os.listdir(place)
    assert caught.value.errno == errno.ENOTCONN
    assert machine.sessions() == []
    machine.run("umount", place)
    assert machine.mounts() == []


def test_a_dead_mount_is_replaced_by_the_next_one_at_its_place(machine, weights, wait_for_end):
    """After the daemon was ended under it, and after a client was killed before it could hand over."""
    place = machine.mount()
    daemon = machine.client.ping().pid
    os.kill(daemon, signal.SIGTERM)
    wait_for_end(daemon)
    machine.run("mount", "myllm:1", place)
    assert (place / "weights.bin").read_bytes() == weights
    machine.run("umount", place)
    os.close(mounting.mount_device(place, mounting.mount_options("myllm:1", allow_other=False)))
    machine.run("mount", "myllm:1", place)
    assert (place / "weights.bin").read_bytes() == weights
    assert len(machine.mounts()) == 1


def hear(manager: socket.socket) -> bytes:
    """The next state that a daemon tells; this manager keeps no descriptors for it."""
    while (said := manager.recv(100)).startswith(b"FDSTORE"):
        pass
    return said


def test_a_restart_of_the_service_is_not_noticed(machine, weights, wait_for_end):
    """Told to end by a service manager the daemon leaves its workers, and --restore leaves what they serve alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(machine.folder / "notify"))
        manager.settimeout(60)
        environment = {**machine.environment, "NOTIFY_SOCKET": str(machine.folder / "notify")}
        readers: list[Reader] = []
        place = None
        for _ in range(4):
            service = subprocess.Popen(
                machine.command("daemon", "--foreground"), env=environment, stderr=subprocess.DEVNULL
            )
            assert hear(manager) == b"READY=1"
            if place is None:
                place = machine.mount("mnt", "myllm:1", "--wanted")
                readers = [Reader(place / "weights.bin", weights) for _ in range(3)]
                for reader in readers:
                    reader.start()
            machine.run("mount", "--restore")
            second = machine.mount("second")
            machine.run("umount", second)
            service.send_signal(signal.SIGTERM)
            assert hear(manager) == b"STOPPING=1"
            assert service.wait(60) == 0
            count = sum(reader.reads for reader in readers)
            while sum(reader.reads for reader in readers) < count + 20:
                assert not any(reader.wrong for reader in readers)
        for reader in readers:
            reader.stop.set()
            reader.join()
        assert [reader.wrong for reader in readers] == [[], [], []]
    machine.run("umount", place)
    assert machine.mounts() == []


def test_daemon_that_nobody_finds_makes_room(machine, weights, wait_for_end):
    """Its socket is removed or replaced: it ends, its mount is served on, and the store is free for the next daemon."""
    place = machine.mount()
    for replace in (False, True):
        path, daemon = machine.client.path, machine.client.ping().pid
        path.unlink()
        if replace:
            path.touch()
        wait_for_end(daemon)
        path.unlink(missing_ok=True)
        assert (place / "weights.bin").read_bytes() == weights
        machine.run("daemon")


def test_umount_all_clears_what_nobody_serves(machine):
    """Daemon, zygote and workers were killed at once: no daemon knows of the mount, and it goes all the same."""
    machine.mount()
    machine.kill_all()
    assert "dead" in machine.run("umount", "--all").stderr
    assert machine.mounts() == []


def test_a_mount_that_only_hangs_is_not_taken_for_dead(machine, monkeypatch):
    """Nobody serves it now, but its device is open: it is in use, exit code 7."""
    monkeypatch.setattr(mounting, "_PROBE_TIMEOUT_S", 0.2)
    place = machine.folder / "mnt"
    place.mkdir()
    device = mounting.mount_device(place, mounting.mount_options("myllm:1", allow_other=False))
    try:
        assert not mounting.clear_dead_mount(place)
        assert len(machine.mounts()) == 1
    finally:
        os.close(device)
    assert mounting.clear_dead_mount(place)


def test_an_aborted_connection_ends_its_session(machine, wait_for_end):
    """What ``umount -f`` does: worker and session go, the mount point stays for the client to clear."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = machine.mount()
    (mounted,) = machine.mounts()
    (state,) = machine.states()
    control = machine.folder / "fusectl"
    control.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", str(control)], check=True)
    try:
        (control / mounted.device.split(":")[1] / "abort").write_text("1")
    finally:
        subprocess.run(["umount", "-l", str(control)], check=True)
    assert machine.client.wait_ended(state.session, timeout_s=30)
    wait_for_end(state.pid)
    assert machine.sessions() == []
    machine.run("umount", place)


def test_a_store_that_moves_on_leaves_live_mounts_alone(machine, weights, wait_for_end):
    """A tag that is removed under a mount changes nothing in it, not even for a worker's successor."""
    place = machine.mount()
    machine.run("remove", "myllm:1")
    machine.run("gc")
    worker = worker_of(machine)
    os.kill(worker, signal.SIGKILL)
    wait_for_end(worker)
    assert (place / "weights.bin").read_bytes() == weights


def test_no_process_holds_what_is_not_its_own(machine):
    """Daemon, zygote: each device once. Worker: its own device alone, no socket of the zygote, no pidfd."""
    machine.mount("one")
    machine.mount("two")
    daemon = machine.client.ping().pid
    workers = {state.pid for state in machine.states()}
    zygotes = set(children_of(daemon)) - workers
    for pid in zygotes:
        assert held_by(pid).count("/dev/fuse") == 2
    for pid in workers:
        assert held_by(pid).count("/dev/fuse") == 1
        assert not [target for target in held_by(pid) if "pidfd" in target]
    assert held_by(daemon).count("/dev/fuse") == 2
    machine.run("umount", "--all")
    assert held_by(daemon).count("/dev/fuse") == 0


def test_mounting_again_and_again_leaks_no_descriptor(machine):
    """After 10 rounds the daemon holds what it held after the first, give or take two connections."""
    place = machine.mount()
    machine.run("umount", place)
    daemon = machine.client.ping().pid
    before = len(held_by(daemon))
    for _ in range(10):
        machine.mount()
        machine.run("umount", place)
    assert len(held_by(daemon)) <= before + 2


def held_by(pid: int) -> list[str]:
    """What a process has open; what it closes meanwhile is not."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
