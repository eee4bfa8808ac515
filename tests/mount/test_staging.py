"""Staging directories: mounted once, mounted again over the same parents, kept with them, unmade whole."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from kitfs import mountinfo
from kitfs.modelkit import staging as stagings

pytestmark = [pytest.mark.mount, pytest.mark.root]

HOLD = "import sys; file = open(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"

REBASE = """
import sys, pathlib
from kitfs.cli.main import exit_code
from kitfs.cli.settings import Settings
from kitfs.cli.writable import rebase
from kitfs.errors import KitfsError
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import StagingChanged, find_staging
from kitfs.oci.reference import parse_reference
settings = Settings()
def check():
    if "changed" in sys.argv:
        raise StagingChanged(pathlib.Path(sys.argv[1]))
try:
    with settings.open_store() as store:
        resolved = resolve(store, parse_reference(sys.argv[2]))
        staging = find_staging(pathlib.Path(sys.argv[1]))
        rebase(settings, staging, resolved, check)
    print(0)
except KitfsError as error:
    print(exit_code(error))
"""


class Holder:
    """A process of the writer's that has a file open for writing."""

    def __init__(self, writer, path) -> None:
        command = [*writer.prefix, writer.interpreter, "-c", HOLD, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "open\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate()


def move_tag(writer) -> None:
    """Have ``kit:1`` mean another ModelKit."""
    writer.write(writer.folder / "src/docs/README.md", "another\n")
    writer.run("pack", writer.folder / "src", "-t", "other:1")
    writer.run("tag", "other:1", "kit:1")


def test_mounted_again_it_is_over_the_same_parents_whatever_the_tag_means(writer):
    """What was changed and what was not are as before when the tag was moved, and that is said."""
    place = writer.mount_writable("--staging", writer.folder / "work")
    writer.write(place / "docs/new", "mine")
    before = writer.listing(place)
    writer.run("umount", place)
    move_tag(writer)
    said = writer.run("mount", "kit:1", place, "--writable", "--staging", writer.folder / "work").stderr
    assert "means sha256:" in said
    assert writer.listing(place) == before
    writer.run("umount", place)
    writer.run("remove", "kit:1")
    said = writer.run("mount", "kit:1", place, "--writable", "--staging", writer.folder / "work").stderr
    assert "not in the store any more" in said
    assert writer.listing(place) == before
    writer.run("umount", place)


def test_one_staging_directory_is_mounted_once(writer):
    """A second mount of it, and its removal, are exit code 7 and name the first."""
    place = writer.mount_writable()
    second = writer.place("second")
    assert str(place) in writer.run("mount", "kit:1", second, "--writable", status=7).stderr
    assert str(place) in writer.run("staging", "remove", "kit-1", status=7).stderr
    writer.run("mount", "kit:1", place, "--writable", status=7)
    assert len(writer.sessions()) == 1
    writer.run("mount", "kit:1", second, "--writable", "--staging", writer.folder / "work")
    writer.write(second / "docs/new", "second")
    assert not writer.python("import os, sys; print(*os.listdir(sys.argv[1]))", place / "docs").count("new")
    writer.run("umount", "--all")
    assert writer.all_mounts() == [] and writer.sessions() == []


def test_another_reference_or_other_things_are_refused(writer):
    """A staging directory of another reference, and a directory that holds other things, stay as they are."""
    writer.run("tag", "kit:1", "kit:2")
    place = writer.mount_writable("--staging", writer.folder / "work")
    writer.run("umount", place)
    said = writer.run("mount", "kit:2", place, "--writable", "--staging", writer.folder / "work", status=2).stderr
    assert "made over kit:1, not kit:2" in said and "kitfs mount kit:1" in said
    said = writer.run("mount", "kit:1", place, "--writable", "--staging", writer.folder / "src", status=2).stderr
    assert "other things" in said
    assert sorted(path.name for path in (writer.folder / "src").iterdir()) == ["Kitfile", "data", "docs", "model"]
    inside = place / "work"
    assert "hide" in writer.run("mount", "kit:1", place, "--writable", "--staging", inside, status=2).stderr
    assert not inside.exists() and writer.all_mounts() == [] and writer.sessions() == []


def test_its_parents_are_kept_until_it_goes(writer):
    """A collection takes nothing of an untagged ModelKit as long as a staging directory lies over it."""
    place = writer.mount_writable("--staging", writer.folder / "work")
    before = writer.listing(place)
    writer.run("umount", place)
    move_tag(writer)
    writer.run("remove", "other:1")
    writer.run("gc")
    writer.run("daemon", "stop")
    writer.run("fsck", "--rebuild-index")
    writer.run("gc")
    (link,) = (path for path in (writer.home / "staging").iterdir() if path.is_symlink())
    assert link.readlink() == writer.folder / "work"
    writer.run("mount", "kit:1", place, "--writable", "--staging", writer.folder / "work")
    assert writer.listing(place) == before
    writer.run("umount", place)
    shutil.rmtree(writer.folder / "work")
    assert [one["problem"] for one in writer.staging_list()] == ["it is not there"]
    went = {one["kind"] for one in json.loads(writer.run("gc", "--format", "json").stdout)["removed"]}
    assert went >= {"ModelKit", "staging"}
    assert writer.staging_list() == [] and list((writer.home / "staging").iterdir()) == []


def test_list_and_remove(writer):
    """The list names place, reference, parent, mount point and size; removing takes read-only folders too."""
    place = writer.mount_writable()
    writer.python("import os, sys; os.mkdir(sys.argv[1]); open(sys.argv[1] + '/f', 'wb').write(bytes(9000));"
                  " os.chmod(sys.argv[1], 0o500)", place / "docs/sealed")  # fmt: skip
    (one,) = writer.staging_list()
    assert one.pop("size") >= 9000
    assert one == {
        "name": "kit-1",
        "path": str(writer.home / "staging/kit-1"),
        "reference": "kit:1",
        "parent": json.loads(writer.run("list", "--format", "json").stdout)[0]["digest"],
        "mountpoint": str(place),
        "problem": "",
    }
    assert writer.run("staging", "list", "-q").stdout == "kit-1\n" and "kit-1" in writer.run("staging", "list").stdout
    assert writer.run("ps").stdout.splitlines()[1].split()[:3] == ["kit:1", str(place), "rw"]
    writer.run("umount", "kit:1")
    assert [one["mountpoint"] for one in writer.staging_list()] == [None]
    writer.run("staging", "remove", "kit-1")
    assert writer.staging_list() == [] and list((writer.home / "staging").iterdir()) == []
    writer.run("staging", "remove", "kit-1", status=3)


def test_what_is_in_use_is_unmounted_lazily_only(writer):
    """A busy overlay is 7 and stays whole; detached, its staging directory can be mounted again once it is let go."""
    place = writer.mount_writable()
    (state,) = writer.states()
    with Holder(writer, place / "docs/README.md"):
        writer.run("umount", place, status=7)
        writer.write(place / "docs/new", "still there")
        writer.run("umount", "--lazy", place)
        assert writer.all_mounts() == []
        writer.run("mount", "kit:1", place, "--writable", status=7)
    assert writer.client.wait_ended(state.session)
    writer.run("mount", "kit:1", place, "--writable")
    assert "docs/new" in writer.listing(place)
    writer.run("umount", place)


def test_overlay_goes_on_when_its_worker_is_killed(writer, wait_for_end):
    """What was not changed is served by the next worker."""
    place = writer.mount_writable()
    before = writer.listing(place)
    (state,) = writer.states()
    os.kill(state.pid, signal.SIGKILL)
    wait_for_end(state.pid)
    writer.write(place / "data/a.txt", "a\n")
    assert writer.listing(place) == before
    writer.run("umount", place)


def test_overlay_goes_on_without_its_daemon_and_with_the_next(writer, wait_for_end):
    """The daemon is killed: reading, writing, unmounting and mounting again work, before and after there is another."""
    place = writer.mount_writable()
    pid = writer.client.ping().pid
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    writer.write(place / "docs/new", "without")
    before = writer.listing(place)
    writer.run("daemon")
    assert writer.listing(place) == before
    writer.run("mount", "kit:1", writer.place("second"), "--writable", status=7)
    writer.run("umount", place)
    assert writer.all_mounts() == []
    writer.run("mount", "kit:1", place, "--writable")
    assert writer.listing(place) == before
    writer.run("umount", place)


def test_overlay_that_nobody_serves_any_more_is_cleared(writer, wait_for_end):
    """Daemon, zygote and worker killed at once: what was written is there when it is mounted again there."""
    place = writer.mount_writable()
    writer.write(place / "docs/new", "mine")
    before = writer.listing(place)
    pids = writer.processes()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait_for_end(pid)
    assert "dead" in writer.run("mount", "kit:1", place, "--writable").stderr
    assert writer.listing(place) == before
    writer.run("umount", place)
    assert writer.all_mounts() == []


def test_staging_directory_moved_while_it_is_mounted_is_known(writer):
    """It is told by its upper directory, not by its path: a second mount would destroy it."""
    place = writer.mount_writable("--staging", writer.folder / "work")
    writer.python("import os, sys; os.rename(*sys.argv[1:])", writer.folder / "work", writer.folder / "moved")
    second = writer.place("second")
    writer.run("mount", "kit:1", second, "--writable", "--staging", writer.folder / "moved", status=7)
    with pytest.raises(stagings.StagingMalformed, match="moved"):
        stagings.find_staging(place)
    writer.run("umount", place)
    writer.run("mount", "kit:1", second, "--writable", "--staging", writer.folder / "moved")
    writer.run("umount", second)


def test_mount_point_leads_to_the_staging_directory(writer):
    """``find_staging`` knows it by its path and by its mount point, and nothing else."""
    place = writer.mount_writable("--staging", writer.folder / "work")
    plain = writer.place("plain")
    writer.run("mount", "kit:1", plain)
    by_path = stagings.find_staging(writer.folder / "work")
    assert by_path is not None and by_path.record.reference == "kit:1" and by_path.record.uid == writer.uid
    assert stagings.find_staging(place) == by_path and stagings.is_mounted(by_path)
    assert stagings.find_staging(plain) is None and stagings.find_staging(writer.folder / "src") is None
    writer.run("umount", "--all")
    assert not stagings.is_mounted(by_path) and stagings.find_staging(place) is None


def test_rebased_it_shows_the_other_with_nothing_changed(writer):
    """Mounted it stays mounted, and wanted, at its place; in use it stays as it was (7); unmounted it moves too."""
    place = writer.mount_writable("-o", "noexec", "--wanted")
    writer.write(place / "docs/new", "mine")
    writer.write(writer.folder / "src/docs/README.md", "another\n")
    writer.run("pack", writer.folder / "src", "-t", "other:1")
    before = writer.listing(place)
    with Holder(writer, place / "docs/README.md"):
        assert writer.python(REBASE, place, "other:1") == "7\n"
        assert writer.listing(place) == before
    assert writer.python(REBASE, place, "other:1", "changed") == "7\n"
    assert writer.listing(place) == before
    assert writer.python(REBASE, place, "other:1") == "0\n"
    other = writer.place("other")
    writer.run("mount", "other:1", other)
    assert writer.listing(place) == writer.listing(other) != before
    assert next(line for line in mountinfo.read_mounts() if line.mountpoint == place).flags >= {"rw", "noexec"}
    assert [one.wanted for one in writer.states() if one.is_writable] == [True]
    assert len(list((writer.home / "sessions").glob("*.wanted"))) == 1
    writer.write(place / "docs/new", "again")
    assert [(one["reference"], one["mountpoint"]) for one in writer.staging_list()] == [("other:1", str(place))]
    writer.run("umount", "--all")
    assert writer.python(REBASE, writer.home / "staging/kit-1", "kit:1") == "0\n"
    writer.run("mount", "kit:1", place, "--writable")
    assert "docs/new" not in writer.listing(place)
    writer.run("umount", place)
    assert len(writer.staging_list()) == 1


@pytest.mark.parametrize("writer", ["root"], indirect=True)
def test_bind_mount_of_an_overlay_goes_on(writer):
    """One place is unmounted, the other stays, and the staging directory is mounted until both are."""
    place, elsewhere = writer.mount_writable(), writer.place("elsewhere")
    subprocess.run(["mount", "--bind", place, elsewhere], check=True)
    writer.run("umount", place)
    writer.run("mount", "kit:1", place, "--writable", status=7)
    assert "docs/README.md" in writer.listing(elsewhere)
    writer.run("umount", elsewhere)
    assert writer.all_mounts() == [] and writer.sessions() == []


def test_prefetch_knows_a_writable_mount_by_its_place(writer):
    """Paths in it are those of the ModelKit that it lies over."""
    place = writer.mount_writable()
    told = json.loads(writer.run("prefetch", place, place / "model", "--format", "json").stdout)
    assert {one["path"] for group in told.values() for one in group} == {"model/weights.bin", "model/private.bin"}
    writer.run("umount", place)
