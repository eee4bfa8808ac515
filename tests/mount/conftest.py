"""A machine with one store: a small ModelKit, the real command line, a daemon; and the check that nothing is left."""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kitfs
from kitfs import client, mountinfo, mounting
from kitfs.calls import MountState
from kitfs.control import DaemonUnreachable, socket_path
from kitfs.digest import Digest

WEIGHTS = random.Random(1).randbytes(8 << 20)
"""The model of the ModelKit ``myllm:1``, at ``weights.bin``."""

RUN = "from kitfs.cli.main import main; main()"
TIMEOUT_S = 60
NOBODY = 65534


def _blob(layout: Path, media_type: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def make_layout(folder: Path) -> Path:
    """An OCI layout with one ModelKit, tag ``1``: a model of one file in a plain tar."""
    return write_layout(folder, make_tar({"weights.bin": WEIGHTS})[: len(WEIGHTS) + 1536], "tar", "weights.bin")


def make_tar(files: dict[str, bytes]) -> bytes:
    """A tar of some files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def write_layout(folder: Path, published: bytes, kind: str, path: str) -> Path:
    """An OCI layout with one ModelKit, tag ``1``: a model of one layer, a ``tar`` or a ``tar+gzip``."""
    layer = _blob(folder, f"application/vnd.kitops.modelkit.model.v1.{kind}", published)
    kitfile = {"manifestVersion": "1.0.0", "package": {"name": "t"}, "model": {"name": "m", "path": path}}
    config = _blob(folder, "application/vnd.kitops.modelkit.config.v1+json", json.dumps(kitfile).encode())
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [layer]}
    descriptor = _blob(folder, manifest_type, json.dumps(manifest).encode())
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def wait_for_end(pid: int, timeout_s: float = 30.0) -> None:
    """Wait until a process is gone; it need not be a child."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], timeout_s)[0], f"process {pid} does not end"
    finally:
        os.close(process)


class Machine:
    """Runs the real command line against one store of its own."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.uid = os.geteuid()
        self.prefix: list[str] = []
        self.interpreter = sys.executable
        self.environment = {
            **os.environ,
            "KITFS_HOME": str(self.home),
            "KITOPS_HOME": str(folder / "no-kit"),
            "XDG_RUNTIME_DIR": str(runtime),
        }
        self.environment.pop("KITFS_SOCKET", None)

    def command(self, *arguments: object) -> list[str]:
        """The command line of a verb."""
        return [*self.prefix, self.interpreter, "-c", RUN, *map(str, arguments)]

    def run(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a verb and check its exit code; no traceback ever reaches a user."""
        command = self.command(*arguments)
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as expired:
            pytest.fail(f"{arguments} took {TIMEOUT_S} s: {expired.stderr!r}\n{self.describe()}")
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def python(self, script: str, *arguments: object) -> str:
        """What a Python of the same user prints."""
        command = [*self.prefix, self.interpreter, "-c", script, *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def describe(self) -> str:
        """What each process waits for, and what the daemon has logged: for a command that hangs."""
        lines = []
        for pid in self.processes():
            for task in Path(f"/proc/{pid}/task").glob("*"):
                with contextlib.suppress(OSError):
                    seen = [(task / name).read_text() for name in ("comm", "wchan", "stack")]
                    lines.append(" ".join([task.name, *seen]))
        for folder, _, names in os.walk(self.environment["XDG_RUNTIME_DIR"]):  # a dead lower mount is passed over
            lines += [Path(folder, name).read_text()[-4000:] for name in names if name.endswith(".log")]
        return "\n".join(lines)

    def mount(self, name: str = "mnt", reference: str = "myllm:1", *options: str) -> Path:
        """Mount, and the mount point."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        self.run("mount", *options, reference, place)
        return place

    @property
    def client(self) -> client.Client:
        """The daemon, which must run."""
        runtime = {"XDG_RUNTIME_DIR": self.environment["XDG_RUNTIME_DIR"]}
        return client.Client(socket_path(self.home, environ=runtime, uid=self.uid))

    def states(self) -> list[MountState]:
        """What the daemon serves."""
        return self.client.list_mounts()

    def processes(self) -> list[int]:
        """Daemon, zygotes and workers: whatever has our store in its first environment."""
        found = []
        mark = f"KITFS_HOME={self.home}\0".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def kill_all(self) -> None:
        """End whatever serves our mounts, at once: all are stopped first, for any of them starts those that die."""
        stopped: set[int] = set()
        while new := set(self.processes()) - stopped:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= new
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in stopped:
            wait_for_end(pid)

    def mounts(self) -> list[mounting.KitfsMount]:
        """Mounts below our folder."""
        return [mounted for mounted in mounting.find_mounts() if self.folder in mounted.mountpoint.parents]

    def all_mounts(self) -> list[mountinfo.MountLine]:
        """Whatever is mounted below our folder, or below the runtime directory, where lower layers lie."""
        folders = {self.folder, Path(self.environment["XDG_RUNTIME_DIR"])}
        return [line for line in mountinfo.read_mounts() if folders & set(line.mountpoint.parents)]

    def sessions(self) -> list[Path]:
        """Session records on disk."""
        return sorted((self.home / "sessions").glob("*.json"))

    def close(self) -> None:
        """Unmount lazily, end the daemon, and check that no mount and no process is left."""
        for line in reversed(self.all_mounts()):
            detach = ["umount", "-l"] if line.kind == mountinfo.KERNEL_OVERLAY else ["fusermount3", "-u", "-z"]
            subprocess.run([*detach, str(line.mountpoint)], check=False)
        with contextlib.suppress(DaemonUnreachable):
            os.kill(self.client.ping().pid, signal.SIGTERM)
        for pid in self.processes():
            try:
                wait_for_end(pid)
            except AssertionError:
                os.kill(pid, signal.SIGKILL)
                raise
        assert self.all_mounts() == []


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with ``myllm:1``."""
    folder = tmp_path_factory.mktemp("layout") / "myllm"
    folder.mkdir()
    return make_layout(folder)


def check_usable() -> None:
    """Skip where no FUSE file system can be mounted."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None:
        pytest.skip("FUSE is not usable here")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Machine]:
    """A machine with an empty store below a folder; ended and checked in the end."""
    runtime = Path(tempfile.mkdtemp(prefix="kitfs-run-"))
    made = Machine(folder, runtime)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture
def machine(tmp_path: Path, layout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A store that has ``myllm:1``; no daemon yet."""
    check_usable()
    with running(tmp_path) as made:
        monkeypatch.setenv("XDG_RUNTIME_DIR", made.environment["XDG_RUNTIME_DIR"])
        made.run("import", layout)
        yield made


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that the tests of a module share, its store empty at first."""
    check_usable()
    with running(tmp_path_factory.mktemp("workshop")) as made:
        yield made


@pytest.fixture
def import_gzip(machine: Machine, tmp_path: Path) -> Callable[[str, dict[str, bytes]], Digest]:
    """``import_gzip(name, files)``: ``name:1`` is a ModelKit with the files in one gzip layer; the layer's digest."""

    def run(name: str, files: dict[str, bytes]) -> Digest:
        published = gzip.compress(make_tar(files), 1, mtime=0)
        folder = tmp_path / name
        folder.mkdir()
        write_layout(folder, published, "tar+gzip", ".")
        machine.run("import", folder)
        return Digest.of(published)

    return run


@pytest.fixture
def open_device() -> Iterator[None]:
    """/dev/fuse as udev makes it: 0666. Locked meanwhile, so that test runs at the same time do not undo it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    device = os.open("/dev/fuse", os.O_RDONLY)
    try:
        fcntl.flock(device, fcntl.LOCK_EX)
        mode = os.fstat(device).st_mode & 0o777
        os.chmod("/dev/fuse", 0o666)
        yield
        os.chmod("/dev/fuse", mode)
    finally:
        os.close(device)


def interpreter_for(prefix: list[str], environment: dict[str, str]) -> str:
    """A Python that another user can run with our packages; ours may lie in a folder that only we can enter."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        if os.access(candidate, os.X_OK):
            command = [*prefix, "env", "--", candidate, "-c", "import sys, kitfs.fuse.worker; print(sys.executable)"]
            tried = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if tried.returncode == 0:
                return tried.stdout.strip()
    pytest.skip("no Python that another user can run")


@pytest.fixture
def as_nobody(machine, layout, open_device):
    """The machine's store made anew by a user without privilege, in folders of that user."""
    folder = Path(tempfile.mkdtemp(prefix="kitfs-nobody-"))
    copied = folder / "myllm"
    subprocess.run(["cp", "-r", str(layout), str(copied)], check=True)
    for name in ("run", "user"):
        (folder / name).mkdir(mode=0o700)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    machine.folder, machine.uid = folder / "user", NOBODY
    machine.home = folder / "user" / "home"
    machine.prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
    machine.environment |= {"KITFS_HOME": str(machine.home), "HOME": str(folder)}
    machine.environment["XDG_RUNTIME_DIR"] = str(folder / "run")
    packages = [str(Path(kitfs.__file__).parent.parent), sysconfig.get_paths()["purelib"]]
    machine.environment["PYTHONPATH"] = os.pathsep.join(packages)
    machine.interpreter = interpreter_for(machine.prefix, machine.environment)
    machine.run("import", copied)
    yield machine
    machine.close()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


MAKE_KIT = Path(__file__).with_name("make_kit.py").read_text()

LIST = textwrap.dedent("""
    import pathlib, sys
    top = pathlib.Path(sys.argv[1])
    for path in sorted(top.rglob("*")):
        if ".kitfs" not in path.parts and not path.is_symlink():
            print(path.relative_to(top), path.read_bytes()[:2000].hex() if path.is_file() else "/")
    """)


class Writer:
    """The command line of root or of a user; ``kit:1`` is a ModelKit with a model, a dataset and docs."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.python(MAKE_KIT, machine.folder / "src")
        machine.run("pack", machine.folder / "src", "-t", "kit:1")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)

    def place(self, name: str = "mnt") -> Path:
        """A directory of the user's."""
        place = self.machine.folder / name
        self.machine.python("import os, sys; os.makedirs(sys.argv[1], exist_ok=True)", place)
        return place

    def mount_writable(self, *options: object, name: str = "mnt", reference: str = "kit:1") -> Path:
        """Mount writable, and the mount point."""
        place = self.place(name)
        self.machine.run("mount", reference, place, "--writable", *options)
        return place

    def listing(self, place: Path) -> str:
        """What lies below a directory, with its bytes."""
        return self.machine.python(LIST, place)

    def staging_list(self) -> list[dict[str, Any]]:
        """What ``kitfs staging list`` says."""
        return json.loads(self.machine.run("staging", "list", "--format", "json").stdout)

    def write(self, path: Path, text: str) -> None:
        """Write a file."""
        self.machine.python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", path, text)


@pytest.fixture
def used_by(request: pytest.FixtureRequest, machine: Machine) -> Callable[[str], Machine]:
    """The machine of who mounts writable: ``root`` with the kernel's overlayfs, or a ``user`` with fuse-overlayfs."""

    def choose(who: str) -> Machine:
        if os.geteuid() != 0 or (who == "user" and shutil.which("fuse-overlayfs") is None):
            pytest.skip("needs root, and fuse-overlayfs for a user")
        return request.getfixturevalue("as_nobody") if who == "user" else machine

    return choose


@pytest.fixture(params=["root", "user"])
def writer(request: pytest.FixtureRequest, used_by: Callable[[str], Machine]) -> Writer:
    """Who mounts writable."""
    return Writer(used_by(request.param))


@pytest.fixture
def weights() -> bytes:
    """What ``weights.bin`` holds."""
    return WEIGHTS


@pytest.fixture(name="wait_for_end")
def wait_for_end_fixture() -> object:
    """``wait_for_end(pid)``."""
    return wait_for_end
