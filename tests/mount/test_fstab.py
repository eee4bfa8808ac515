"""``mount -t kitfs`` and fstab: the real mount(8), which finds ``mount.kitfs`` in a /sbin of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ANSWER_S = 60

ENTER = """
mount -t overlay -o lowerdir="$1":"$(readlink -f /sbin)" overlay "$(readlink -f /sbin)" && echo there && exec cat
"""


class Mount8:
    """Runs commands where /sbin has ``mount.kitfs``; what they mount is seen only there."""

    def __init__(self, machine, inside: int) -> None:
        self.machine = machine
        machine.prefix = ["nsenter", f"--target={inside}", "--mount", "--"]

    def run(self, *words: object, status: int = 0, **environment: str) -> str:
        """Run a program; what it says."""
        command = [*self.machine.prefix, *map(str, words)]
        done = subprocess.run(
            command,
            env=self.machine.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}"
        assert "Traceback" not in done.stdout
        return done.stdout

    def read(self, place: Path) -> str:
        """The digest of the weights below a mount point."""
        return self.run("sha256sum", place / "weights.bin").split()[0]

    def options(self, place: Path) -> set[str]:
        """The options of a mount."""
        return set(self.run("findmnt", "-n", "-o", "OPTIONS", place).strip().split(","))


@pytest.fixture
def mount8(machine, tmp_path: Path) -> Iterator[Mount8]:
    """A machine that has ``mount.kitfs`` installed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not all(map(shutil.which, ("mount", "findmnt", "nsenter", "unshare"))):
        pytest.skip("util-linux is absent")
    helper = tmp_path / "sbin" / "mount.kitfs"
    helper.parent.mkdir()
    helper.write_text(f"#!{sys.executable}\nfrom kitfs.cli.start import main\nmain()\n")
    helper.chmod(0o755)
    enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", str(helper.parent)]
    with subprocess.Popen(enter, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdout is not None and inside.stdin is not None
        if inside.stdout.readline() != "there\n":
            pytest.skip("no overlay can be mounted over /sbin in a mount namespace")
        yield Mount8(machine, inside.pid)
        inside.stdin.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory."""
    made = tmp_path / "mnt"
    made.mkdir()
    return made


@pytest.fixture
def digest(machine, weights: bytes) -> str:
    """Of the model of ``myllm:1``."""
    import hashlib

    return hashlib.sha256(weights).hexdigest()


def test_mount_of_type_kitfs_mounts(mount8, place, digest):
    """``mount -t kitfs`` starts a daemon and mounts, read-only though mount(8) says rw; umount(8) unmounts."""
    mount8.run("mount", "-t", "kitfs", "myllm:1", place)
    assert mount8.read(place) == digest
    assert {"ro", "nosuid", "nodev"} <= mount8.options(place)
    assert mount8.run("findmnt", "-n", "-o", "SOURCE,FSTYPE", place).split() == ["myllm:1", "fuse.kitfs"]
    mount8.run("umount", place)


def test_options_of_fstab_are_understood(mount8, place, tmp_path, digest):
    """A line with what systemd and mount(8) want in it is mounted by ``mount -a``; a second one finds it mounted."""
    options = "ro,_netdev,nofail,noauto,user,dev,suid,defaults,exec,x-systemd.requires=kitfs.service,nometa"
    fstab = tmp_path / "fstab"
    fstab.write_text(f"localhost/myllm:1 {place} kitfs {options.replace('noauto,', '')} 0 0\n")
    mount8.run("mount", "-a", "-T", fstab)
    assert mount8.read(place) == digest
    assert not (mount8.run("ls", "-A", place).split()).count(".kitfs")
    assert "already mounted" in mount8.run("mount", "-a", "-v", "-T", fstab)
    mount8.run("umount", place)
    fstab.write_text(f"myllm:1 {place} kitfs {options} 0 0\n")
    mount8.run("mount", "-a", "-T", fstab)
    assert mount8.run("ls", "-A", place) == ""
    mount8.run("mount", "-T", fstab, place)
    assert mount8.read(place) == digest


def test_options_that_are_flags_of_kitfs(mount8, place, tmp_path):
    """A line of fstab can name the store, show it whole, filter, and mount writable with a staging directory."""
    home = mount8.machine.home
    mount8.run("mount", "-t", "kitfs", "kitfs", place, "-o", f"all,home={home}", KITFS_HOME="/nonexistent")
    assert mount8.run("ls", place).split() == ["myllm"]
    mount8.run("umount", place)
    mount8.run("mount", "-t", "kitfs", "myllm:1", place, "-o", "filter=datasets,nometa")
    assert mount8.run("ls", "-A", place) == ""
    mount8.run("umount", place)
    mount8.run("mount", "-t", "kitfs", "myllm:1", place, "-o", f"writable,staging={tmp_path / 'staging'}")
    mount8.run("touch", place / "new")
    assert (tmp_path / "staging" / "upper" / "new").exists()
    mount8.machine.run("umount", place)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nothere:1", "{place}"], 32, "nothere:1"),
        (["myllm:1", "{place}/absent"], 1, "absent"),
        (["myllm:1", "{place}", "-o", "colour=red"], 1, "colour=red"),
        (["myllm:1", "{place}", "-o", "remount"], 1, "remount"),
        (["myllm:1", "{place}", "-o", "socket=/nonexistent/s"], 2, "/nonexistent/s"),
    ],
)
def test_failure_has_an_exit_code_of_mount(mount8, place, words, status, said):
    """What can not be mounted is said, and the exit code is one of mount(8)'s."""
    words = [word.format(place=place) for word in words]
    assert said in mount8.run("mount", "-t", "kitfs", *words, status=status)
    assert mount8.machine.sessions() == []


def test_taken_mount_point_is_a_failed_mount(mount8, place):
    """A directory that is mounted already is refused with 32."""
    mount8.run("mount", "-t", "kitfs", "myllm:1", place)
    assert "is mounted already" in mount8.run("mount", "-t", "kitfs", "myllm:1", place, status=32)
    mount8.run("umount", place)


def test_flags_that_mount_gives_its_helpers(mount8, place):
    """-f tries and mounts nothing, -s passes over what is not known, -n and -v change nothing that is mounted."""
    mount8.run("mount", "-f", "-t", "kitfs", "myllm:1", place)
    assert "colour" in mount8.run("mount", "-f", "-t", "kitfs", "myllm:1", place, "-o", "colour", status=1)
    assert mount8.run("ls", "-A", place) == ""
    said = mount8.run("mount", "-n", "-v", "-s", "-t", "kitfs", "myllm:1", place, "-o", "colour")
    assert f"myllm:1 is mounted on {place}" in said
    mount8.run("umount", place)
