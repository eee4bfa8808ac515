"""Workers that hang, that can not start, that die of what they are asked: what readers and ``kitfs ps`` see of it."""

import contextlib
import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitfs import mounting

pytestmark = pytest.mark.mount

HUNG_S = 1.5
GOOD = bytes(range(256)) * 256

READ = """
import mmap, os, sys
buffer = mmap.mmap(-1, 4096)
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print("open", flush=True)
try:
    print(os.preadv(descriptor, [buffer], 0))
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def patient(machine):
    """The machine, whose daemon takes a worker for hung after a second and a half."""
    machine.environment["KITFS_HUNG_S"] = str(HUNG_S)
    return machine


@pytest.fixture
def faulty(patient, import_gzip):
    """The machine with ``faulty:1``, a ModelKit with files that end or hang whoever reads them, mounted."""
    before = patient.environment.get("PYTHONPATH", "")
    patient.environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).with_name("faults")), before])
    names = ("crash.bin", "hang.bin", "suicide.bin", "good.bin")
    import_gzip("faulty", dict.fromkeys(names, GOOD))
    patient.place = patient.mount("mnt", "faulty:1")
    return patient


@contextlib.contextmanager
def reading(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that opens a file and reads its first 4 KiB past the page cache; it has opened it."""
    process = subprocess.Popen([sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, text=True, cwd="/")
    with process:
        try:
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def read_directly(path: Path) -> str:
    """Number of bytes that reading the first 4 KiB gives, or the errno."""
    with reading(path) as process:
        return process.stdout.readline().strip()


def wait_for_worker(machine, *, other_than: int = 0) -> int:
    """The pid of the only mount's worker, once there is one that answers and is not the given one."""
    while True:
        (state,) = machine.states()
        if state.pid not in (0, other_than) and state.state != "starting":
            return state.pid


def break_store(machine) -> list[tuple[Path, bytes]]:
    """Take away what a worker needs to start; what was taken."""
    blobs = [path for path in (machine.home / "blobs/sha256").rglob("*") if path.is_file()]
    kept = [(path, path.read_bytes()) for path in blobs]
    for path in blobs:
        path.unlink()
    return kept


def test_a_stopped_worker_is_killed_and_followed(patient, weights, wait_for_end):
    """SIGSTOP: the reader that waits for it gets its bytes from the next one, and nothing is left of the stopped."""
    place = patient.mount()
    worker = wait_for_worker(patient)
    os.kill(worker, signal.SIGSTOP)
    assert read_directly(place / "weights.bin") == "4096"
    wait_for_end(worker)
    (state,) = patient.states()
    assert state.restarts == 1


def test_a_user_without_privilege_has_the_same(as_nobody, wait_for_end):
    """Killed and stopped workers of a user's daemon are replaced as root's are."""
    as_nobody.environment["KITFS_HUNG_S"] = str(HUNG_S)
    place = as_nobody.folder / "mnt"
    as_nobody.python("import os, sys; os.mkdir(sys.argv[1])", place)
    as_nobody.run("mount", "myllm:1", place)
    read = "import sys; print(len(open(sys.argv[1], 'rb').read()))"
    expected = as_nobody.python(read, place / "weights.bin")
    worker = 0
    for number in (signal.SIGKILL, signal.SIGSTOP):
        worker = wait_for_worker(as_nobody, other_than=worker)
        os.kill(worker, number)
        as_nobody.python("import os, sys; os.getxattr(sys.argv[1], 'user.kitfs.state')", place / "weights.bin")
        assert as_nobody.python(read, place / "weights.bin") == expected
        wait_for_end(worker)
    (state,) = as_nobody.states()
    assert state.restarts == 2


def test_a_hung_event_loop_is_killed_and_the_read_refused(faulty):
    """A read that hangs the event loop is EIO at its third delivery, and all else is served."""
    with reading(faulty.place / "hang.bin") as hung:
        other = read_directly(faulty.place / "good.bin")
        assert hung.stdout.readline().strip() == str(errno.EIO)
    assert other == "4096"
    (state,) = faulty.states()
    assert (state.restarts, state.errors) == (2, 1)


def test_a_worker_that_decodes_or_waits_is_not_hung(patient, import_gzip):
    """What keeps its threads busy for longer than a worker may be silent keeps its event loop free."""
    files = {f"{number}.bin": os.urandom(1 << 20) * 12 for number in range(4)}
    import_gzip("long", files)
    place = patient.mount("mnt", "long:1")
    stop = threading.Event()
    done: list[bool] = []

    def read_on(name: str) -> None:
        while not stop.is_set() or len(done) < 2:
            with (place / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                done.append(file.read() == files[name])

    readers = [threading.Thread(target=read_on, args=(name,)) for name in files]
    worker = wait_for_worker(patient)
    for reader in readers:
        reader.start()
    while next(iter(patient.states())).uptime_s < 3 * HUNG_S:
        assert all(done)
    stop.set()
    for reader in readers:
        reader.join(60)
    assert all(done)
    assert wait_for_worker(patient) == worker


def test_a_worker_that_is_stopped_before_it_serves_is_followed(patient, weights, wait_for_end):
    """One that is stopped while the device comes is killed within its time, and a successor makes the mount."""
    first = patient.mount("first")
    command = patient.command("mount", "myllm:1", patient.folder / "second")
    (patient.folder / "second").mkdir()
    known = set(patient.processes())
    with subprocess.Popen(command, env=patient.environment) as mount:
        stopped = None
        while stopped is None and mount.poll() is None:
            for pid in set(patient.processes()) - known - {mount.pid}:
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text() == "kitfs-worker\n":
                        os.kill(pid, signal.SIGSTOP)
                        stopped = pid
        code = mount.wait(60)
    assert stopped is not None
    wait_for_end(stopped)
    assert (first / "weights.bin").read_bytes() == weights
    if code == 0:
        assert (patient.folder / "second/weights.bin").read_bytes() == weights
    else:
        assert [mounted.mountpoint for mounted in patient.mounts()] == [first]


def test_a_read_that_crashes_workers_is_refused(faulty):
    """SIGSEGV twice, then EIO without being looked at; the third worker serves everybody on."""
    assert read_directly(faulty.place / "crash.bin") == str(errno.EIO)
    (state,) = faulty.states()
    assert state.restarts == 2
    assert read_directly(faulty.place / "crash.bin") == str(errno.EIO)
    assert read_directly(faulty.place / "good.bin") == "4096"
    (state,) = faulty.states()
    assert state.restarts == 2


def test_a_crashing_file_that_is_read_through_the_page_cache_is_refused(faulty):
    """After the EIO of its read-ahead the kernel asks by page: few workers die, and read and map end in errors."""
    copied = subprocess.run(["cat", str(faulty.place / "crash.bin")], capture_output=True, timeout=60, check=False)
    assert copied.stdout == b"" and b"Input/output error" in copied.stderr
    code = "import mmap, sys; file = open(sys.argv[1]); print(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[40000])"
    command = [sys.executable, "-c", code, str(faulty.place / "crash.bin")]
    mapped = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert mapped.returncode == -signal.SIGBUS
    (state,) = faulty.states()
    assert 2 <= state.restarts <= 8
    assert (faulty.place / "good.bin").read_bytes() == GOOD


def test_readers_beside_a_read_that_crashes_workers_have_their_bytes(faulty):
    """Processes that read and read again while others ask for what kills: no error, no wrong byte."""
    stop = threading.Event()
    wrong: list[object] = []
    reads = [0] * 4

    def read_on(number: int) -> None:
        buffer = mmap.mmap(-1, 4096)
        while not stop.is_set():
            try:
                descriptor = os.open(faulty.place / "good.bin", os.O_RDONLY | os.O_DIRECT)
                try:
                    start = 4096 * (reads[number] % 16)
                    if os.preadv(descriptor, [buffer], start) != 4096 or buffer[:] != GOOD[start : start + 4096]:
                        wrong.append(start)
                finally:
                    os.close(descriptor)
            except OSError as error:
                wrong.append(error)
            reads[number] += 1

    readers = [threading.Thread(target=read_on, args=(number,)) for number in range(4)]
    for reader in readers:
        reader.start()
    try:
        for name in ("crash.bin", "suicide.bin"):
            assert read_directly(faulty.place / name) == str(errno.EIO)
            before = list(reads)
            while not all(now > then for now, then in zip(reads, before, strict=True)):
                assert all(reader.is_alive() for reader in readers)
    finally:
        stop.set()
        for reader in readers:
            reader.join(60)
    assert wrong == []
    (state,) = faulty.states()
    assert 2 + 16 <= state.restarts <= 2 + 16 + 2


def test_workers_that_can_not_start_are_tried_again_until_they_can(patient, weights):
    """A crash loop: ``ps`` and ``status`` say why, readers wait, and all goes on when the cause is gone."""
    place = patient.mount()
    taken = break_store(patient)
    (state,) = patient.states()
    os.kill(state.pid, signal.SIGKILL)
    with reading_later(place / "Kitfile") as reader:
        while "keep dying" not in state.reason:
            (state,) = patient.states()
        assert (state.state, state.pid) == ("starting", 0)
        assert "keep dying" in patient.run("ps").stdout
        assert "keep dying" in patient.run("status").stdout
        assert reader.poll() is None
        restarts = state.restarts
        for path, data in taken:
            path.write_bytes(data)
            path.chmod(0o444)
        assert reader.wait(60) == 0
    (state,) = patient.states()
    assert (state.reason, state.restarts > restarts) == ("", True)
    assert (place / "weights.bin").read_bytes() == weights


@contextlib.contextmanager
def reading_later(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads a file, for as long as that takes."""
    process = subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL, cwd="/")
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def lose(machine, place: Path) -> None:
    """Have a mount be given up, and wait for it."""
    break_store(machine)
    (state,) = machine.states()
    os.kill(state.pid, signal.SIGKILL)
    assert machine.client.wait_ended(state.session, timeout_s=30)
    with pytest.raises(OSError) as caught:
        os.listdir(place)
    assert caught.value.errno == errno.ENOTCONN


def test_a_mount_without_a_worker_is_given_up(machine):
    """After its time the device is closed: readers get an error, ``ps`` says why, ``umount`` clears it."""
    machine.environment["KITFS_NO_WORKER_S"] = "1.5"
    place = machine.mount()
    with reading_later(place / "weights.bin"):
        lose(machine, place)
    (shown,) = json.loads(machine.run("ps", "--format", "json").stdout)
    assert shown["state"] == "dead"
    assert "no worker has served it for 1.5 s" in shown["reason"]
    machine.run("umount", place)
    assert machine.mounts() == []
    assert json.loads(machine.run("ps", "--format", "json").stdout) == []
    machine.run("gc")
    assert machine.sessions() == []


def test_a_waiting_reader_of_a_mount_that_is_given_up_gets_an_error(machine, weights):
    """Whoever has waited since the last worker died is not left in an endless wait."""
    machine.environment["KITFS_NO_WORKER_S"] = "1.5"
    place = machine.mount()
    with reading(place / "weights.bin") as reader:
        assert reader.stdout.readline().strip() == "4096"
    taken = break_store(machine)
    (state,) = machine.states()
    os.kill(state.pid, signal.SIGKILL)
    with reading_later(place / "weights.bin") as reader:
        assert reader.wait(60) != 0
    for path, data in taken:
        path.write_bytes(data)
    assert machine.client.wait_ended(state.session, timeout_s=30)
    machine.run("mount", "myllm:1", place)
    assert (place / "weights.bin").read_bytes() == weights
    assert len(machine.mounts()) == 1


def test_without_resend_a_mount_ends_with_its_worker_and_is_made_again(machine, weights):
    """A kernel before 6.9: readers get ENOTCONN, ``ps`` says why, ``--restore`` makes what is wanted again."""
    machine.environment["KITFS_NO_RESEND"] = "1"
    place = machine.mount("mnt", "myllm:1", "--wanted")
    other = machine.mount("other")
    for state in machine.states():
        os.kill(state.pid, signal.SIGKILL)
        assert machine.client.wait_ended(state.session, timeout_s=30)
    for path in (place, other):
        with pytest.raises(OSError) as caught:
            os.listdir(path)
        assert caught.value.errno == errno.ENOTCONN
    shown = json.loads(machine.run("ps", "--format", "json").stdout)
    assert {(one["mountpoint"], one["state"]) for one in shown} == {(str(place), "dead"), (str(other), "dead")}
    assert all("Linux 6.9" in one["reason"] for one in shown)
    machine.run("mount", "--restore")
    assert (place / "weights.bin").read_bytes() == weights
    machine.run("mount", "myllm:1", other)
    assert (other / "weights.bin").read_bytes() == weights
    assert sorted(mounted.mountpoint for mounted in machine.mounts()) == [place, other]


def test_without_resend_a_hung_worker_ends_its_mount(patient):
    """Nobody could take over what it has in hand, so its readers get an error and not an endless wait."""
    patient.environment["KITFS_NO_RESEND"] = "1"
    place = patient.mount()
    os.kill(wait_for_worker(patient), signal.SIGSTOP)
    with reading_later(place / "weights.bin") as reader:
        assert reader.wait(60) != 0
    patient.run("umount", place)


def test_without_resend_an_upgrade_leaves_workers_alone(machine, weights):
    """``daemon --replace``: the next daemon goes on with the worker that serves, for another could not take over."""
    machine.environment["KITFS_NO_RESEND"] = "1"
    place = machine.mount()
    worker = wait_for_worker(machine)
    before = machine.client.ping().pid
    machine.run("daemon", "--replace")
    assert machine.client.ping().pid != before
    assert wait_for_worker(machine) == worker
    assert (place / "weights.bin").read_bytes() == weights
    machine.run("umount", place)


def test_a_lost_mount_of_whoever_was_killed_is_cleared_by_the_next_mount(machine, weights):
    """The corpse at its place is unmounted first; the new mount is the only one there."""
    machine.environment["KITFS_NO_RESEND"] = "1"
    place = machine.mount()
    (state,) = machine.states()
    os.kill(state.pid, signal.SIGKILL)
    assert machine.client.wait_ended(state.session, timeout_s=30)
    assert mounting.find_mount(place) is not None
    assert "dead" in machine.run("mount", "myllm:1", place).stderr
    assert (place / "weights.bin").read_bytes() == weights
    assert len(machine.mounts()) == 1
