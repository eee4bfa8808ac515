"""Memory or disk run out under a mount: the worker is killed and not its readers, and reads go on without files."""

import hashlib
import os
import random
import select
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

SIX_BITS = bytes(value & 0x3F for value in range(256))
MIB = 1 << 20
LIMIT_MIB = 200
"""What the group may have; its reader takes most of it, a worker 9 MiB."""

HOLD_AND_READ = textwrap.dedent("""
    import hashlib, os, sys
    held = []
    for line in sys.stdin:
        if line == "more\\n":
            held.append(bytearray(os.urandom(4096) * 256))
            print(len(held), flush=True)
            continue
        del held[-20:]
        with open(sys.argv[1], "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            print(hashlib.file_digest(file, "sha256").hexdigest(), flush=True)
    """)


@pytest.fixture
def data() -> bytes:
    """6 MB that gzip makes smaller."""
    return random.Random(5).randbytes(6_000_000).translate(SIX_BITS)


class Group:
    """A control group whose processes may not have more memory than it says."""

    def __init__(self, folder: Path, limit: str, events: str) -> None:
        self.folder = folder
        self._limit = folder / limit
        self._events = folder / events

    def limit(self, size: int) -> None:
        """Set the limit."""
        self._limit.write_text(str(size))

    @property
    def kills(self) -> int:
        """Processes of it that were killed because it was full."""
        lines = self._events.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def add(self, pid: int) -> None:
        """Move a process into it; children that it starts later are in it too."""
        (self.folder / "cgroup.procs").write_text(str(pid))


def _make(folder: Path, limit: str) -> bool:
    try:
        folder.mkdir()
    except OSError:
        return False
    if not (folder / limit).exists():
        folder.rmdir()
        return False
    return True


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """A control group of memory, of version 1 or 2."""
    name = f"kitfs-test-{os.getpid()}-{tmp_path.name}"
    versions = [
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"),
        ("/sys/fs/cgroup", "memory.max", "memory.events"),
    ]
    made = [Group(Path(top, name), limit, events) for top, limit, events in versions if _make(Path(top, name), limit)]
    if not made:
        pytest.skip("no control group of memory can be made here")
    yield made[0]
    folder = made[0].folder
    outside = folder.parent / "cgroup.procs"
    for pid in (folder / "cgroup.procs").read_text().split():
        outside.write_text(pid)
    folder.rmdir()


def test_memory_that_runs_out_kills_the_worker_and_not_its_reader(machine, group, weights):
    """In one control group the worker dies, though its reader holds 20 times as much, which then reads right bytes."""
    machine.mount("first")
    (state,) = machine.states()
    zygote = int(Path(f"/proc/{state.pid}/status").read_text().split("PPid:\t")[1].split()[0])
    group.add(zygote)
    place = machine.mount()
    worker = next(state.pid for state in machine.states() if state.mountpoint == str(place))
    group.limit(LIMIT_MIB * MIB)
    reader = [machine.interpreter, "-c", HOLD_AND_READ, str(place / "weights.bin")]
    pipe = subprocess.PIPE
    process = os.pidfd_open(worker)
    with subprocess.Popen(reader, stdin=pipe, stdout=pipe, text=True, bufsize=1) as running:
        group.add(running.pid)
        held = 0
        while not group.kills and held < LIMIT_MIB:
            running.stdin.write("more\n")
            held = int(running.stdout.readline())
        assert select.select([process], [], [], 30)[0]
        running.stdin.write("read\n")
        assert running.stdout.readline().strip() == hashlib.sha256(weights).hexdigest()
        running.stdin.close()
    os.close(process)
    assert running.returncode == 0
    assert LIMIT_MIB / 2 < held < LIMIT_MIB


@pytest.fixture
def small_disk(machine, tmp_path: Path) -> Iterator[Path]:
    """The machine's store on a file system of 64 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "kitfs-test", str(machine.home)], check=True)
    yield machine.home
    subprocess.run(["umount", "-l", str(machine.home)], check=True)


def test_full_disk_costs_files_of_members_and_no_read(machine, small_disk, import_gzip, data):
    """With no room left members get no files: every read is answered from the layer, and the log says so once."""
    machine.environment["KITFS_CACHE_SIZE_MAX"] = "unlimited"
    import_gzip("packed", {"file": data})
    place = machine.mount("place", "packed:1")
    with (small_disk / "filler").open("wb") as filler:
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        os.posix_fallocate(filler.fileno(), 0, free - 2 * MIB)
    for _ in range(3):
        with (place / "file").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == data
    (state,) = machine.states()
    assert (state.state, state.restarts) == ("lazy", 0)
    logs = [path.read_text() for path in Path(machine.environment["XDG_RUNTIME_DIR"]).rglob("*.log")]
    warnings = [line for line in "".join(logs).splitlines() if " WARNING " in line or " ERROR " in line]
    assert len(warnings) == 1, warnings
