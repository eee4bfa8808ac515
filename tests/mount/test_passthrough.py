"""Files that the kernel reads by itself: no READ for a materialised member, one mode per inode, no changed file."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kitfs.daemon import abilities
from kitfs.digest import Digest
from kitfs.store.store import Store

pytestmark = pytest.mark.mount

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
CHANGES = 1000 if CAMPAIGN else 8
KILLS = 200 if CAMPAIGN else 10
HEAL_S = 30.0
LOOKS = 100
SIX_BITS = bytes(value & 0x3F for value in range(256))
CONTENT = random.Random(7).randbytes(1_300_000).translate(SIX_BITS)
KITFILE = "manifestVersion: 1.0.0\npackage: {name: t}\nmodel: {name: m, path: model}\n"


@pytest.fixture
def extension():
    """Skip where files can not be passed through: without root, the extension, or a kernel that can."""
    obstacle = abilities.find_obstacle()
    if obstacle:
        pytest.skip(f"files can not be passed through: {obstacle}")


@pytest.fixture
def native(machine, extension) -> Path:
    """A file of a mounted ModelKit that was packed here, so that it is a plain file in the store: ``native:1``."""
    return machine.mount("mnt", pack(machine, "native:1")) / "model/w.bin"


def pack(machine, reference: str) -> str:
    """Pack ``CONTENT``; each reference is a ModelKit of its own with the same file in it."""
    kit = machine.folder / reference.replace(":", "-")
    (kit / "model").mkdir(parents=True)
    (kit / "model" / "w.bin").write_bytes(CONTENT)
    (kit / "model" / "config.json").write_text(f'{{"name": "{reference}"}}')
    (kit / "Kitfile").write_text(KITFILE)
    machine.run("pack", kit, "-t", reference)
    return reference


@pytest.fixture
def packed(machine, import_gzip, extension) -> Path:
    """A file of a mounted ModelKit of one gzip layer, not materialised yet."""
    import_gzip("packed", {"w.bin": CONTENT})
    return machine.mount("mnt", "packed:1") / "w.bin"


def member_of(machine) -> Path:
    """Where the store has the file's own file."""
    with Store.open(machine.home) as store:
        return store.layout.member(Digest.of(CONTENT))


def wait_until(holds: Callable[[], bool]) -> None:
    """Look every 2 ms until something holds."""
    deadline = time.monotonic() + HEAL_S
    while not holds():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.002)


def passed_through(machine) -> int:
    """How many files are open that the kernel reads by itself."""
    return sum(state.passed_through for state in machine.states())


def make_native(path: Path) -> None:
    """Read a file, past what the kernel has of it, and leave it alone until it is materialised; then again."""
    deadline = time.monotonic() + HEAL_S
    while os.getxattr(path, "user.kitfs.state") != b"native":
        assert time.monotonic() < deadline
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == CONTENT
        for _ in range(LOOKS):
            if os.getxattr(path, "user.kitfs.state") == b"native":
                break
            select.select([], [], [], 0.01)


def kill_worker(machine, wait_for_end) -> None:
    """SIGKILL the only worker and wait until its successor serves."""
    (before,) = machine.states()
    os.kill(before.pid, signal.SIGKILL)
    wait_for_end(before.pid)
    wait_until(lambda: machine.states()[0].pid not in (0, before.pid))


def test_a_materialised_member_is_read_without_a_read_request(machine, native):
    """read, pread past the page cache, and maps of a plain file give its bytes, and kitfs is asked for none of them."""
    assert native.read_bytes() == CONTENT
    with native.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert mapped[:] == CONTENT
        assert passed_through(machine) == 1
    wait_until(lambda: passed_through(machine) == 0)
    (state,) = machine.states()
    assert (state.reads, state.opens) == (0, 2)
    assert os.getxattr(native, "user.kitfs.state") == b"native"


def test_a_raw_layer_is_read_without_a_read_request(machine, extension):
    """The blob of a raw layer is the file itself."""
    kit = machine.folder / "kit"
    kit.mkdir()
    (kit / "w.bin").write_bytes(CONTENT)
    (kit / "Kitfile").write_text(KITFILE.replace("path: model", "path: w.bin"))
    machine.run("pack", kit, "-t", "raw:1", "--layer-format", "raw")
    path = machine.mount("mnt", "raw:1") / "w.bin"
    assert path.read_bytes() == CONTENT
    assert machine.states()[0].reads == 0


def test_a_small_file_is_read_through_us(machine, native):
    """A file that is one READ is not worth asking for."""
    assert native.with_name("config.json").read_text() == '{"name": "native:1"}'
    assert machine.states()[0].reads == 1


def test_a_member_that_becomes_whole_while_it_is_open_stays_in_its_mode(machine, packed):
    """Opens beside one from before are read through us and right; once all are closed, the next is passed through."""
    with packed.open("rb") as early:
        make_native(packed)
        assert passed_through(machine) == 0
        assert packed.read_bytes() == CONTENT
        assert early.read() == CONTENT
    wait_until(lambda: passed_through(machine) == 0 and _is_passed_through(machine, packed))


def _is_passed_through(machine, path: Path) -> bool:
    with path.open("rb") as file:
        os.pread(file.fileno(), 10, 0)
        return passed_through(machine) == 1


def test_opens_and_maps_outlive_workers(machine, native, wait_for_end):
    """A descriptor and a map from before a kill are read while no worker lives and after, beside later opens."""
    with native.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(3):
            (state,) = machine.states()
            os.kill(state.pid, signal.SIGSTOP)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert mapped[:] == CONTENT == os.pread(file.fileno(), len(CONTENT), 0)
            kill_worker(machine, wait_for_end)
            assert native.read_bytes() == CONTENT
            assert passed_through(machine) == 1
    wait_until(lambda: passed_through(machine) == 0)
    assert machine.states()[0].reads == 0


def test_a_member_that_is_passed_through_is_not_evicted(machine, native, wait_for_end):
    """The kernel's own copy of the descriptor keeps the lock that eviction respects until all is closed."""

    def is_locked() -> bool:
        with member_of(machine).open("rb") as member:
            try:
                fcntl.flock(member, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    with native.open("rb"):
        assert is_locked()
        kill_worker(machine, wait_for_end)
        assert is_locked()
    wait_until(lambda: not is_locked())


def test_two_mounts_share_the_page_cache(machine, native):
    """What was read through one tag's mount is in memory for another's: mincore says so before anything is read."""
    other = machine.mount("other", pack(machine, "other:1")) / "model/w.bin"
    assert native.read_bytes() == CONTENT
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    pages = -(-len(CONTENT) // mmap.PAGESIZE)
    with other.open("rb") as file:
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
        address = libc.mmap(None, len(CONTENT), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        seen = ctypes.create_string_buffer(pages)
        assert libc.mincore(address, len(CONTENT), seen) == 0
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.munmap(address, len(CONTENT))
    assert sum(page & 1 for page in seen.raw) == pages
    assert sum(state.reads for state in machine.states()) == 0


def write(path: Path) -> None:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")


def truncate(path: Path) -> None:
    """Cut, and grown again."""
    os.truncate(path, 4096)
    os.truncate(path, len(CONTENT))


def rename_over(path: Path) -> None:
    """Another file in its place."""
    other = path.with_name("other")
    other.write_bytes(CONTENT[:-1] + b"\xff")
    other.rename(path)


def store_in_map(path: Path) -> None:
    """One byte through a map that was made after the stamp."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[1000] = 0xFF


def change(path: Path, how: Callable[[Path], None]) -> None:
    """Change a file and set its times back."""
    before = path.stat()
    how(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def read_or_fail(path: Path) -> None:
    """A new open gives the right bytes or EIO."""
    try:
        seen = path.read_bytes()
    except OSError as error:
        assert error.errno == errno.EIO
    else:
        assert seen == CONTENT


def test_a_changed_member_is_never_passed_through(machine, import_gzip, extension):
    """Changed behind our back, closed or open, its mtime set back: the next open has the right bytes, or is EIO."""
    import_gzip("packed", {"w.bin": CONTENT})
    packed = machine.mount("mnt", "packed:1", "-o", "materialise=always") / "w.bin"
    choose, member = random.Random(3), member_of(machine)
    for _ in range(CHANGES):
        make_native(packed)
        with contextlib.ExitStack() as stack:
            if choose.random() < 0.5:
                stack.enter_context(packed.open("rb"))
                assert passed_through(machine) == 1
            change(member, choose.choice([write, truncate, rename_over, store_in_map]))
            read_or_fail(packed)
            read_or_fail(packed)
    make_native(packed)


def test_a_new_link_of_an_open_member_costs_a_hash_and_no_error(machine, native):
    """A backup that links a member moves its ctime: it is hashed at the next open, and that one has its bytes."""
    with native.open("rb"):
        os.link(member_of(machine), machine.folder / "backup")
        assert native.read_bytes() == CONTENT
        assert passed_through(machine) == 1
        assert native.read_bytes() == CONTENT
    assert machine.states()[0].reads == 0


def test_an_overlay_on_top_goes_on_under_kills(machine, wait_for_end, extension):
    """Copy-up, maps held and renames on a writable mount whose lower files are passed through, while workers die."""
    place = machine.mount("work", pack(machine, "native:1"), "--writable")
    path, choose = place / "model/w.bin", random.Random(4)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert passed_through(machine) == 1
        for number in range(KILLS):
            kill_worker(machine, wait_for_end)
            assert path.read_bytes() == CONTENT
            start = choose.randrange(len(CONTENT) - 4096)
            assert held[start : start + 4096] == CONTENT[start : start + 4096]
            (place / f"new{number}").write_bytes(CONTENT[:5000])
            (place / f"new{number}").rename(place / "model" / "renamed")
        with path.open("r+b") as copied_up:
            copied_up.write(b"changed")
        assert path.read_bytes() == b"changed" + CONTENT[7:]
        assert held[:] == CONTENT
    assert machine.states()[0].errors == 0


def test_a_user_without_privilege_is_served_as_before(as_nobody, wait_for_end):
    """No file is passed through, status says why, and a killed worker is not noticed."""
    machine = as_nobody
    machine.environment.pop("KITFS_NO_PASSTHROUGH", None)
    place = machine.folder / "mnt"
    place.mkdir()
    os.chown(place, machine.uid, machine.uid)
    path = machine.mount() / "weights.bin"
    size = int(machine.python("import sys; print(len(open(sys.argv[1], 'rb').read()))", path))
    (state,) = machine.states()
    kill_worker(machine, wait_for_end)
    assert int(machine.python("import sys; print(len(open(sys.argv[1], 'rb').read()))", path)) == size == 8 << 20
    assert state.reads > 0
    assert (
        f"off: {abilities.NO_PRIVILEGE if abilities.is_built() else abilities.NOT_BUILT}"
        in machine.run("status").stdout
    )


def test_without_the_extension_all_is_read_through_us(machine, wait_for_end):
    """A kitfs that was built without a compiler serves the same bytes, by READs, under kills too."""
    machine.environment["KITFS_NO_PASSTHROUGH"] = "1"
    path = machine.mount("mnt", pack(machine, "native:1")) / "model/w.bin"
    assert path.read_bytes() == CONTENT
    kill_worker(machine, wait_for_end)
    assert path.read_bytes() == CONTENT
    assert machine.states()[0].reads > 0
    assert passed_through(machine) == 0
    assert f"off: {abilities.SWITCHED_OFF}" in machine.run("status").stdout
