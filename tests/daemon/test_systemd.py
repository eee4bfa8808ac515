"""The daemon as a service: what it tells the service manager, and the socket that it is given."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs import client
from kitfs.control import socket_path

RUN = "from kitfs.cli.main import main; main()"
PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""
ANSWER_S = 30


class Systemd:
    """What systemd is to a service: hears its notifications, passes a socket."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.home = home
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.socket.settimeout(ANSWER_S)
        self.environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *before: str, passed: tuple[int, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """Start the daemon as a service."""
        command = [*before, sys.executable, "-c", RUN, "--home", str(self.home), "daemon", "--foreground"]
        process = subprocess.Popen(
            command, env=self.environment | environment, pass_fds=passed, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def hear(self) -> str:
        """The next notification."""
        return self.socket.recv(4096).decode()

    def close(self) -> None:
        """End what was started."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.socket.close()


@pytest.fixture
def manager(home: Path, runtime: Path) -> Iterator[Systemd]:
    """A service manager of ``home``'s daemon."""
    made = Systemd(runtime, home)
    yield made
    made.close()


@pytest.fixture
def listen(home: Path, runtime: Path) -> Iterator[Callable[[Path], socket.socket]]:
    """``listen(path)``: a listening socket, as that of a socket unit."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:

        def bind(path: Path) -> socket.socket:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            listener.bind(str(path))
            listener.listen()
            return listener

        yield bind


def test_service_tells_when_it_can_serve_and_when_it_ends(manager, home):
    """READY once, after it answers; then the watchdog's word again and again; STOPPING at SIGTERM."""
    process = manager.start(WATCHDOG_USEC="200000")
    assert manager.hear() == "READY=1"
    running = client.find_daemon(home, None)
    assert running is not None and running.ping().pid == process.pid
    assert [manager.hear() for _ in range(3)] == ["WATCHDOG=1"] * 3
    process.send_signal(signal.SIGTERM)
    said = manager.hear()
    while said == "WATCHDOG=1":
        said = manager.hear()
    assert said == "STOPPING=1"
    assert process.wait(ANSWER_S) == 0
    assert client.find_daemon(home, None) is None


def test_service_without_a_watchdog_says_ready_alone(manager):
    """No word is sent that was not asked for, nor for another process's watchdog."""
    process = manager.start(WATCHDOG_USEC="1000", WATCHDOG_PID="1")
    assert manager.hear() == "READY=1"
    process.send_signal(signal.SIGTERM)
    assert manager.hear() == "STOPPING=1"


def test_children_do_not_speak_for_the_service(manager):
    """Nothing of the service manager is in the environment of the zygote, nor is its socket open there."""
    process = manager.start(WATCHDOG_USEC="30000000")
    assert manager.hear() == "READY=1"
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert not re.search(rb"NOTIFY_SOCKET|WATCHDOG|LISTEN_", Path(f"/proc/{child}/environ").read_bytes())


def test_socket_that_is_passed_is_used_and_left(manager, home, listen):
    """Who connects before there is a daemon is answered; the socket is there for the next one."""
    path = socket_path(home)
    listener = listen(path)
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(str(path))
            process = manager.start(sys.executable, "-c", PASS, str(listener.fileno()), passed=(listener.fileno(),))
            assert manager.hear() == "READY=1"
            assert client.Client(path).ping().pid == process.pid
        process.send_signal(signal.SIGTERM)
        assert manager.hear() == "STOPPING=1"
        assert process.wait(ANSWER_S) == 0
        assert path.is_socket()


def test_socket_of_another_store_is_refused(manager, home, runtime, listen):
    """A socket unit that does not fit the store is named: exit code 8."""
    listener = listen(runtime / "other.sock")
    process = manager.start(sys.executable, "-c", PASS, str(listener.fileno()), passed=(listener.fileno(),))
    _, said = process.communicate(timeout=ANSWER_S)
    assert process.returncode == 8 and "other.sock" in said


def test_daemon_of_a_command_is_no_service(home, manager, stopped_after, monkeypatch):
    """One that a command of some service starts in the background tells that service's manager nothing."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.environment["NOTIFY_SOCKET"])
    client.ensure_daemon(home, None).stop()
    manager.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.hear()
