"""Staging directories in odd places: other namespaces, containers, moved stores, names with anything in them."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kitfs.modelkit import staging as stagings

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.mark.parametrize("writer", ["user"], indirect=True)
@pytest.mark.parametrize("what", ["mnt", "--all", "kit:1"])
def test_killed_fuse_overlayfs_is_cleared(writer, wait_for_end, what):
    """Its mount is dead; unmounting takes it and what it lay over, and what was written is there the next time."""
    place = writer.mount_writable()
    writer.write(place / "docs/new", "mine")
    before = writer.listing(place)
    command = f"fuse-overlayfs\0-o\0lowerdir={writer.environment['XDG_RUNTIME_DIR']}".encode()
    (pid,) = (int(entry.name) for entry in Path("/proc").glob("[0-9]*") if find_command(entry).startswith(command))
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    writer.run("umount", place if what == "mnt" else what)
    assert writer.all_mounts() == []
    writer.run("mount", "kit:1", place, "--writable")
    assert writer.listing(place) == before
    writer.run("umount", place)
    assert writer.sessions() == []


@pytest.mark.parametrize("writer", ["root"], indirect=True)
def test_mounted_in_another_namespace_it_is_mounted(writer):
    """A second mount is refused here, and takes nothing from the first, which can be unmounted where it is seen."""
    place, second = writer.place(), writer.place("second")
    writer.run("daemon")
    script = '"$0" "$@" && echo mounted && read line && cat "$PLACE/docs/README.md" && read line && umount "$PLACE"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    command += writer.command("mount", "kit:1", place, "--writable")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=writer.environment | {"PLACE": str(place)}, **pipes) as other:
        assert other.stdout.readline() == "mounted\n"
        assert writer.all_mounts() == []
        writer.run("mount", "kit:1", second, "--writable", status=7)
        writer.run("umount", "--all")
        assert [one["mountpoint"] for one in writer.staging_list()] == [str(place)]
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "read me\n"
        other.communicate("\n")
        assert other.returncode == 0
    writer.run("mount", "kit:1", second, "--writable")
    writer.run("umount", second)


@pytest.mark.parametrize("writer", ["root"], indirect=True)
def test_root_of_a_container_takes_fuse_overlayfs(writer, tmp_path):
    """Where the kernel takes no upper directory, as on an overlay, fuse-overlayfs is used instead."""
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is absent")
    for name in ("lower", "upper", "work", "root"):
        (tmp_path / "container" / name).mkdir(parents=True)
    layers = ",".join(f"{name}dir={tmp_path / 'container' / name}" for name in ("lower", "upper", "work"))
    root = tmp_path / "container/root"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, root], check=True)
    place = writer.mount_writable("--staging", root / "work")
    assert stagings.open_staging(root / "work").record.overlay == "fuse-overlayfs"
    writer.write(place / "docs/new", "mine")
    (place / "data/a.txt").unlink()
    writer.run("umount", place)
    writer.run("mount", "kit:1", place, "--writable", "--staging", root / "work")
    assert (place / "docs/new").read_text() == "mine" and not (place / "data/a.txt").exists()
    writer.run("umount", place)


def test_names_with_commas_spaces_and_backslashes_work(writer):
    """Of mount point and staging directory: options of mounts have them escaped, in two ways."""
    work = writer.folder / "a,b c d\\e=ü"
    place = writer.mount_writable("--staging", work, name="m,n:o p\\q\\,")
    found = stagings.find_staging(place)
    assert found is not None and found.path == work and stagings.is_mounted(found)
    writer.write(place / "docs/new", "mine")
    assert (work / "upper/docs/new").read_text() == "mine"
    writer.run("umount", place)
    assert writer.all_mounts() == [] and writer.sessions() == []


def test_colon_in_a_path_is_for_the_kernel_alone(writer):
    """fuse-overlayfs has no escape for it in an upper directory: that is said, and nothing is left."""
    work = writer.folder / "a:b"
    place = writer.place()
    done = writer.run("mount", "kit:1", place, "--writable", "--staging", work, status=9 if writer.uid else 0)
    assert ("takes no ':'" in done.stderr) == (writer.uid != 0) == (writer.all_mounts() == [])
    found = stagings.find_staging(place)
    assert (found.path if found else None) == (None if writer.uid else work)
    writer.run("umount", "--all")
    assert work.exists() == (writer.uid == 0) and writer.sessions() == []


def test_two_mounts_at_once_are_one(writer):
    """Of several commands that mount one staging directory at the same moment one does; the others say 7."""
    places = [writer.place(f"mnt-{number}") for number in range(3)]
    writer.run("daemon")
    commands = [writer.command("mount", "kit:1", place, "--writable") for place in places]
    running = [subprocess.Popen(command, env=writer.environment, stderr=subprocess.PIPE) for command in commands]
    said = [process.communicate()[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 7, 7], said
    assert len(writer.sessions()) == 1
    writer.run("umount", "--all")


def test_store_that_was_moved_has_its_staging_directories(writer):
    """Its own and those elsewhere are roots still, and are mounted again from where the store lies now."""
    place = writer.mount_writable()
    writer.write(place / "docs/new", "mine")
    second = writer.mount_writable("--staging", writer.folder / "work", name="second")
    before = writer.listing(second)
    writer.run("umount", "--all")
    writer.run("remove", "kit:1")
    writer.run("daemon", "stop")
    writer.python("import os, sys; os.rename(*sys.argv[1:])", writer.home, writer.folder / "moved")
    writer.machine.home = writer.folder / "moved"
    writer.environment["KITFS_HOME"] = str(writer.home)
    writer.run("gc")
    writer.run("mount", "kit:1", place, "--writable")
    assert "docs/new" in writer.listing(place)
    writer.run("mount", "kit:1", second, "--writable", "--staging", writer.folder / "work")
    assert writer.listing(second) == before
    writer.run("umount", "--all")


def find_command(entry: Path) -> bytes:
    """The command line of a process, empty when it is gone."""
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
