"""A machine that a real systemd boots: systemd-nspawn over a copy-on-write view of this machine's root.

kitfs is installed in it from a wheel, its units by ``kitfs doctor --install-units``. Commands are run in it through
nsenter. It lies in memory; when it has been powered off nothing of it is left.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent
TIMEOUT_S = 60
READERS = 4
WHERE = "/opt/kitfs"
ENVIRONMENT = {"PATH": f"{WHERE}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}

FSTAB = """
packed:1 /mnt/fstab kitfs ro,_netdev,nofail,x-systemd.requires=kitfs.socket 0 0
kitfs /mnt/all kitfs ro,all,_netdev,x-systemd.requires=kitfs.socket 0 0
"""

CGROUPS = [Path("/sys/fs/cgroup", name) for name in ("", "systemd", "unified")]
"""Where systemd may keep its groups of processes."""

OWN_GROUP = """
name=$1; shift
for top in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ ! -e $top/cgroup.procs ] || { mkdir -p $top/$name && echo $$ >$top/$name/cgroup.procs; } || true
done
exec "$@"
"""
"""Two machines in one group would take each other's processes for their own."""

PYTHONS = (f"/usr/bin/python3.{sys.version_info.minor}", sys.executable)
"""One that every user can run comes first."""

PREPARE = textwrap.dedent(f"""
    set -eu
    for python in {" ".join(PYTHONS)}; do
        ! "$python" -c 'import venv' || break
    done
    "$python" -m venv --without-pip {WHERE}
    echo {WHERE}/packages >"$(echo {WHERE}/lib/python3.*/site-packages)/packages.pth"
    {WHERE}/bin/python -m pip --quiet --disable-pip-version-check \\
        install --ignore-installed --no-deps --no-index /opt/*.whl
    kitfs doctor --install-units
    systemctl enable remote-fs.target kitfs.socket kitfs.service kitfs-gc.timer kitfs-scrub.timer
    mkdir -p /srv/kit /mnt/fstab /mnt/all /etc/kitfs/mounts
    cd /srv/kit
    printf 'manifestVersion: 1.0.0\\npackage: {{name: t}}\\nmodel: {{name: m, path: weights.bin}}\\n' >Kitfile
    head -c 8388608 /dev/urandom >weights.bin
    kitfs pack . -t plain:1
    kitfs pack . -t packed:1 --compression gzip
    """)

READER = textwrap.dedent("""
    import mmap, os, random, select, sys
    whole = open("/srv/kit/weights.bin", "rb").read()
    rounds = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        for place in sys.argv[1:]:
            start = random.randrange(0, len(whole) - 65536, 4096)
            file = os.open(f"{place}/weights.bin", os.O_RDONLY | os.O_DIRECT)
            buffer = mmap.mmap(-1, 65536)
            assert os.preadv(file, [buffer], start) == 65536
            assert buffer[:] == whole[start : start + 65536], (place, start)
            os.close(file)
            with open(f"{place}/weights.bin", "rb") as file:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    assert mapped[start : start + 65536] == whole[start : start + 65536], (place, start)
        rounds += 1
        print(rounds, flush=True)
    """)
"""Opens, reads past the page cache, maps and closes what is mounted until it is told to end; prints its rounds."""


class Readers:
    """Processes in the machine that verify what mounts show, all the time."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self.processes = processes

    def next(self) -> None:
        """Returns when each has finished a round that began after this call: what is mounted can be read."""
        pipes = [process.stdout.fileno() for process in self.processes if process.stdout is not None]
        for pipe in pipes:
            os.set_blocking(pipe, False)
            with contextlib.suppress(BlockingIOError):
                while os.read(pipe, 4096):
                    pass
            os.set_blocking(pipe, True)
        for process, pipe in zip(self.processes, pipes, strict=True):
            rounds = 0
            while rounds < 2:
                printed = os.read(pipe, 4096)
                assert printed, process.communicate()
                rounds += printed.count(b"\n")

    def end(self) -> list[bytes]:
        """Let them end, and say what went wrong."""
        return [process.communicate(b"\n", timeout=TIMEOUT_S)[1] for process in self.processes]


class Booted:
    """A machine with systemd as its first process.

    Attributes:
        root: Its root directory, seen from here.
        leader: The pid of its systemd, here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        self.name = f"kitfs-{os.getpid()}"
        self.leader = 0
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("root", "upper", "work", "store"):
            (folder / name).mkdir()
        layers = f"lowerdir=/,upperdir={folder / 'upper'},workdir={folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", self.root], check=True)

    def command(self, *words: str) -> list[str]:
        """The command line of systemd-nspawn."""
        packages = sysconfig.get_paths()["platlib"]
        return [
            *("sh", "-c", OWN_GROUP, "sh", self.name),
            *("setpriv", "--pdeathsig", "TERM", "--"),  # should the tests be killed
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--capability=all"),
            *(
                f"--machine={self.name}",
                f"--directory={self.root}",
                "--bind=/dev/fuse",
                f"--bind-ro={packages}:{WHERE}/packages",
            ),
            f"--bind={self.folder / 'store'}:/var/lib/kitfs",  # on no overlay, where files could not be passed through
            *(f"--setenv={name}={value}" for name, value in ENVIRONMENT.items()),
            *words,
        ]

    def prepare(self, wheel: Path) -> None:
        """Nothing that is enabled here is enabled there; kitfs is installed, when the machine boots at all."""
        for name in ("etc/systemd/system", "etc/kitfs", "opt", "mnt", "srv/kit", "root/.config/kitfs"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for folder in self.root.glob("etc/rc?.d"):
            shutil.rmtree(folder)
        for name in ("etc/systemd/system", "opt", "mnt"):
            (self.root / name).mkdir(parents=True)
        (self.root / "etc/machine-id").write_text("a" * 32 + "\n")
        (self.root / "etc/fstab").write_text("")
        shutil.copy(wheel, self.root / "opt")
        if not self._start():
            pytest.skip(f"systemd does not boot here: {(self.folder / 'console').read_text()[-400:]}")
        self.power_off()
        (self.root / "etc/fstab").write_text(FSTAB)
        done = self._run_unbooted("sh", "-c", PREPARE)
        assert done.returncode == 0, done.stdout + done.stderr

    def _run_unbooted(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = self.command("--pipe", *words)
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    def boot(self) -> None:
        """Start it; returns when all of its units are up, and none has failed."""
        assert self._start(), (self.folder / "console").read_text()
        assert self.run("systemctl", "is-system-running", "--wait") == "running\n"
        assert b"cycle" not in (self.folder / "console").read_bytes()

    def _start(self) -> bool:
        """Whether systemd came up."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, open(self.folder / "console", "ab") as log:
            address = self.folder / "notify"
            address.unlink(missing_ok=True)
            listener.bind(os.fspath(address))
            self._process = subprocess.Popen(
                self.command("--boot", "--notify-ready=yes", "--console=read-only"),
                env=os.environ | {"NOTIFY_SOCKET": os.fspath(address)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            said: dict[str, str] = {}
            end = os.pidfd_open(self._process.pid)
            while "READY" not in said and listener in select.select([listener, end], [], [], TIMEOUT_S)[0]:
                said |= dict(line.split("=", 1) for line in listener.recv(4096).decode().splitlines() if line)
            os.close(end)
            self.leader = int(said.get("X_NSPAWN_LEADER_PID", "0"))
            return "READY" in said

    def wait_for_end(self) -> None:
        """Wait until it is off."""
        assert self._process is not None
        self._process.wait(TIMEOUT_S)
        self.leader = 0

    def enter(self, *words: object) -> list[str]:
        """The command line that runs something in it."""
        return ["nsenter", f"--target={self.leader}", "--mount", "--pid", "--ipc", "--uts", "--", *map(str, words)]

    def run(self, *words: object, status: int = 0) -> str:
        """Run a program in it; what it prints, errors too."""
        done = subprocess.run(
            self.enter(*words),
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{self.journal()}"
        return done.stdout

    def journal(self, unit: str = "kitfs*", *words: str) -> str:
        """What units have logged since the last boot."""
        command = self.enter("journalctl", "--boot", "--no-pager", f"--unit={unit}", *words)
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False).stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def main_pid(self) -> int:
        """The daemon's pid there; 0 for none."""
        return int(self.show("kitfs.service", "MainPID"))

    @contextlib.contextmanager
    def service(self, drop_in: str) -> Iterator[None]:
        """The service, restarted with more settings, until the block ends."""
        file = self.root / "etc/systemd/system/kitfs.service.d/test.conf"
        file.parent.mkdir(exist_ok=True)
        file.write_text(drop_in)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", "kitfs.service")
        yield
        file.unlink()
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", "kitfs.service")

    @contextlib.contextmanager
    def reading(self, *places: str) -> Iterator[Readers]:
        """Readers of mounts; nothing that they read failed."""
        command = self.enter(f"{WHERE}/bin/python", "-c", READER, *places)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started = [subprocess.Popen(command, env=ENVIRONMENT, bufsize=0, **pipes) for _ in range(READERS)]
        try:
            readers = Readers(started)
            readers.next()
            yield readers
            assert readers.end() == [b""] * READERS
        finally:
            for process in started:
                process.kill()
                process.communicate()

    def power_off(self) -> None:
        """Power it off as a key would, or kill it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self.wait_for_end()
        except subprocess.TimeoutExpired:
            if self.leader:
                os.kill(self.leader, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            raise

    def close(self) -> None:
        """Power it off and take its root away."""
        try:
            self.power_off()
        finally:
            subprocess.run(["umount", "-l", self.root], check=True)
            for top in CGROUPS:
                for group, _, _ in os.walk(top / self.name, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(group).rmdir()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kitfs as a wheel."""
    pytest.importorskip("setuptools", minversion="75")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (PROJECT / name).exists():
            shutil.copy(PROJECT / name, source)
    shutil.copytree(PROJECT / "kitfs", source / "kitfs", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def booted(wheel: Path) -> Iterator[Booted]:
    """A machine that has booted with kitfs's units enabled and a line of kitfs in its fstab."""
    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None:
        pytest.skip("needs root and systemd-nspawn")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("FUSE is not usable here")
    folder = Path(tempfile.mkdtemp(prefix="kitfs-boot-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "kitfs-boot", folder], check=False).returncode:
        folder.rmdir()
        pytest.skip("nothing can be mounted here")
    try:
        with contextlib.closing(Booted(folder)) as made:
            made.prepare(wheel)
            made.boot()
            yield made
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        folder.rmdir()


@pytest.fixture
def place(booted):
    """``place(name, reference, *words)``: mounts, and the mount point. Unmounted in the end."""
    places = []

    def mount(name: str, reference: str = "plain:1", *words: str) -> str:
        places.append(f"/mnt/{name}")
        booted.run("mkdir", "-p", places[-1])
        booted.run("kitfs", "mount", *words, reference, places[-1])
        return places[-1]

    yield mount
    for one in places:
        booted.run("kitfs", "umount", one)
