"""Mounts that are wanted: they come back after everything was ended, until they are forgotten."""

import os
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest

from kitfs.calls import PrepareCall
from kitfs.store.layout import Layout
from kitfs.store.wanted import WantedMount, want

pytestmark = pytest.mark.mount


def reboot(machine) -> None:
    """Unmount as a shutdown does, then end all processes: what a store looks like after a boot."""
    for line in reversed(machine.all_mounts()):
        subprocess.run(["umount", "-l", str(line.mountpoint)], check=True)
    machine.kill_all()


def shown(machine) -> dict[str, dict[str, object]]:
    """What ``ps`` says, by the name of the directory."""
    states = msgspec.json.decode(machine.run("ps", "--format", "json").stdout)
    return {Path(state["mountpoint"]).name: state for state in states}


def marks(machine) -> list[Path]:
    """What the store remembers of wanted mounts."""
    return sorted((machine.home / "sessions").glob("*.wanted"))


def test_wanted_mount_comes_back_as_it_was(machine, weights):
    """After a shutdown --restore mounts the ModelKit that was mounted, with its options, though its tag is gone."""
    place = machine.mount("mnt", "myllm:1", "--wanted", "-o", "noexec,nometa,fsname=mine")
    assert shown(machine)["mnt"]["wanted"] is True
    reboot(machine)
    assert not place.is_mount()
    assert shown(machine)["mnt"]["state"] == "absent"
    assert "absent" in machine.run("ps").stdout
    machine.run("remove", "myllm:1")
    machine.run("gc")
    machine.run("mount", "--restore")
    assert (place / "weights.bin").read_bytes() == weights
    assert not (place / ".kitfs").exists()
    assert os.statvfs(place).f_flag & os.ST_NOEXEC
    assert [mounted.reference for mounted in machine.mounts()] == ["mine"]
    assert len(marks(machine)) == len(machine.sessions()) == 1
    machine.run("mount", "--restore")
    assert len(machine.mounts()) == 1
    assert shown(machine)["mnt"]["wanted"] is True


def test_wanted_mounts_outlive_the_daemon(machine, weights, wait_for_end):
    """A daemon that is told to end, or whose processes are all killed: what it left is cleared and mounted again."""
    place = machine.mount("mnt", "myllm:1", "--wanted")
    whole = machine.folder / "all"
    whole.mkdir()
    machine.run("mount", "--all", whole, "--wanted")
    machine.mount("other")
    daemon = machine.client.ping().pid
    os.kill(daemon, signal.SIGTERM)
    wait_for_end(daemon)
    assert "dead" in machine.run("mount", "--restore").stderr
    assert (place / "weights.bin").read_bytes() == weights
    machine.kill_all()
    machine.run("mount", "--restore")
    assert (place / "weights.bin").read_bytes() == weights
    assert (whole / "myllm" / "1" / "weights.bin").read_bytes() == weights
    assert {name for name, state in shown(machine).items() if state["wanted"]} == {"mnt", "all"}
    machine.run("umount", "--all")
    assert marks(machine) == machine.sessions() == []


def test_umount_forgets(machine):
    """Whether it is mounted, unmounted by somebody else, named by its reference, or detached while it is in use."""
    place = machine.mount("mnt", "myllm:1", "--wanted")
    machine.run("umount", place)
    assert marks(machine) == machine.sessions() == []
    machine.mount("mnt", "myllm:1", "--wanted")
    subprocess.run(["umount", str(place)], check=True)
    assert "not wanted any more" in machine.run("umount", "myllm:1").stderr
    machine.run("umount", place, status=3)
    assert marks(machine) == []
    machine.mount("mnt", "myllm:1", "--wanted")
    with open(place / "weights.bin", "rb"):
        machine.run("umount", place, status=7)
        assert len(marks(machine)) == 1
        machine.run("umount", "--lazy", place)
        assert marks(machine) == []
    machine.run("mount", "--restore")
    assert machine.mounts() == []


def test_what_can_not_be_restored_is_named_and_the_others_go_on(machine, weights):
    """One directory is gone: exit code 1, its name and why; the rest is mounted, and nothing is forgotten."""
    gone, place = machine.mount("gone", "myllm:1", "--wanted"), machine.mount("mnt", "myllm:1", "--wanted")
    reboot(machine)
    gone.rmdir()
    said = machine.run("mount", "--restore", status=1).stderr
    assert f"{gone}: " in said and "does not exist" in said
    assert (place / "weights.bin").read_bytes() == weights
    assert [state["state"] == "absent" for state in shown(machine).values()].count(True) == 1
    gone.mkdir()
    machine.run("mount", "--restore")
    assert (gone / "weights.bin").read_bytes() == weights
    assert len(marks(machine)) == 2


def test_last_mount_at_a_place_is_the_wanted_one(machine):
    """What was wanted at the same directory before is forgotten, also when it had been unmounted by somebody else."""
    place = machine.mount("mnt", "myllm:1", "--wanted")
    subprocess.run(["umount", str(place)], check=True)
    machine.mount("mnt", "myllm:1", "--wanted", "-o", "nometa")
    reboot(machine)
    assert len(marks(machine)) == 1
    machine.run("mount", "--restore")
    assert not (place / ".kitfs").exists()


def test_mount_that_fails_is_not_wanted(machine):
    """Nothing is remembered of what was never mounted; flags that contradict are refused."""
    place = machine.mount()
    (machine.folder / "full").mkdir()
    (machine.folder / "full" / "file").touch()
    machine.run("mount", "--wanted", "myllm:1", place, status=7)
    machine.run("mount", "--wanted", "nothere:1", machine.folder, status=2)
    machine.run("mount", "--wanted", "myllm:1", machine.folder / "full", status=2)
    machine.run("mount", "--restore", "myllm:1", place, status=2)
    assert marks(machine) == []
    machine.run("umount", place)


def test_client_that_is_killed_before_it_mounts_leaves_nothing_wanted(machine):
    """Its connection ends when it has marked the session already: the daemon removes record and mark."""
    machine.run("daemon")
    call = PrepareCall("myllm:1", str(machine.folder / "mnt"))
    with pytest.raises(KeyboardInterrupt), machine.client.prepare(call) as prepared:
        want(Layout(machine.home), prepared.session, WantedMount())
        assert len(marks(machine)) == len(machine.sessions()) == 1
        raise KeyboardInterrupt
    assert marks(machine) == machine.sessions() == []
    machine.run("daemon", "stop")


def test_writable_mount_comes_back_over_its_staging_directory(writer):
    """With what was written, as root and as a user."""
    place = writer.mount_writable("--wanted")
    writer.write(place / "docs/new", "mine")
    before = writer.listing(place)
    reboot(writer)
    writer.run("mount", "--restore")
    assert writer.listing(place) == before
    assert shown(writer)["mnt"]["wanted"] is True
    writer.run("umount", place)
    assert marks(writer) == []
