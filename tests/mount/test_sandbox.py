"""What the daemon and its workers do is what the service's unit allows: all their system calls are looked at."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitfs.cli.units import iter_units

pytestmark = pytest.mark.mount

START_S = 60


def unit() -> str:
    return dict(iter_units())["kitfs.service"]


def allowed_calls() -> set[str]:
    """What ``SystemCallFilter`` leaves, as this systemd knows its groups of system calls."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    groups: dict[str, set[str]] = {}
    name = ""
    for line in listed.splitlines():
        if line.startswith("@"):
            name = line.strip()
            groups[name] = set()
        elif line.startswith("    ") and not line.strip().startswith("#"):
            groups[name].add(line.strip())

    def expand(word: str) -> set[str]:
        return set().union(*map(expand, groups[word])) if word in groups else {word}

    allowed: set[str] = set()
    for value in re.findall(r"^SystemCallFilter=(.*)$", unit(), flags=re.M):
        words = set().union(*map(expand, value.removeprefix("~").split()))
        allowed = allowed - words if value.startswith("~") else allowed | words
    return allowed


@pytest.fixture
def traced(machine, tmp_path: Path) -> Iterator[Path]:
    """A daemon in the foreground whose system calls, and those of its children, are written to a file."""
    if shutil.which("strace") is None or shutil.which("systemd-analyze") is None:
        pytest.skip("strace or systemd-analyze is absent")
    log = tmp_path / "calls"
    command = ["strace", "-f", "-qq", "-s", "0", "-o", str(log), "--signal=none"]
    command += ["setpriv", "--no-new-privs", "--bounding-set=-all,+sys_admin"] if os.geteuid() == 0 else []
    process = subprocess.Popen([*command, *machine.command("daemon", "--foreground")], env=machine.environment)
    try:
        deadline_s = time.monotonic() + START_S
        while not list(Path(machine.environment["XDG_RUNTIME_DIR"]).rglob("*.sock")):
            assert time.monotonic() < deadline_s and process.poll() is None
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_S)


def test_daemon_and_workers_keep_to_what_the_unit_allows(machine, traced, import_gzip, weights):
    """Mounting, reading plain and gzip layers, materialising, failover and unmounting need no call that is filtered."""
    import_gzip("packed", {"weights.bin": weights})
    place = machine.mount()
    packed = machine.mount("packed-mnt", "packed:1", "-o", "materialise=always")
    machine.run("prefetch", "packed:1")
    for directory in (place, packed):
        assert (directory / "weights.bin").read_bytes() == weights
    machine.run("ps")
    (worker, *_) = [state.pid for state in machine.states()]
    os.kill(worker, signal.SIGKILL)
    assert os.listdir(place)
    machine.run("umount", "--all")
    machine.run("daemon", "stop")
    lines = traced.read_text().splitlines()
    calls = {found[1] for line in lines if (found := re.match(r"\d+ +(\w+)\(", line))}
    assert {"capset", "prlimit64", "sendmsg", "pwrite64"} <= calls
    assert calls - allowed_calls() == set()
    families = {found[1] for line in lines if (found := re.search(r"\bsocket\((\w+)", line))}
    assert families == {"AF_UNIX"}
    assert [line for line in lines if re.search(r"\bm(map|protect)\(.*PROT_WRITE\|PROT_EXEC", line)] == []
    written = {
        found[1] for line in lines if (found := re.search(r'open(?:at2?)?\(.*"(/.*)", .*O_(?:WRONLY|RDWR|CREAT)', line))
    }
    places = (str(machine.home), machine.environment["XDG_RUNTIME_DIR"], "/dev/null", "/proc/self/", "/dev/fd/")
    assert written and [path for path in written if not path.startswith(places)] == []
    assert [line for line in lines if re.search(r"\b(pkey_)?mprotect\(.*PROT_EXEC", line)] == []
