"""A daemon in another mount namespace, and a daemon of a user without privilege."""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

import kitfs

pytestmark = [pytest.mark.mount, pytest.mark.root]

NOBODY = 65534


@pytest.fixture(autouse=True)
def needs_root():
    if os.geteuid() != 0:
        pytest.skip("needs root")


def test_a_daemon_in_a_private_namespace_serves_a_mount_of_the_hosts(machine, weights):
    """The mount is visible where it was asked for, and not where it is served."""
    command = ["unshare", "--mount", "--propagation", "private", *machine.command("daemon", "--foreground")]
    with subprocess.Popen(command, env=machine.environment, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        try:
            assert "listening" in daemon.stderr.readline()
            place = machine.mount()
            pid = machine.client.ping().pid
            assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
            assert str(place) in Path("/proc/self/mountinfo").read_text()
            assert str(place) not in Path(f"/proc/{pid}/mountinfo").read_text()
            assert (place / "weights.bin").read_bytes() == weights
            (state,) = machine.states()
            os.kill(state.pid, 9)
            assert (place / "weights.bin").read_bytes() == weights
            machine.run("umount", place)
            assert machine.states() == []
        finally:
            daemon.terminate()


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
    machine.environment |= {
        "KITFS_HOME": str(machine.home),
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder / "run"),
    }
    packages = [str(Path(kitfs.__file__).parent.parent), sysconfig.get_paths()["purelib"]]
    machine.environment["PYTHONPATH"] = os.pathsep.join(packages)
    machine.interpreter = interpreter_for(machine.prefix, machine.environment)
    machine.run("import", copied)
    yield machine
    machine.close()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def run_as_nobody(machine, script: str, *arguments: object) -> str:
    """Python run by the same user."""
    command = [*machine.prefix, machine.interpreter, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_user_without_privilege_mounts_and_reads(as_nobody, weights):
    """Everything is the user's: mount, daemon, workers; root is kept out without allow_other."""
    place = as_nobody.folder / "mnt"
    run_as_nobody(as_nobody, "import os, sys; os.mkdir(sys.argv[1])", place)
    as_nobody.run("mount", "myllm:1", place)
    script = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
    assert run_as_nobody(as_nobody, script, place / "weights.bin").strip() == hashlib.sha256(weights).hexdigest()
    assert "myllm:1" in as_nobody.run("ps").stdout
    for pid in as_nobody.processes():
        assert f"Uid:\t{NOBODY}" in Path(f"/proc/{pid}/status").read_text()
    as_nobody.run("umount", place)
    assert as_nobody.mounts() == []


def test_read_ahead_is_left_to_root_and_the_line_is_said(as_nobody):
    """With -v the one line that sets it as root."""
    place = as_nobody.folder / "mnt"
    run_as_nobody(as_nobody, "import os, sys; os.mkdir(sys.argv[1])", place)
    said = as_nobody.run("-v", "mount", "myllm:1", place).stderr
    assert "read_ahead_kb" in said and "sudo tee" in said
    as_nobody.run("umount", place)


def test_a_user_may_not_mount_where_that_user_may_not_write(as_nobody):
    """fusermount3's own rule; nothing is left."""
    place = Path(tempfile.mkdtemp(prefix="kitfs-roots-"))
    place.chmod(0o755)
    try:
        as_nobody.run("mount", "myllm:1", place, status=9)
        assert as_nobody.mounts() == [] and as_nobody.sessions() == []
    finally:
        place.rmdir()
