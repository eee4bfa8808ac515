"""fsx, fio and pjdfstest on writable mounts, only for ``nox -s posix``; docs/posix.md says what is known."""

import os
import re
import shutil
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

LONG = os.environ.get("KITFS_POSIX", "") not in ("", "0")
pytestmark = [
    pytest.mark.mount,
    pytest.mark.root,
    pytest.mark.skipif(not LONG, reason="minutes long: nox -s posix, or KITFS_POSIX=1"),
]

PAGE = Path(__file__).parents[2] / "docs" / "posix.md"
OPERATIONS = 100_000
LIMIT_S = 1500

FSX = textwrap.dedent("""
    flen = 1048576
    [opsize]
    max = 65536
    [weights]
    close_open = 1
    invalidate = 1
    mapread = 10
    mapwrite = 10
    read = 10
    write = 10
    truncate = 2
    fsync = 0.2
    fdatasync = 0.2
    posix_fallocate = 1
    punch_hole = 1
    sendfile = 2
    posix_fadvise = 1
    copy_file_range = 2
    """)

MAKE_KIT = textwrap.dedent("""
    import pathlib, random, sys
    top = pathlib.Path(sys.argv[1])
    (top / "model").mkdir(parents=True)
    (top / "model/weights.bin").write_bytes(random.Random(1).randbytes(64 << 20))
    (top / "Kitfile").write_text("manifestVersion: 1.0.0\\npackage: {name: t}\\nmodel: {name: m, path: model}\\n")
    """)

FIO = ["--size=64m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"]
MIXES = {
    "psync": ["--ioengine=psync", "--rw=randrw", "--bs=4k-64k"],
    "mmap": ["--ioengine=mmap", "--rw=randwrite", "--bs=4k"],
}


def find_tool(name: str) -> Path:
    """A program of the machine's."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH")
    return Path(found).resolve()


@pytest.fixture
def place(writer):
    """Where a ModelKit with a model of 64 MiB is mounted writable."""
    writer.python(MAKE_KIT, writer.folder / "tools")
    writer.run("pack", writer.folder / "tools", "-t", "tools:1")
    return writer.mount_writable(reference="tools:1")


def start(writer, *command: object) -> subprocess.Popen[str]:
    """A command of the writer's, in a folder of its own."""
    return subprocess.Popen(
        [*writer.prefix, *map(str, command)],
        cwd=writer.place("tool"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def start_fsx(writer, path: Path) -> subprocess.Popen[str]:
    """100 000 operations on one file, with all that fsx knows."""
    settings = writer.place("tool") / "fsx.toml"
    writer.write(settings, FSX)
    return start(writer, find_tool("fsx"), "-N", OPERATIONS, "-S", 42, "-f", settings, "-P", settings.parent, path)


@pytest.mark.parametrize("name", ["weights.bin", "new.bin"])
def test_fsx_finds_nothing(writer, place, name):
    """100 000 operations on a file of the ModelKit, and on a new one."""
    with start_fsx(writer, place / "model" / name) as fsx:
        said, _ = fsx.communicate(timeout=LIMIT_S)
    assert fsx.returncode == 0, said[-2000:]


def test_fsx_does_not_notice_that_workers_are_killed(writer, place, wait_for_end):
    """The same while the worker below is killed again and again, less often than the daemon gives a mount up for."""
    killed = 0
    with start_fsx(writer, place / "model/weights.bin") as fsx:
        while (said := find_said(fsx)) is None:
            (state,) = writer.states()
            if state.pid and state.state != "starting":
                os.kill(state.pid, signal.SIGKILL)
                wait_for_end(state.pid)
                killed += 1
            writer.python("import os, sys; os.listdir(sys.argv[1]); os.stat(sys.argv[1] + '/Kitfile')", place)
    assert fsx.returncode == 0, said[-2000:]
    print(f"{killed} workers killed")
    assert killed > 10


def find_said(process: subprocess.Popen[str]) -> str | None:
    """What a process that has ended said; None if it goes on for a moment, in which no worker is killed."""
    try:
        return process.communicate(timeout=0.15)[0]
    except subprocess.TimeoutExpired:
        return None


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", ["weights.bin", "new.bin"])
def test_fio_reads_what_it_wrote(writer, place, name, mix):
    """Blocks written at random, mixed with reads and through a map, have their checksums."""
    with start(writer, find_tool("fio"), "--name=v", f"--filename={place}/model/{name}", *MIXES[mix], *FIO) as fio:
        said, _ = fio.communicate(timeout=LIMIT_S)
    assert fio.returncode == 0 and "err= 0" in said, said[-2000:]


def known_failures() -> set[tuple[str, int]]:
    """The cases of pjdfstest that the page names: ``| `chown/00.t` | 650, 654 | …``."""
    rows = re.findall(r"^\| `(\w+/\d+\.t)` \| ([\d, ]+) \|", PAGE.read_text(), flags=re.M)
    return {(test, int(case)) for test, cases in rows for case in cases.split(",")}


def test_pjdfstest_fails_where_the_page_says(machine, place, writer):
    """Each failing case of pjdfstest is one that docs/posix.md names and explains, and each of those fails."""
    if writer.uid != 0:
        pytest.skip("pjdfstest needs root")
    tests, prove = find_tool("pjdfstest").parent / "tests", find_tool("prove")
    if not (tests / "chown/00.t").is_file():
        pytest.skip("no tests beside pjdfstest")
    done = subprocess.run(
        [prove, "-rv", tests], cwd=place / "model", capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    failed, test = set(), ""
    for line in done.stdout.splitlines():
        if found := re.match(rf"{re.escape(str(tests))}/(\S+\.t) \.+", line):
            test = found[1]
        elif found := re.match(r"not ok (\d+)", line):
            failed.add((test, int(found[1])))
    assert "chown/00.t" in done.stdout and "Tests=" in done.stdout, done.stderr[-2000:]
    assert failed == known_failures()
