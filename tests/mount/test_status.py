"""``kitfs status``: what it says with and without a daemon, and what --watch does on a pipe and on a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from kitfs import __version__

pytestmark = pytest.mark.mount
TIMEOUT_S = 60
LOOKS_MAX = 300


@pytest.fixture(autouse=True)
def served(machine) -> None:
    """Workers serve all that is read: what the kernel reads by itself is not counted."""
    machine.environment["KITFS_NO_PASSTHROUGH"] = "1"


def ask(machine, *, status: int = 0) -> dict:
    return json.loads(machine.run("status", "--format", "json", status=status).stdout)


def test_without_a_daemon_the_rest_is_shown(machine, wait_for_end):
    """Exit code 8: the store is described, what is wanted is absent, and no daemon is started by looking."""
    report = ask(machine, status=8)
    assert report["daemon"] is None and report["mounts"] == []
    store = report["store"]
    assert (store["modelkits"], store["layers"]) == (1, 1) and store["size"] > 8 << 20 and store["disk_free"] > 0
    assert machine.processes() == []
    place = machine.mount("mnt", "myllm:1", "--wanted")
    subprocess.run(["umount", str(place)], check=True)
    machine.run("daemon", "stop")
    assert [(one["mountpoint"], one["state"]) for one in ask(machine, status=8)["mounts"]] == [(str(place), "absent")]
    assert "none runs" in machine.run("status", status=8).stdout


def test_without_a_store_it_says_so(machine, tmp_path):
    """And makes none."""
    home = tmp_path / "nothing"
    assert "not made yet" in machine.run("--home", home, "status", status=8).stdout
    assert not home.exists()


def test_daemon_mounts_and_store_are_described(machine, weights):
    """Version, processes, counters that say what was read, and a table with the same."""
    place = machine.mount()
    assert (place / "weights.bin").read_bytes() == weights
    report = ask(machine)
    daemon, (mount,) = report["daemon"], report["mounts"]
    assert daemon["version"] == __version__ and daemon["degraded"] == [] and daemon["metrics"] == ""
    assert {daemon["pid"], daemon["zygote"], mount["pid"]} == set(machine.processes())
    assert mount["opens"] == 1 and mount["errors"] == mount["restarts"] == 0
    out = machine.run("status").stdout
    assert [line.split()[0] for line in out.split("\n\n")[1].splitlines()] == ["REFERENCE", "myllm:1"]
    for text in (f"process {daemon['pid']}", __version__, daemon["socket"], str(place), str(machine.home)):
        assert text in out
    assert "READS/S" not in out
    assert machine.run("status", "-q").stdout == ""


def test_counters_go_on_when_the_worker_is_replaced(machine, weights, wait_for_end):
    """What was done before a kill is in ``ps`` right after it, and what comes is added; so for three workers."""
    place = machine.mount()
    for kills in range(3):
        descriptor = os.open(place / "weights.bin", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(os.pread(descriptor, 1 << 20, kills << 20)) == 1 << 20
        os.close(descriptor)
        (before,) = machine.states()
        assert before.restarts == kills and before.bytes_read >= (kills + 1) << 20 and before.opens == kills + 1
        os.kill(before.pid, signal.SIGKILL)
        wait_for_end(before.pid)
        (state,) = machine.states()
        assert (state.bytes_read, state.reads, state.opens) == (before.bytes_read, before.reads, before.opens)
        os.listdir(place)


def test_a_daemon_that_is_stopped_is_no_answer(machine):
    """Neither status nor doctor waits for long; doctor names the process and the line that ends it."""
    machine.mount()
    pid = machine.client.ping().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "did not answer" in ask(machine, status=8)["error"]
        found = {one["check"]: one for one in json.loads(machine.run("doctor", "--format", "json", status=1).stdout)}
        assert (found["daemon"]["state"], found["daemon"]["mend"]) == ("fail", f"kill -9 {pid}")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ask(machine)["daemon"]["pid"] == pid


@pytest.fixture
def watch(machine) -> Iterator[subprocess.Popen[str]]:
    """``kitfs status --watch`` whose lines go to a pipe."""
    command = machine.command("status", "--watch", "--interval", "0.2")
    process = subprocess.Popen(
        command, env=machine.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate(timeout=TIMEOUT_S)


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], TIMEOUT_S)[0], "it prints nothing"
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_prints_a_line_for_each_look_and_ends_well(machine, watch, number):
    """It follows what comes and goes, a daemon too; an interrupt is its end and no failure."""
    line = next_line(watch)
    assert re.match(r"\d{4}-\d\d-\d\dT\S+ no daemon, 0 mounts, 0 restarts, 0 reads/s, 0 B/s, 0 spans/s$", line)
    machine.mount()
    assert any("no daemon" not in line and "1 mounts" in line for line in (next_line(watch) for _ in range(LOOKS_MAX)))
    machine.run("umount", "--all")
    assert any("0 mounts" in next_line(watch) for _ in range(LOOKS_MAX))
    watch.send_signal(number)
    _, err = watch.communicate(timeout=TIMEOUT_S)
    assert (watch.returncode, err) == (0, "")


def test_watch_shows_rates(machine, weights):
    """Bytes a second of what reaches the worker, as an object for each look with --format json."""
    place = machine.mount()
    command = machine.command("status", "--watch", "--interval", "0.2", "--format", "json")
    process = subprocess.Popen(command, env=machine.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert "bytes_per_second" not in json.loads(next_line(process))["mounts"][0]
        assert (place / "weights.bin").read_bytes() == weights
        assert any(json.loads(next_line(process))["mounts"][0].get("bytes_per_second") for _ in range(LOOKS_MAX))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0
    finally:
        process.kill()


def test_watch_redraws_on_a_terminal(machine):
    """The same screen again and again; Ctrl-C ends it with exit code 0 and leaves the cursor as it was."""
    machine.mount()
    terminal, inner = pty.openpty()
    environment = machine.environment | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        machine.command("status", "--watch", "--interval", "0.2"),
        stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    said = ""
    try:
        while said.count("until Ctrl-C") < 3:
            assert select.select([terminal], [], [], TIMEOUT_S)[0], said
            said += os.read(terminal, 65536).decode()
        process.send_signal(signal.SIGINT)
        with open(terminal, "rb", buffering=0, closefd=False) as rest:
            try:
                while piece := rest.read(65536):
                    said += piece.decode()
            except OSError:  # EIO: nobody has the other end
                pass
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        os.close(terminal)
    assert "\x1b[?25l" in said and said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
    assert "myllm:1" in said and "READS/S" in said and "Traceback" not in said
