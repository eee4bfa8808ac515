"""Bad mount points are refused by name, before anything is mounted; mountinfo is read as proc(5) says."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs import mounting
from kitfs.mounting import MountpointTaken, MountpointUnusable


def refuse(machine, place: Path, why: str, status: int = 2) -> None:
    before = len(machine.mounts())
    assert why in machine.run("mount", "myllm:1", place, status=status).stderr
    assert len(machine.mounts()) == before and len(machine.sessions()) == before


def test_what_is_no_empty_directory_is_refused(machine):
    """A file, something absent, a directory that holds a thing, and a link to a directory; exit code 2."""
    (machine.folder / "file").touch()
    (machine.folder / "full").mkdir()
    (machine.folder / "full" / ".hidden").touch()
    (machine.folder / "empty").mkdir()
    (machine.folder / "link").symlink_to("empty")
    refuse(machine, machine.folder / "file", "not a directory")
    refuse(machine, machine.folder / "absent", "does not exist")
    refuse(machine, machine.folder / "full", "not empty")
    refuse(machine, machine.folder / "link", "symbolic link")


def test_a_place_inside_the_store_is_refused(machine):
    """Also through a link, and the store itself."""
    inside = machine.home / "ingest" / "x"
    inside.mkdir()
    (machine.folder / "alias").symlink_to(machine.home)
    refuse(machine, inside, "inside the store")
    refuse(machine, machine.folder / "alias" / "ingest" / "x", "inside the store")
    refuse(machine, machine.home, "inside the store")
    inside.rmdir()


def test_a_place_inside_another_mount_or_on_one_is_refused(machine):
    """Two kits do not nest; on a mount point it is busy: exit code 7."""
    place = machine.folder / "all"
    place.mkdir()
    machine.run("mount", "--all", place)
    refuse(machine, place / "myllm", "inside the mount")
    refuse(machine, place, "mounted already", status=7)
    (machine.folder / "alias").symlink_to(place)
    refuse(machine, machine.folder / "alias" / "myllm" / "1", "inside the mount")


def test_a_name_with_spaces_newlines_and_commas_works(machine):
    """mountinfo writes such characters in octal."""
    place = machine.mount("a b\n,\\x ü")
    (state,) = machine.states()
    assert state.mountpoint == str(place)
    machine.run("umount", place)
    assert machine.mounts() == []


def test_a_name_that_is_not_utf8_is_refused(machine):
    """Session records are JSON."""
    place = Path(os.fsdecode(os.fsencode(machine.folder) + b"/\xff"))
    place.mkdir()
    with pytest.raises(MountpointUnusable, match="not UTF-8"):
        mounting.check_mountpoint(place, machine.home)


def test_a_directory_swapped_for_a_link_is_noticed(tmp_path):
    """Between the check and the mount: the path no longer leads to what was checked."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "elsewhere").mkdir()
    with mounting.check_mountpoint(tmp_path / "mnt", tmp_path / "home") as checked:
        assert checked.is_still_there()
        (tmp_path / "mnt").rename(tmp_path / "moved")
        (tmp_path / "mnt").symlink_to("elsewhere")
        assert not checked.is_still_there()


@pytest.mark.mount
@pytest.mark.parametrize("swap", ["link", "directory"])
def test_a_mount_that_landed_elsewhere_is_undone(machine, swap):
    """Swapped at the last moment, after every check before the mount: refused, and nothing stays mounted."""
    place = machine.folder / "mnt"
    place.mkdir()
    (machine.folder / "elsewhere").mkdir()
    with mounting.check_mountpoint(place, machine.home) as checked:
        before = mounting.find_mounts()
        place.rename(machine.folder / "moved")
        if swap == "directory":
            place.mkdir()
        else:
            place.symlink_to("step")
            (machine.folder / "step").symlink_to("elsewhere")
        target = place if swap == "directory" else machine.folder / "elsewhere"
        device = mounting.mount_device(target, mounting.mount_options("myllm:1", allow_other=False))
        try:
            with pytest.raises(MountpointUnusable, match="swapped"):
                mounting.get_mounted(checked, before)
        finally:
            os.close(device)
    assert machine.mounts() == []


@pytest.mark.mount
def test_a_number_that_another_mount_had_is_no_other_mount(machine):
    """The kernel gives a number again as soon as it is free; a new mount must not be taken for an old one."""
    place = machine.folder / "mnt"
    place.mkdir()
    with mounting.check_mountpoint(place, machine.home) as checked:
        device = mounting.mount_device(place, mounting.mount_options("myllm:1", allow_other=False))
        try:
            (made,) = machine.mounts()
            gone = mounting.KitfsMount(made.number, machine.folder / "gone", made.device, made.reference)
            assert mounting.get_mounted(checked, [gone]) == made
        finally:
            os.close(device)


def test_mountinfo_is_read_as_it_is_written():
    """Octal escapes, optional fields, other file systems, and lines that make no sense."""
    raw = (
        rb"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue" + b"\n"
        rb"40 35 0:44 / /mnt/a\040b\011\012\134\043 ro,nosuid - fuse.kitfs myllm:1\054x ro" + b"\n"
        rb"41 35 0:45 / /mnt/c ro shared:2 master:3 - fuse.kitfs kitfs ro" + b"\n"
        b"nonsense\n\n1 2 - fuse.kitfs\n"
    )
    found = mounting.parse_mountinfo(raw)
    assert [(mounted.number, mounted.device, mounted.reference) for mounted in found] == [
        (40, "0:44", "myllm:1,x"),
        (41, "0:45", "kitfs"),
    ]
    assert found[0].mountpoint == Path("/mnt/a b\t\n\\#")


@given(st.binary(max_size=200))
def test_no_mountinfo_raises(raw):
    """Whatever it holds, a list comes out."""
    mounting.parse_mountinfo(raw)


@pytest.mark.mount
@pytest.mark.parametrize("name", ["a,b", "a\\b", "a,allow_other", "\\,", "a b"])
def test_no_reference_becomes_an_option(machine, name):
    """Commas and backslashes in fsname arrive as they are."""
    place = machine.folder / "mnt"
    place.mkdir()
    device = mounting.mount_device(place, mounting.mount_options(name, allow_other=False))
    try:
        (mounted,) = machine.mounts()
        assert mounted.reference == name
        with open("/proc/self/mountinfo") as file:
            assert "allow_other" not in next(line for line in file if str(place) in line).split(" - ")[1].split()[2]
    finally:
        os.close(device)
        subprocess.run(["fusermount3", "-u", "-z", str(place)], check=True)


def test_without_fusermount3_the_reason_is_said(machine, monkeypatch):
    """Exit code 9 and the package that has it."""
    place = machine.folder / "mnt"
    place.mkdir()
    machine.environment["PATH"] = str(machine.folder / "nothing")
    said = machine.run("mount", "myllm:1", place, status=9).stderr
    assert "fusermount3" in said and "fuse3" in said
    assert machine.sessions() == []


def test_a_taken_mount_point_names_what_is_there(machine):
    """The error carries the reference."""
    place = machine.mount()
    with pytest.raises(MountpointTaken, match="myllm:1"):
        mounting.check_mountpoint(place, machine.home)
