"""A daemon in another mount namespace, and a daemon of a user without privilege."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]


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


def test_a_user_without_privilege_mounts_and_reads(as_nobody, weights):
    """Everything is the user's: mount, daemon, workers; root is kept out without allow_other."""
    place = as_nobody.folder / "mnt"
    as_nobody.python("import os, sys; os.mkdir(sys.argv[1])", place)
    as_nobody.run("mount", "myllm:1", place)
    script = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
    assert as_nobody.python(script, place / "weights.bin").strip() == hashlib.sha256(weights).hexdigest()
    assert "myllm:1" in as_nobody.run("ps").stdout
    for pid in as_nobody.processes():
        assert f"Uid:\t{as_nobody.uid}" in Path(f"/proc/{pid}/status").read_text()
    as_nobody.run("umount", place)
    assert as_nobody.mounts() == []


def test_read_ahead_is_left_to_root_and_the_line_is_said(as_nobody):
    """With -v the one line that sets it as root."""
    place = as_nobody.folder / "mnt"
    as_nobody.python("import os, sys; os.mkdir(sys.argv[1])", place)
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
