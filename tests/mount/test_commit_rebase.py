"""``kitfs commit --rebase``: work goes on over the child, or all stays as it was; killed, it is one of the two."""

import json
import os
import shutil
import subprocess

import pytest

from kitfs import mountinfo

pytestmark = [pytest.mark.mount, pytest.mark.root]

CALLS = ("rename", "fsync", "umount2", "mount", "sendmsg")
POINTS_PER_CALL = 12 if os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0") else 1

HOLD = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


def staging_of(writer) -> tuple[str, str]:
    """What the only staging directory lies over, and what is written there."""
    (one,) = json.loads(writer.run("staging", "list", "--format", "json").stdout)
    return one["reference"], writer.listing(writer.home / "staging/kit-1/upper")


def test_work_goes_on_over_the_child(writer):
    """The mount shows the child with nothing changed over it, can be written to, and its next child follows."""
    place = writer.mount_writable()
    writer.write(place / "docs/README.md", "second\n")
    done = json.loads(writer.run("commit", place, "kit:2", "--rebase", "--format", "json").stdout)
    child = writer.place("child")
    writer.run("mount", "kit:2", child)
    assert writer.listing(place) == writer.listing(child)
    assert staging_of(writer) == ("kit:2", "")
    writer.write(place / "docs/README.md", "third\n")
    second = json.loads(writer.run("commit", place, "kit:3", "--rebase", "--format", "json").stdout)
    assert second["parent"] == done["digest"] and second["parentReference"] == "kit:2"
    writer.run("umount", "--all")
    writer.write(writer.home / "staging/kit-1/upper/extra", "untracked")
    writer.run("commit", writer.home / "staging/kit-1", "kit:4", "--rebase", "--ignore-untracked", status=1)
    assert staging_of(writer) == ("kit:3", f"extra {b'untracked'.hex()}\n")
    writer.run("fsck")


def test_mount_in_use_stays_as_it_was(writer):
    """While somebody has a file open the child is committed, the mount stays over its parent, and that is told."""
    place = writer.mount_writable()
    writer.write(place / "docs/README.md", "second\n")
    before = writer.listing(place), staging_of(writer)
    command = [*writer.prefix, writer.interpreter, "-c", HOLD, str(place / "docs/README.md")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "open\n"
        done = writer.run("commit", place, "kit:2", "--rebase", status=7)
        assert "kit:2 is committed" in done.stderr and "is over kit:1" in done.stderr
        assert (writer.listing(place), staging_of(writer)) == before
        holder.communicate()
    writer.run("inspect", "kit:2")
    writer.run("umount", "--all")


@pytest.mark.parametrize("writer", ["root"], indirect=True)
def test_killed_commit_leaves_the_parent_or_the_child(writer):
    """Killed at any call: the child is there or not, and the staging directory is whole, over the one or the other."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    place, log = writer.place(), writer.folder / "strace.log"
    writer.run("daemon")
    command = writer.command("commit", place, "kit:2", "--rebase")

    def traced(*options: str) -> int:
        return subprocess.run(
            ["strace", "-o", log, *options, *command],
            env=writer.environment,
            capture_output=True,
            timeout=60,
            check=False,
        ).returncode

    def begin() -> None:
        writer.mount_writable()
        writer.write(place / "docs/README.md", "second\n")

    begin()
    before = writer.listing(place)
    assert traced("-e", f"trace={','.join(CALLS)}") == 0
    seen = log.read_text()
    moved = writer.listing(place)
    met = 0
    for call in CALLS:
        total = seen.count(f"{call}(")
        for step in range(min(total, POINTS_PER_CALL)):
            writer.run("umount", "--all")
            writer.run("staging", "remove", writer.home / "staging/kit-1")
            writer.run("remove", "kit:2")
            begin()
            number = 1 + (2 * step + 1) * total // (2 * min(total, POINTS_PER_CALL) + 1)
            met += traced("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}") != 0
            tags = {tag for one in json.loads(writer.run("list", "--format", "json").stdout) for tag in one["tags"]}
            reference, _ = staging_of(writer)
            assert reference == "kit:1" or "2" in tags
            if place not in {line.mountpoint for line in mountinfo.read_mounts()}:
                writer.run("mount", reference, place, "--writable")
            assert writer.listing(place) == (before if reference == "kit:1" else moved)
            if "2" not in tags:
                writer.run("commit", place, "kit:2", "--rebase")
                assert writer.listing(place) == moved
    assert met >= len(CALLS) - 1
    writer.run("umount", "--all")
    writer.run("gc")
    writer.run("fsck")
