"""``kitfs doctor``: what it says of a machine that works, and of one that lacks something."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from kitfs.cli import checkup

pytestmark = pytest.mark.mount


def ask(machine, *, status: int = 0) -> dict[str, dict[str, str]]:
    """What it found, by check."""
    return {one["check"]: one for one in json.loads(machine.run("doctor", "--format", "json", status=status).stdout)}


def test_machine_that_works_is_found_well(machine):
    """Exit code 0, one line for each check, none of which fails; nothing is started."""
    found = ask(machine)
    assert "fail" not in {one["state"] for one in found.values()}
    assert found["daemon"]["detail"].startswith("none runs")
    assert all(one["mend"] for one in found.values() if one["state"] == "warn" and one["check"] != "kernel")
    lines = machine.run("doctor").stdout.splitlines()
    assert lines[0].split() == ["CHECK", "STATE", "DETAIL", "WHAT", "MENDS", "IT"]
    assert [line.split()[0] for line in lines[1:]] == list(found)
    assert machine.processes() == []
    machine.mount()
    assert f"process {machine.client.ping().pid}" == ask(machine)["daemon"]["detail"]


def test_store_need_not_be_there(machine, tmp_path):
    """No store yet is well, and it is not made by looking."""
    home = tmp_path / "nothing" / "yet"
    assert "none at" in machine.run("--home", home, "doctor").stdout
    assert not home.exists()


def test_missing_fusermount_is_named_with_the_line_that_mends_it(machine, tmp_path):
    """Exit code 1; -q prints the names of what is not well."""
    machine.environment["PATH"] = str(tmp_path)
    found = ask(machine, status=1)["fusermount3"]
    assert (found["state"], found["mend"]) == ("fail", "sudo apt-get install fuse3")
    assert "fusermount3" in machine.run("doctor", "-q", status=1).stdout.splitlines()


def test_dead_mount_and_what_is_wanted_are_named(machine, wait_for_end):
    """The lines that mend them do."""
    place = machine.mount("mnt", "myllm:1", "--wanted")
    pids = machine.processes()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait_for_end(pid)
    dead = ask(machine, status=1)["mounts"]
    assert dead["state"] == "fail" and str(place) in dead["detail"] and dead["mend"].startswith("kitfs umount ")
    subprocess.run(["umount", str(place)], check=True)
    wanted = ask(machine)["wanted"]
    assert wanted == {
        "check": "wanted",
        "state": "warn",
        "detail": f"not mounted: {place}",
        "mend": "kitfs mount --restore",
    }
    machine.run(*wanted["mend"].split()[1:])
    assert ask(machine)["wanted"]["state"] == "ok"


def test_slow_read_ahead_is_named(machine):
    """With the line that sets it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = machine.mount()
    (mounted,) = machine.mounts()
    knob = Path("/sys/class/bdi", mounted.device, "read_ahead_kb")
    knob.write_text("128\n")
    found = ask(machine)["read-ahead"]
    assert found["state"] == "warn" and found["mend"].endswith("/read_ahead_kb")
    knob.write_text("1024\n")
    assert str(place) not in ask(machine)["read-ahead"]["detail"]


def test_store_of_a_newer_format_fails(machine):
    """What the store itself says is passed on, and its hint."""
    (machine.home / "version").write_text("kitfs-store 999\n")
    assert ask(machine, status=1)["store"]["state"] == "fail"


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("6.9.0", "ok"),
        ("7.0-rc1", "ok"),
        ("6.18.44-x", "ok"),
        ("6.1.0-21-amd64", "warn"),
        ("5.15", "warn"),
        ("?", "warn"),
    ],
)
def test_kernel_that_can_not_resend(release, state):
    """A mount survives its worker from Linux 6.9 on."""
    assert checkup.check_kernel(release).state == state


def test_device_that_is_none(tmp_path):
    """An absent one, and a file in its place, fail with different lines."""
    absent = checkup.check_device(tmp_path / "fuse")
    (tmp_path / "fuse").touch()
    taken = checkup.check_device(tmp_path / "fuse")
    assert {absent.state, taken.state} == {"fail"}
    assert "modprobe" in absent.mend and "mknod" in taken.mend


def test_user_is_told_how_others_may_enter(as_nobody):
    """A user without privilege: what root's configuration lacks is a warning, with its line."""
    found = ask(as_nobody)
    expected = ("warn", "echo user_allow_other | sudo tee -a /etc/fuse.conf")
    if found["others"]["state"] != "ok":
        assert (found["others"]["state"], found["others"]["mend"]) == expected
    assert found["fusermount3"]["state"] == "ok"
