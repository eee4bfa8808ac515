"""A command that mounts or unmounts a staging directory is killed at many of its calls: whole, or not there at all."""

import os
import re
import shutil
import subprocess

import pytest

from kitfs import mountinfo

pytestmark = [pytest.mark.mount, pytest.mark.root]

CALLS = (
    "mkdir", "rename", "unlink", "rmdir", "fsync", "flock", "sendmsg", "sendto", "wait4", "mount", "umount2",
)  # fmt: skip
POINTS_PER_CALL = 12 if os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0") else 1


class Strace:
    """Runs the writer's command line, and its main thread alone under strace: a traced fusermount3 has no privilege."""

    def __init__(self, writer, folder) -> None:
        self._writer = writer
        self._log = folder / "strace.log"

    def points(self, *arguments: object) -> list[tuple[str, int]]:
        """Some places of each call that a command makes when nothing kills it."""
        self._run(["-e", f"trace={','.join(CALLS)}"], arguments)
        names = re.findall(r"^(\w+)\(", self._log.read_text(), flags=re.M)
        chosen = []
        for name in CALLS:
            total = names.count(name)
            number = min(total, POINTS_PER_CALL)
            chosen += [(name, 1 + (2 * step + 1) * total // (2 * number + 1)) for step in range(number)]
        return chosen

    def kill(self, call: str, number: int, *arguments: object) -> bool:
        """Run a command and kill it at a call. False when it ended before that."""
        return self._run(["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"], arguments) != 0

    def _run(self, options: list[str], arguments: tuple[object, ...]) -> int:
        command = ["strace", "-o", str(self._log), *options, *self._writer.command(*arguments)]
        prefix = len(self._writer.prefix)
        command = [*command[: 3 + len(options)], *command[3 + len(options) + prefix :]]
        command = [*self._writer.prefix, *command]
        done = subprocess.run(command, env=self._writer.environment, capture_output=True, timeout=60, check=False)
        assert done.returncode in (0, -9, 137), done.stderr
        return done.returncode


@pytest.fixture
def strace(writer):
    """strace, where it is installed and may trace; a daemon runs, which it does not trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    writer.run("daemon")
    return Strace(writer, writer.place("log"))


def is_whole(writer, place) -> bool:
    """Whether the overlay is mounted, over a lower layer that is served; if not, nothing is mounted at its place."""
    here = [one for one in mountinfo.find_overlays() if one.mount.mountpoint == place]
    if not here:
        assert place not in {line.mountpoint for line in mountinfo.read_mounts()}
        assert writer.python("import os, sys; print(os.listdir(sys.argv[1]))", place) == "[]\n"
        return False
    assert here[0].lower in {line.mountpoint for line in mountinfo.read_mounts()}
    assert "docs/README.md" in writer.listing(place)
    return True


def test_killed_mount_leaves_all_or_nothing(writer, strace):
    """Whatever a killed mount left, the same command mounts, and unmounting leaves no mount and no session."""
    place, work = writer.place(), writer.folder / "work"
    command = ("mount", "kit:1", place, "--writable", "--staging", work)
    points = strace.points(*command)
    assert {call for call, _ in points} >= {"mkdir", "rename", "fsync", "flock", "wait4"}
    writer.run("umount", place)
    met = 0
    for call, number in points:
        writer.run("staging", "remove", work)
        met += strace.kill(call, number, *command)
        if not is_whole(writer, place):
            writer.run(*command)
            assert is_whole(writer, place)
        writer.write(place / "docs/new", "written")
        writer.run("umount", place)
        assert writer.all_mounts() == [] and writer.sessions() == []
    assert met > len(points) // 2


def test_killed_unmount_leaves_all_or_nothing(writer, strace):
    """Whatever a killed umount left, the same staging directory is mounted again with what was written."""
    place, work = writer.place(), writer.folder / "work"
    command = ("mount", "kit:1", place, "--writable", "--staging", work)
    writer.run(*command)
    writer.write(place / "docs/new", "written")
    points = strace.points("umount", place)
    met = 0
    for call, number in points:
        writer.run(*command)
        met += strace.kill(call, number, "umount", place)
        if not is_whole(writer, place):
            writer.run(*command)
        assert "docs/new" in writer.listing(place)
        writer.run("umount", place)
        assert writer.all_mounts() == [] and writer.sessions() == []
    assert met > len(points) // 2
