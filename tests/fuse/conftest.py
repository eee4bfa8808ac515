"""A mount in miniature: this process does what client and daemon do, others serve it and read from it.

This process holds the device, so it must never touch a path below the mount: tests read through ``Mount.run``.
"""

import ctypes
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from kitfs.calls import MountState
from kitfs.control import encode_descriptors
from kitfs.fuse import protocol
from kitfs.fuse.memory import SessionHeader, SessionMemory
from kitfs.fuse.orders import ServeOrder

TIMEOUT_S = 60.0
SAMPLE = Path(__file__).with_name("sample_view.py")
MS_RDONLY, MS_NOSUID, MS_NODEV, MNT_DETACH = 1, 2, 4, 2

libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sample_command(view: str) -> list[str]:
    """The program that serves a sample view; a worker's descriptors follow."""
    return [sys.executable, str(SAMPLE), view]


class Mount:
    """A FUSE mount, of a sample view or of what another program serves.

    Attributes:
        path: Where it is mounted; for other processes only.
        worker: The process that serves it.
        log_path: What workers have logged.
        fifo: Where a read that is stuck says so.
        session: What a worker proper serves; empty where a sample view is served.
        memory: The session's memory.
    """

    def __init__(self, path: Path, command: list[str], *, read_only: bool, log_path: Path) -> None:
        self.path = path
        self.log_path = log_path
        self.session = ""
        self.memory: SessionMemory | None = None
        self.fifo = log_path.with_suffix(".fifo")
        os.mkfifo(self.fifo)
        self._command = command
        self._control: socket.socket | None = None
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.worker: subprocess.Popen[bytes] | None = None
        try:
            self._mount(read_only)
            self.memory = self._answer_init()
        except BaseException:
            self.close()
            raise

    def _mount(self, read_only: bool) -> None:
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if read_only:
            options += ",default_permissions"
        flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if read_only else 0)
        _check(libc.mount(b"sample", os.fsencode(self.path), b"fuse.kitfs", flags, options.encode()))

    def _answer_init(self) -> SessionMemory:
        request = protocol.parse_init(os.read(self._device, protocol.INIT_BUFFER_SIZE))
        os.write(self._device, protocol.encode_init_reply(request))
        init = protocol.mask_init(request, protocol.negotiate(request))
        shown = MountState("sample", str(self.path), "sample:1", "0:1")
        return SessionMemory.create(SessionHeader(shown, init, int(request.flags), 0.0))

    def start_worker(self, *, resend: bool = False, view: str | None = None, blame: int = 1) -> None:
        """Start a process that serves the mount, and wait until it does."""
        self.launch_worker(sample_command(view) if view else self._command, resend=resend, blame=blame)
        assert self.hear() == {"ready": True}

    def launch_worker(self, command: list[str], *, resend: bool = False, blame: int = 1) -> None:
        """Start a process that serves the mount; a worker proper, if it has a session, is ordered to."""
        init_ours, init_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control, control_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(TIMEOUT_S)
        with init_ours, init_theirs, control_theirs, self.log_path.open("ab") as log:
            init_ours.send(self.memory.header.init)
            numbers = (self._device, init_theirs.fileno(), control_theirs.fileno(), self.memory.fileno())
            arguments = [*command, *map(str, numbers), str(resend), str(blame)]
            environment = {**os.environ, "SAMPLE_VIEW_STUCK_FIFO": str(self.fifo)}
            self.worker = subprocess.Popen(arguments, pass_fds=numbers, stderr=log, env=environment)
            if self.session:
                order = msgspec.json.encode(ServeOrder(self.session, resend))
                self._control.sendmsg([order], encode_descriptors([*numbers[:2], numbers[3]]))

    def hear(self) -> dict[str, object]:
        """The next thing that the worker says."""
        return json.loads(self._control.recv(4096))

    def stats(self) -> dict[str, object]:
        """The worker's counters."""
        self._control.send(b'{"stats": true}')
        return self.hear()

    def say(self, datagram: bytes) -> None:
        """Send the worker something."""
        self._control.send(datagram)

    def leave(self) -> None:
        """Close the control socket, as a daemon that dies does."""
        self._control.close()

    def kill_worker(self) -> None:
        """SIGKILL the worker and reap it."""
        os.kill(self.worker.pid, signal.SIGKILL)
        self.worker.wait(TIMEOUT_S)
        self._control.close()

    def wait_worker(self) -> int:
        """Wait until the worker has died, and its exit code."""
        code = self.worker.wait(TIMEOUT_S)
        self._control.close()
        return code

    def unmount(self) -> None:
        """Detach the mount."""
        _check(libc.umount2(os.fsencode(self.path), MNT_DETACH))

    def start(self, code: str, *arguments: object) -> subprocess.Popen[str]:
        """Run Python in a process of its own, with the mount's path as ``sys.argv[1]``."""
        command = [sys.executable, "-c", textwrap.dedent(code), str(self.path), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")

    def wait_stuck(self) -> None:
        """Wait until a worker has a read that is stuck."""
        fifo = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert select.select([fifo], [], [], TIMEOUT_S)[0]
        finally:
            os.close(fifo)

    def run(self, code: str, *arguments: object) -> str:
        """Run Python in a process of its own and return what it prints."""
        with self.start(code, *arguments) as process:
            try:
                output, errors = process.communicate(timeout=TIMEOUT_S)
            finally:
                process.kill()
        assert process.returncode == 0, errors
        return output.strip()

    def log(self) -> str:
        """What workers have logged."""
        return self.log_path.read_text()

    def close_worker(self) -> None:
        """End the worker, whatever state it is in, and what it served: readers get ENOTCONN."""
        if self.worker is not None and self.worker.poll() is None:
            self.worker.kill()
            self.worker.wait(TIMEOUT_S)
        if self._device >= 0:
            os.close(self._device)
            self._device = -1

    def close(self) -> None:
        """End the worker, the mount and the connection, whatever state they are in."""
        self.close_worker()
        libc.umount2(os.fsencode(self.path), MNT_DETACH)
        if self._control is not None:
            self._control.close()
        if self.memory is not None:
            self.memory.close()


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    """The module of the sample view: names, sizes, contents."""
    spec = importlib.util.spec_from_file_location("sample_view", SAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[Callable[..., Mount]]:
    """Makes mounts of a sample view, served by a worker unless ``served`` is false."""
    if os.getuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    mounts: list[Mount] = []

    def make(
        view: str = "sample",
        *,
        command: list[str] | None = None,
        session: str = "",
        read_only: bool = True,
        served: bool = True,
    ) -> Mount:
        path = tmp_path / f"mnt{len(mounts)}"
        path.mkdir()
        log_path = tmp_path / f"worker{len(mounts)}.log"
        mount = Mount(path, command or sample_command(view), read_only=read_only, log_path=log_path)
        mounts.append(mount)
        mount.session = session
        if served:
            mount.start_worker()
        return mount

    yield make
    for mount in mounts:
        mount.close()


@pytest.fixture
def mount(make_mount: Callable[..., Mount]) -> Mount:
    """A read-only mount of the sample view."""
    return make_mount()
