"""How mounts end, or do not: what the kernel tells the daemon, and what only a client can see (fuse.md 2.9, 2.10)."""

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs import mounting

pytestmark = pytest.mark.mount

HOLDER = """
import hashlib, mmap, os, sys
path = sys.argv[1]
descriptor = os.open(path, os.O_RDONLY)
direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 65536)
print("open", flush=True)
for line in sys.stdin:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    whole = b"".join(iter(lambda: os.read(descriptor, 1 << 20), b""))
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        print(hashlib.sha256(whole).hexdigest(), os.preadv(direct, [buffer], 4096), flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


class Holder:
    """A process that holds a file open and reads it when it is told to, from the worker and not from the page cache."""

    def __init__(self, path: Path, prefix: tuple[str, ...] = ()) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": "/"}
        self.process = subprocess.Popen([*prefix, sys.executable, "-c", HOLDER, str(path)], **pipes)
        assert self.process.stdout.readline() == "open\n"

    def read(self) -> str:
        """What it says of the whole file and of a part."""
        self.process.stdin.write("read\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        with self.process:
            self.process.kill()


@pytest.fixture
def hold() -> Iterator[Callable[..., Holder]]:
    """``hold(path)`` makes a holder, which ends with the test."""
    holders: list[Holder] = []

    def make(*arguments: object) -> Holder:
        holders.append(Holder(*arguments))
        return holders[-1]

    yield make
    for holder in holders:
        holder.close()


@pytest.fixture
def connection_of(machine) -> Iterator[Callable[[Path], Path]]:
    """``connection_of(mountpoint)`` is the connection's directory in fusectl; root only."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    control = machine.folder / "fusectl"
    control.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", str(control)], check=True)

    def find(mountpoint: Path) -> Path:
        (mounted,) = [one for one in machine.mounts() if one.mountpoint == mountpoint]
        return control / mounted.device.split(":")[1]

    yield find
    subprocess.run(["umount", "-l", str(control)], check=True)


def worker_of(machine, place: Path) -> int:
    """The pid of a mount's worker, once there is one that answers."""
    while True:
        (state,) = [one for one in machine.states() if one.mountpoint == str(place)]
        if state.pid and state.state != "starting":
            return state.pid


def kill_worker(machine, place: Path, wait_for_end) -> None:
    """SIGKILL a mount's worker."""
    pid = worker_of(machine, place)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def test_an_unmount_that_kitfs_does_not_make_ends_the_session(machine, wait_for_end):
    """umount(8): the device reports POLLERR; worker, session and record go."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = machine.mount()
    (state,) = machine.states()
    subprocess.run(["umount", str(place)], check=True)
    assert machine.client.wait_ended(state.session, timeout_s=30)
    wait_for_end(state.pid)
    assert machine.sessions() == [] and machine.states() == []


def test_a_forced_unmount_ends_waiting_readers_and_the_session(machine, wait_for_end, weights):
    """umount -f of a mount in use aborts the connection: who waits gets an error; the next mount clears the rest."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = machine.mount()
    (state,) = machine.states()
    os.kill(state.pid, signal.SIGSTOP)
    code = "import os, sys\ntry: os.listdir(sys.argv[1])\nexcept OSError as error: print(error.errno)"
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True) as reader:
        wait_until_waiting(reader.pid)
        subprocess.run(["umount", "-f", str(place)], check=False, stderr=subprocess.DEVNULL)
        assert int(reader.communicate(timeout=60)[0]) in (errno.ECONNABORTED, errno.ENOTCONN)
    assert machine.client.wait_ended(state.session, timeout_s=30)
    wait_for_end(state.pid)
    assert machine.sessions() == []
    machine.run("mount", "myllm:1", place)
    assert (place / "weights.bin").read_bytes() == weights
    assert len(machine.mounts()) == 1


def wait_until_waiting(pid: int) -> None:
    """Wait until a process sleeps in the kernel for an answer of FUSE's."""
    while (
        "fuse" not in Path(f"/proc/{pid}/wchan").read_text()
        and "request_wait" not in Path(f"/proc/{pid}/wchan").read_text()
    ):
        assert Path(f"/proc/{pid}").exists()


def test_a_tree_that_is_unmounted_lazily_and_still_held_is_served_on(machine, hold, wait_for_end):
    """No mountinfo names it any more, its worker is killed, and its reader goes on; at its last close all ends."""
    place = machine.mount()
    holder = hold(place / "weights.bin")
    expected = holder.read()
    (state,) = machine.states()
    machine.run("umount", "--lazy", place)
    assert machine.mounts() == []
    for _ in range(3):
        kill_worker(machine, place, wait_for_end)
        assert holder.read() == expected
    assert not machine.client.wait_ended(state.session, timeout_s=0)
    holder.close()
    assert machine.client.wait_ended(state.session, timeout_s=30)
    assert machine.sessions() == []


def test_a_mount_in_a_namespace_that_the_daemon_can_not_see_is_served_on(machine, wait_for_end):
    """Mounted inside a mount namespace of its own: killed workers are replaced there as anywhere."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    machine.mount("first")
    place = machine.folder / "hidden"
    place.mkdir()
    script = f"""
import subprocess, sys
subprocess.run({machine.command("mount", "myllm:1", place)!r}, check=True)
sys.argv[1:] = [{str(place / "weights.bin")!r}]
exec({HOLDER!r})
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": "/"}
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script]
    inside = subprocess.Popen(command, env=machine.environment, **pipes)

    def read() -> str:
        inside.stdin.write("read\n")
        inside.stdin.flush()
        return inside.stdout.readline().strip()

    try:
        assert inside.stdout.readline() == "open\n"
        assert [mounted.mountpoint for mounted in machine.mounts()] == [machine.folder / "first"]
        expected = read()
        for _ in range(3):
            kill_worker(machine, place, wait_for_end)
            assert read() == expected
        (session,) = [state.session for state in machine.states() if state.mountpoint == str(place)]
    finally:
        with inside:
            inside.kill()
    assert machine.client.wait_ended(session, timeout_s=30)
    assert [state.mountpoint for state in machine.states()] == [str(machine.folder / "first")]


def test_a_corpse_is_cleared_and_mounted_again_when_it_is_wanted(machine, connection_of, weights):
    """An aborted connection stays in mountinfo: ``--restore`` unmounts it and mounts again, ``umount`` unmounts."""
    place = machine.mount("mnt", "myllm:1", "--wanted")
    other = machine.mount("other")
    for path in (place, other):
        (state,) = [one for one in machine.states() if one.mountpoint == str(path)]
        (connection_of(path) / "abort").write_text("1")
        assert machine.client.wait_ended(state.session, timeout_s=30)
    assert len(machine.mounts()) == 2
    machine.run("mount", "--restore")
    assert (place / "weights.bin").read_bytes() == weights
    machine.run("umount", other)
    assert [mounted.mountpoint for mounted in machine.mounts()] == [place]


def test_a_clean_unmount_is_not_mounted_again(machine):
    """What was unmounted by ``kitfs umount`` is not wanted any more, so there is nothing to restore."""
    place = machine.mount("mnt", "myllm:1", "--wanted")
    machine.run("umount", place)
    machine.run("mount", "--restore")
    assert machine.mounts() == []


INTERRUPTED = """
import mmap, os, random, sys
buffer = mmap.mmap(-1, 1 << 20)
direct = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
cached = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(direct).st_size
print("open", flush=True)
while True:
    start = random.randrange(size >> 12) << 12
    os.preadv(direct, [buffer], start)
    os.posix_fadvise(cached, 0, 0, os.POSIX_FADV_DONTNEED)
    os.pread(cached, 1 << 20, start)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_readers_that_are_killed_or_interrupted_leave_nothing_behind(machine, import_gzip, connection_of, number):
    """In the middle of reads: no request stays open, the worker lives, has no more threads, and serves on."""
    content = os.urandom(1 << 20) * 16
    import_gzip("big", {"big.bin": content})
    place = machine.mount("mnt", "big:1", "-o", "materialise=never")
    worker = worker_of(machine, place)
    waiting = connection_of(place) / "waiting"
    threads = 0
    for turn in range(6):
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(interrupted_reader(place / "big.bin")) for _ in range(4)]
            while int(waiting.read_text()) == 0:
                assert all(reader.poll() is None for reader in readers)
            for reader in readers:
                reader.send_signal(number)
            for reader in readers:
                assert reader.wait(60) != 0
        wait_until_still(waiting)
        threads = threads or len(os.listdir(f"/proc/{worker}/task"))
        if turn == 0:
            threads += 4
    assert len(os.listdir(f"/proc/{worker}/task")) <= threads
    assert (place / "big.bin").read_bytes() == content
    (state,) = machine.states()
    assert (state.pid, state.restarts, state.errors) == (worker, 0, 0)


@contextlib.contextmanager
def interrupted_reader(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that reads at random without end; it has opened the file."""
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/") as process:
        try:
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def wait_until_still(waiting: Path) -> None:
    """Wait until a connection has no request without an answer; its worker must give them all."""
    while int(waiting.read_text()):
        pass


def test_readers_that_are_killed_while_no_worker_serves_leave_nothing_behind(
    machine, connection_of, weights, wait_for_end
):
    """What they asked for is forgotten or answered to nobody; the successor has nothing left to do."""
    place = machine.mount()
    for number in (signal.SIGKILL, signal.SIGINT):
        worker = worker_of(machine, place)
        os.kill(worker, signal.SIGSTOP)
        code = "import os, sys; os.listdir(sys.argv[1])"
        readers = [
            subprocess.Popen([sys.executable, "-c", code, str(place)], stderr=subprocess.DEVNULL) for _ in range(4)
        ]
        for reader in readers:
            wait_until_waiting(reader.pid)
            reader.send_signal(number)
        os.kill(worker, signal.SIGKILL)
        wait_for_end(worker)
        for reader in readers:
            reader.wait(60)
        wait_until_still(connection_of(place) / "waiting")
    assert (place / "weights.bin").read_bytes() == weights


def test_no_process_of_ours_has_anything_below_a_mount(machine, wait_for_end):
    """Folder, root and descriptors lie elsewhere, also after a worker was replaced: else its end would hang."""
    place = machine.mount()
    assert (place / "weights.bin").read_bytes()
    kill_worker(machine, place, wait_for_end)
    assert os.listdir(place)
    pids = machine.processes()
    assert len(pids) >= 3
    for pid in pids:
        links = [Path(f"/proc/{pid}/cwd"), Path(f"/proc/{pid}/root"), *Path(f"/proc/{pid}/fd").iterdir()]
        for link in links:
            with contextlib.suppress(FileNotFoundError):
                assert not str(link.readlink()).startswith(str(place))
        inherited = [link for link in links[2:] if not is_close_on_exec(pid, link.name)]
        targets = [str(link.readlink()) for link in inherited if link.name not in "012"]
        assert [target for target in targets if not target.startswith(str(machine.home / "index"))] == []


def is_close_on_exec(pid: int, descriptor: str) -> bool:
    """Whether a program that a process runs does not inherit a descriptor; one that is closed meanwhile it does not."""
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    except FileNotFoundError:
        return True
    (flags,) = [int(line.split()[1], 8) for line in lines if line.startswith("flags:")]
    return bool(flags & os.O_CLOEXEC)


def test_resend_is_no_probe(machine):
    """An aborted device takes a RESEND as if all were well; only POLLERR tells that it is gone."""
    from kitfs.fuse.protocol import RESEND_NOTIFICATION

    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = machine.folder / "mnt"
    place.mkdir()
    device = mounting.mount_device(place, mounting.mount_options("myllm:1", allow_other=False))
    try:
        poll = select.poll()
        poll.register(device, 0)
        assert poll.poll(0) == []
        subprocess.run(["umount", "-f", "-l", str(place)], check=True)
        assert poll.poll(0) == [(device, select.POLLERR)]
        with contextlib.suppress(PermissionError):
            os.write(device, RESEND_NOTIFICATION)
        assert poll.poll(0) == [(device, select.POLLERR)]
    finally:
        os.close(device)
