"""Workers are killed while they make members files; then the machine seems to boot anew. Right bytes, nothing left."""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.store import Store

pytestmark = pytest.mark.mount

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
KILLS = 100 if CAMPAIGN else 8
KILLS_A_MOUNT = 4  # of each kind
PIECE_SIZE = 128 << 10
SIX_BITS = bytes(value & 0x3F for value in range(256))


@pytest.fixture(scope="module")
def files():
    """Four files of 1 to 6 MB, which gzip makes smaller."""
    rng = random.Random(5)
    sizes = {"a": 6_000_000, "b": 3_000_001, "c": 4_194_304, "d": 1_300_000}
    return {name: rng.randbytes(size).translate(SIX_BITS) for name, size in sizes.items()}


class Loader(threading.Thread):
    """Reads every file from its start to its end, again and again, past what the kernel has of it."""

    def __init__(self, mount: Path, files: dict[str, bytes], seed: int) -> None:
        super().__init__()
        self.mount, self.files, self.rng = mount, files, random.Random(seed)
        self.size_read = 0
        self.rounds = 0
        self.wrong: list[object] = []
        self.stop = threading.Event()
        self.moved = threading.Condition()

    def run(self) -> None:
        while not self.stop.is_set():
            self.read_round()

    def read_round(self) -> None:
        """Read every file once, in any order."""
        for name in self.rng.sample(sorted(self.files), len(self.files)):
            try:
                self._read(self.mount / name, self.files[name])
            except OSError as error:
                self.wrong.append((name, error))
        with self.moved:
            self.rounds += 1
            self.moved.notify_all()

    def _read(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for start in range(0, len(data), PIECE_SIZE):
                found = os.pread(descriptor, PIECE_SIZE, start)
                if found != data[start : start + PIECE_SIZE]:
                    self.wrong.append((path.name, start, len(found)))
                with self.moved:
                    self.size_read += len(found)
                    self.moved.notify_all()
        finally:
            os.close(descriptor)

    def wait_read(self, size: int) -> None:
        """Wait until so many bytes more are read."""
        with self.moved:
            target = self.size_read + size
            assert self.moved.wait_for(lambda: self.size_read >= target, 60), "a reader does not go on"

    def wait_round(self) -> None:
        """Wait until all files have been read once more from the start."""
        with self.moved:
            target = self.rounds + 2
            assert self.moved.wait_for(lambda: self.rounds >= target, 120), "a reader does not go on"


def worker_of(machine) -> int:
    while True:
        (state,) = machine.states()
        if state.pid and state.state != "starting":
            return state.pid


def partials(home: Path) -> list[Path]:
    return sorted((home / "partial").glob("*/*"))


def members(home: Path) -> list[Path]:
    return sorted((home / "members" / "sha256").glob("*/*"))


def forget_members(home: Path) -> None:
    """Nothing is materialised, so that the next mount has it all to do."""
    with Store.open(home) as store:
        for path in members(home):
            path.unlink()
            assert not store.restamp_member(Digest(path.name))


@contextlib.contextmanager
def loading(mount: Path, files: dict[str, bytes], rng: random.Random):
    """Two readers while the block runs; they see no error and no wrong byte."""
    loaders = [Loader(mount, files, rng.random()) for _ in range(2)]
    for loader in loaders:
        loader.start()
    try:
        yield loaders
    finally:
        for loader in loaders:
            loader.stop.set()
        for loader in loaders:
            loader.join(120)
    assert [loader.wrong for loader in loaders] == [[], []]


def assert_right(home: Path, files: dict[str, bytes]) -> None:
    """Every member that is there has its bytes, and the check finds no more than what gc removes."""
    expected = {Digest.of(data).hex for data in files.values()}
    for path in members(home):
        assert path.name in expected and Digest.of(path.read_bytes()).hex == path.name
    with Store.open(home) as store:
        assert check(store, read_data=True).problems == []


def move_to_another_boot(home: Path) -> set[str]:
    """What a power cut leaves: partials of an earlier boot, whose maps say more than their data holds; its folders."""
    folder = home / "partial"
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"00000000-0000-4000-8000-{os.getpid():08x}{number:04x}")
    for path in partials(home):
        path.write_bytes(b"\1" * path.stat().st_size if path.suffix == ".map" else bytes(path.stat().st_size))
    return {path.name for path in folder.iterdir()}


def read_once(mount: Path, files: dict[str, bytes]) -> None:
    """Read all files, past what the kernel has of them."""
    loader = Loader(mount, files, 0)
    loader.stop.set()
    loader.read_round()
    assert loader.wrong == []


def wait_for_members(machine, files: dict[str, bytes], count: int, timeout_s: float = 90.0) -> None:
    """Wait until so many members are files; nobody reads meanwhile."""
    paths = [machine.home / "members/sha256" / digest.hex[:2] / digest.hex for digest in map(Digest.of, files.values())]
    end_s = time.monotonic() + timeout_s
    while (found := sum(path.exists() for path in paths)) < count:
        assert time.monotonic() < end_s, f"{found} of {count} members after {timeout_s} s"
        machine.states()  # takes its time, and leaves the processor to the worker


def kill(machine, wait_for_end) -> None:
    pid = worker_of(machine)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def kill_while_loading(machine, mount: Path, files: dict[str, bytes], rng: random.Random, wait_for_end) -> int:
    """At random moments while spans are decoded and written; how often there were partials."""
    found = 0
    with loading(mount, files, rng) as loaders:
        for _ in range(KILLS_A_MOUNT):
            rng.choice(loaders).wait_read(rng.randrange(sum(map(len, files.values()))))
            kill(machine, wait_for_end)
            found += bool(partials(machine.home))
        for loader in loaders:
            loader.wait_round()
    return found


def kill_while_finishing(machine, mount: Path, files: dict[str, bytes], wait_for_end) -> None:
    """When a member has just been placed, and perhaps is not recorded, and the next is hashed; then let it end."""
    for count in range(1, KILLS_A_MOUNT + 1):
        read_once(mount, files)
        wait_for_members(machine, files, min(count, len(files)))
        kill(machine, wait_for_end)
    read_once(mount, files)
    wait_for_members(machine, files, len(files))


def test_killed_while_it_materialises_and_booted_anew(machine, import_gzip, files, wait_for_end):
    """SIGKILLs at random: readers notice nothing, members become right files, and no partial outlives a boot."""
    import_gzip("gz", files)
    rng = random.Random(12)
    found = 0
    rounds = -(-KILLS // (2 * KILLS_A_MOUNT))
    for _ in range(rounds):
        mount = machine.mount("mnt", "gz:1")
        found += kill_while_loading(machine, mount, files, rng, wait_for_end)
        kill_while_finishing(machine, mount, files, wait_for_end)
        assert_right(machine.home, files)
        machine.run("umount", mount)
        assert_right(machine.home, files)
        forget_members(machine.home)

        mount = machine.mount("mnt", "gz:1")
        with loading(mount, files, rng) as loaders:
            loaders[0].wait_read(1)
            kill(machine, wait_for_end)
        machine.run("umount", mount)
        forget_members(machine.home)
        old = move_to_another_boot(machine.home)
        assert partials(machine.home)
        mount = machine.mount("mnt", "gz:1")
        read_once(mount, files)
        assert not old & {path.name for path in (machine.home / "partial").iterdir()}
        wait_for_members(machine, files, len(files))
        assert partials(machine.home) == []
        machine.run("umount", mount)
        assert_right(machine.home, files)
        forget_members(machine.home)
    assert found > rounds
    with Store.open(machine.home) as store:
        gc(store)
        assert check(store, read_data=True).findings == []
