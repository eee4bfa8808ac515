"""How a daemon starts, that there is one per store, and how it ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kitfs import client
from kitfs.control import DaemonUnreachable, SocketUntrusted, socket_path

ENSURE = (
    "import sys; from pathlib import Path; from kitfs import client\n"
    "print(client.ensure_daemon(Path(sys.argv[1]), None).ping().pid)"
)


def test_of_many_commands_at_once_one_starts_the_daemon(home, stopped_after):
    """Sixteen processes that find no daemon end up with the same one."""
    command = [sys.executable, "-c", ENSURE, str(home)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    pids = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(pids) == 1
    assert int(pids.pop()) == client.ensure_daemon(home, None).ping().pid


def test_a_daemon_is_detached_from_whoever_started_it(daemon):
    """Own session, folder ``/``, no descriptor beside its own; log beside the socket, whose folder it watches."""
    pid = daemon.ping().pid
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    targets = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(str(Path(f"/proc/{pid}/fd/{number}").readlink()))
    files = [target for target in targets if target.startswith("/") and not target.startswith("/dev/null")]
    log = str(daemon.path.with_suffix(".log"))
    assert sorted(set(files)) == sorted({log, str(daemon.path.parent), str(Path(daemon.ping().home))})


def test_descriptors_of_a_command_are_not_inherited(home, stopped_after):
    """A pipe that whoever calls kitfs left inheritable closes when the command ends, not when the daemon does."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    subprocess.run([sys.executable, "-c", ENSURE, str(home)], pass_fds=[writer], check=True, timeout=60)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b""


def foreground(home: Path, socket_at: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``kitfs daemon --foreground`` to its end."""
    options = ["--home", str(home), *(["--socket", str(socket_at)] if socket_at else []), "daemon", "--foreground"]
    command = [sys.executable, "-c", "from kitfs.cli.main import main; main()", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_store_has_one_daemon(daemon, home, runtime):
    """A second one, at another socket, is refused by name: exit code 7."""
    second = foreground(home, runtime / "other.sock")
    assert second.returncode == 7
    assert "another daemon serves the store" in second.stderr
    daemon.ping()


def test_a_daemon_in_the_foreground_answers_and_ends_with_the_terminal(home, runtime, stopped_after):
    """SIGINT ends it with exit code 0, and its zygote with it."""
    command = [sys.executable, "-c", "from kitfs.cli.main import main; main()", "--home", str(home), "daemon"]
    with subprocess.Popen([*command, "--foreground"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        running = client.find_daemon(home, None)
        assert running is not None and running.ping().pid == process.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_and_its_socket(daemon, wait_for_end, number):
    """Nothing is left at the socket's place, and no zygote."""
    pid = daemon.ping().pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, number)
    wait_for_end(pid)
    assert not daemon.path.exists()
    assert children
    for child in children:
        wait_for_end(int(child))


def test_stop_waits_for_the_end(daemon, home):
    """After ``stop`` there is no daemon."""
    daemon.stop()
    assert client.find_daemon(home, None) is None


def test_a_daemon_without_mounts_ends_itself(home, stopped_after, wait_for_end, monkeypatch):
    """After its idle time; the next command starts another."""
    monkeypatch.setenv(client.IDLE_VARIABLE, "0.3")
    pid = client.ensure_daemon(home, None).ping().pid
    wait_for_end(pid)
    assert not socket_path(home).exists()
    assert client.ensure_daemon(home, None).ping().pid != pid


def test_the_socket_of_a_killed_daemon_is_replaced(daemon, home, wait_for_end):
    """kill -9 leaves a socket that nobody listens at."""
    pid = daemon.ping().pid
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert daemon.path.exists()
    assert client.ensure_daemon(home, None).ping().pid != pid


@pytest.mark.parametrize("kind", ["symlink", "file", "folder"])
def test_something_else_at_the_place_of_the_socket_is_left_alone_and_named(home, runtime, stopped_after, kind):
    """Neither client nor daemon uses, follows or removes it."""
    path = socket_path(home)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "symlink":
            listener.bind(str(runtime / "trap"))
            listener.listen()
            path.symlink_to(runtime / "trap")
        elif kind == "file":
            path.write_text("mine")
        else:
            path.mkdir()
        with pytest.raises(SocketUntrusted):
            client.ensure_daemon(home, None)
        second = foreground(home)
        assert second.returncode == 8
        assert "taken by something" in second.stderr
        assert path.is_symlink() == (kind == "symlink") and path.exists()


def test_a_daemon_that_can_not_start_says_why(home, runtime, stopped_after):
    """The reason reaches whoever waits for it."""
    with pytest.raises(DaemonUnreachable, match="No such file"):
        client.ensure_daemon(home, runtime / "absent" / "x.sock")


def test_a_dead_zygote_is_followed_by_another(daemon, wait_for_end):
    """The daemon notices and goes on."""
    pid = daemon.ping().pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    (zygote,) = children.read_text().split()
    os.kill(int(zygote), signal.SIGKILL)
    wait_for_end(int(zygote))
    daemon.ping()
    assert [child for child in children.read_text().split() if child != zygote]
