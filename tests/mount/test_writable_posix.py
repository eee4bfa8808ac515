"""What programs may expect of files on a writable mount, by the kernel's overlayfs and by fuse-overlayfs."""

import json
import os
import shutil
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

from kitfs import mountinfo

pytestmark = [pytest.mark.mount, pytest.mark.root]

EXERCISER = Path(__file__).with_name("exerciser.py").read_text()
KILLS = 6

MAKE_FILES = textwrap.dedent("""
    import pathlib, random, sys
    top, rng = pathlib.Path(sys.argv[1]), random.Random(7)
    for name in ("data", "model"):
        (top / name).mkdir(parents=True)
    for number in range(60):
        name = f"kept{number}" if number % 3 == 0 else f"file{number}"
        (top / "data" / name).write_bytes(rng.randbytes(rng.randrange(200_000)))
    for name in ("old", "lock", "linked", "vim", "sed", "gone"):
        (top / "model" / name).write_text(f"{name}: a line of the parent\\n")
    (top / "Kitfile").write_text(
        "manifestVersion: 1.0.0\\npackage: {name: t}\\n"
        "datasets: [{name: d, path: data}]\\nmodel: {name: m, path: model}\\n")
    """)

DIGEST = textwrap.dedent("""
    import hashlib, os, sys
    digest = hashlib.sha256()
    for name in sorted(os.listdir(sys.argv[1])):
        with open(os.path.join(sys.argv[1], name), "rb") as file:
            digest.update(name.encode() + hashlib.sha256(file.read()).digest())
    print(digest.hexdigest())
    """)

WHAT_POSIX_HAS = textwrap.dedent("""
    import ctypes, errno, fcntl, mmap, os, socket, stat, sys
    os.chdir(sys.argv[1] + "/model")
    with open("t", "w") as file:
        file.write("t")
    os.link("linked", "second")
    with open("second", "a") as file:
        file.write("more")
    assert open("linked").read() == open("second").read() and os.stat("linked").st_nlink == 2
    assert os.path.samefile("linked", "second")
    os.setxattr("t", "user.note", b"value")
    assert os.getxattr("t", "user.note") == b"value" and "user.note" in os.listxattr("t")
    os.symlink("t", "s")
    assert os.readlink("s") == "t"
    os.mkfifo("fifo")
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    assert stat.S_ISSOCK(os.stat("socket").st_mode)
    for lock, name in ((fcntl.flock, "lock"), (fcntl.lockf, "t")):
        held = open(name, "r+b")
        lock(held, fcntl.LOCK_EX)
        pid = os.fork()
        if pid == 0:
            try:
                lock(open(name, "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, name
    os.utime("lock", ns=(1_234_567_891, 2_345_678_912))
    assert (os.stat("lock").st_atime_ns, os.stat("lock").st_mtime_ns) == (1_234_567_891, 2_345_678_912)
    inode = os.stat("gone").st_ino
    held = open("gone")
    os.unlink("gone")
    assert held.read().startswith("gone") and not os.path.exists("gone")
    """)

DIFFERENCES = textwrap.dedent("""
    import errno, json, mmap, os, sys

    def link_unnamed():
        here, fd = os.open(".", os.O_RDONLY), os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"unnamed")
        os.link(f"/proc/self/fd/{fd}", "named", src_dir_fd=here, follow_symlinks=True)
        return open("named").read()

    def rename_directory():
        os.rename("data", "renamed")
        return f"{len(os.listdir('renamed'))} files, then {os.path.exists('data')}"

    def tell(function):
        try:
            return function()
        except OSError as error:
            return errno.errorcode[error.errno]

    os.chdir(sys.argv[1])
    early = os.open("model/old", os.O_RDONLY)
    mapped = mmap.mmap(early, 0, access=mmap.ACCESS_READ)
    assert mapped[:3] == b"old"
    with open("model/old", "r+b") as file:
        file.write(b"NEW")
    assert open("model/old", "rb").read(3) == b"NEW"
    seen = {"early map": mapped[:3].decode(), "early descriptor": os.pread(early, 3, 0).decode()}
    print(json.dumps(seen | {"unnamed": tell(link_unnamed), "directory": tell(rename_directory)}))
    """)

BY_KERNEL = {"early map": "old", "early descriptor": "NEW", "unnamed": "unnamed", "directory": "60 files, then False"}
BY_FUSE = {"early map": "NEW", "early descriptor": "NEW", "unnamed": "ENOTSUP", "directory": "EXDEV"}

SAVE_TENSORS = textwrap.dedent("""
    import sys
    import numpy, safetensors.numpy
    path = sys.argv[1] + "/model/old"
    for value in (1, 2):
        safetensors.numpy.save_file({"w": numpy.full((300, 300), value, "float32")}, path)
        assert (safetensors.numpy.load_file(path)["w"] == value).all()
    """)

SAVES = {
    "sed": "sed -i s/parent/child/ model/sed; grep -q child model/sed",
    "mv": "cp -p model/vim model/.vim.swp; echo edited > model/4913; mv model/vim model/vim~; mv model/4913 model/vim;"
    "rm model/vim~ model/.vim.swp; grep -q edited model/vim",
    "cp": "cp --reflink=auto data/kept0 data/copy; cmp data/kept0 data/copy; cp -a data/kept3 data/a;"
    "cmp data/a data/kept3",
    "sqlite3": "sqlite3 data/db 'PRAGMA journal_mode=wal; CREATE TABLE t(x);"
    "INSERT INTO t SELECT value FROM generate_series(1,1000)';"
    "test $(sqlite3 data/db 'SELECT count(*) FROM t') = 1000; test $(sqlite3 data/db 'PRAGMA integrity_check') = ok",
    "git": "git init -q .; git add .; git -c user.name=n -c user.email=e commit -qm m; git fsck --strict;"
    'test -z "$(git status --porcelain)"; rm -rf .git',
    "tar": "tar cf - data | tar xf - -C model; diff -r data model/data",
}


def run(writer, *command: object) -> str:
    """What a command of the writer's prints; it must end well."""
    done = subprocess.run(
        [*writer.prefix, *map(str, command)],
        env=writer.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.strip()


def python(writer, script: str, *arguments: object) -> str:
    """What a Python of the writer's prints."""
    return run(writer, writer.interpreter, "-c", script, *arguments)


@pytest.fixture
def place(writer):
    """Where ``many:1``, with sixty files in ``data`` and some in ``model``, is mounted writable."""
    writer.python(MAKE_FILES, writer.folder / "many")
    writer.run("pack", writer.folder / "many", "-t", "many:1")
    return writer.mount_writable(reference="many:1")


@pytest.fixture
def by_kernel(place) -> bool:
    """Whether the overlay is the kernel's, and not fuse-overlayfs."""
    (kind,) = (one.mount.kind for one in mountinfo.find_overlays() if one.mount.mountpoint == place)
    return kind == mountinfo.KERNEL_OVERLAY


@pytest.fixture
def listing(by_kernel) -> list[str]:
    """What the exerciser is told besides: to list the directory, on fuse-overlayfs."""
    return [] if by_kernel else ["list"]


def test_any_changes_leave_what_was_written(writer, place, listing):
    """After 1000 changes and looks of every kind each file holds what it must, mounted again too."""
    begun, after, steps = python(writer, EXERCISER, place / "data", 1, 1000, *listing).split()
    assert (begun, steps) == ("begun", "1000")
    writer.run("umount", place)
    writer.mount_writable(reference="many:1")
    assert python(writer, DIGEST, place / "data") == after


def test_a_program_that_changes_files_does_not_notice_that_workers_are_killed(writer, place, listing, wait_for_end):
    """Six SIGKILLs of the worker below an overlay: no error and no wrong byte, before and after files are copied up."""
    command = [*writer.prefix, writer.interpreter, "-c", EXERCISER, str(place / "data"), "2", "0", *listing]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=writer.environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as exerciser:
        assert exerciser.stdout.readline() == "begun\n"
        for _ in range(KILLS):
            worker = worker_of(writer)
            os.kill(worker, signal.SIGKILL)
            wait_for_end(worker)
            python(writer, DIGEST, place / "model")
        said, wrong = exerciser.communicate(timeout=60)
    assert exerciser.returncode == 0, wrong
    assert int(said.split()[1]) > 1
    (state,) = writer.states()
    assert state.restarts == KILLS


def worker_of(writer) -> int:
    """The pid of the only mount's worker, once there is one that answers."""
    while True:
        (state,) = writer.states()
        if state.pid and state.state != "starting":
            return state.pid


def test_what_programs_use_besides_reading_and_writing(writer, place, by_kernel):
    """Links, xattrs, fifos, sockets, locks and times are as on a disk; what differs is what docs/posix.md names."""
    python(writer, WHAT_POSIX_HAS, place)
    assert json.loads(python(writer, DIFFERENCES, place)) == (BY_KERNEL if by_kernel else BY_FUSE)


def test_programs_save_as_on_any_disk(writer, place):
    """What sed, an editor, cp, sqlite, git, tar and safetensors write over the parent's files is what is read back."""
    for program, commands in SAVES.items():
        if shutil.which(program) is not None:
            run(writer, "sh", "-ec", f"cd {place}; {commands}")
    python(writer, SAVE_TENSORS, place)
