"""Mounts whose processes are all gone: every command that meets one says so or clears it, writable ones too."""

import json
import os
import signal

import pytest

pytestmark = pytest.mark.mount


def states(machine) -> dict[str, str]:
    """State by directory, as ``ps`` says."""
    shown = json.loads(machine.run("ps", "--format", "json").stdout)
    return {one["mountpoint"]: one["state"] for one in shown}


@pytest.fixture(params=["read-only", "writable"])
def mount(request: pytest.FixtureRequest, writer):
    """``mount(*options)`` mounts ``kit:1`` in one of both ways, and says where."""
    extra = ["--writable"] if request.param == "writable" else []

    def run(*options: str):
        place = writer.place()
        writer.run("mount", "kit:1", place, *extra, *options)
        return place

    return run


def test_ps_and_status_show_it_and_nothing_is_started_by_looking(writer, mount):
    """As dead, in a table and in JSON, with and without a daemon; another mount of the store is shown as it is."""
    place = mount()
    writer.kill_all()
    assert states(writer) == {str(place): "dead"}
    assert "dead" in writer.run("ps").stdout and "dead" in writer.run("status", status=8).stdout
    assert writer.processes() == []
    other = writer.place("other")
    writer.run("mount", "kit:1", other)
    assert states(writer) | {str(other): ""} == {str(place): "dead", str(other): ""}
    session = json.loads(writer.run("ps", "--format", "json").stdout)[1]["session"]
    assert writer.run("status", "-q").stdout.split() == [session]
    writer.run("umount", place)
    assert states(writer).keys() == {str(other)}


@pytest.mark.parametrize("named", ["directory", "reference", "all"])
def test_umount_clears_it(writer, mount, named):
    """By its directory, by what it showed, or with all: nothing is mounted, and nothing of it is shown any more."""
    place = mount()
    writer.kill_all()
    writer.run("umount", {"directory": place, "reference": "kit:1", "all": "--all"}[named])
    assert writer.all_mounts() == [] and states(writer) == {}
    assert writer.python("import os, sys; print(os.listdir(sys.argv[1]))", place) == "[]\n"


def test_mount_at_its_place_replaces_it(writer, mount):
    """The same command mounts again what was there."""
    place = mount()
    before = writer.listing(place)
    writer.kill_all()
    mount()
    assert writer.listing(place) == before
    assert "dead" not in states(writer).values()


def test_restore_mounts_what_is_wanted_again(writer, mount):
    """It is dead until then, not absent; what was written is there."""
    place = mount("--wanted")
    before = writer.listing(place)
    writer.kill_all()
    assert states(writer) == {str(place): "dead"}
    writer.run("mount", "--restore")
    assert writer.listing(place) == before
    (shown,) = json.loads(writer.run("ps", "--format", "json").stdout)
    assert shown["wanted"] and shown["state"] != "dead" and shown["is_writable"] == ("rw" in writer.run("ps").stdout)


def test_collection_frees_what_only_it_kept(writer, mount):
    """A dead mount is no root: what it showed can be removed, and the corpse is cleared all the same."""
    place = mount()
    writer.kill_all()
    for name in json.loads(writer.run("staging", "list", "--format", "json").stdout):
        writer.run("umount", "--all")
        writer.run("staging", "remove", name["path"])
    writer.run("remove", "kit:1")
    writer.run("gc")
    assert "kit" not in {line.split()[0] for line in writer.run("list").stdout.splitlines()}
    assert len(writer.run("list", "-q").stdout.split()) == 1
    writer.run("umount", place, status=0 if writer.all_mounts() else 3)
    assert writer.all_mounts() == []


@pytest.mark.parametrize("writer", ["user"], indirect=True)
def test_overlay_whose_program_was_killed_is_dead(writer, wait_for_end):
    """The daemon serves the mount below it on: ``ps`` says what is wrong, ``doctor`` what mends it, and that does."""
    place = writer.mount_writable()
    for pid in writer.processes():
        with open(f"/proc/{pid}/comm") as name:
            if name.read().startswith("fuse-overlayfs"):
                os.kill(pid, signal.SIGKILL)
                wait_for_end(pid)
    (shown,) = json.loads(writer.run("ps", "--format", "json").stdout)
    assert shown["state"] == "dead" and "fuse-overlayfs" in shown["reason"]
    found = {one["check"]: one for one in json.loads(writer.run("doctor", "--format", "json", status=1).stdout)}
    assert str(place) in found["mounts"]["detail"]
    writer.run(*found["mounts"]["mend"].split()[1:])
    assert writer.all_mounts() == []
