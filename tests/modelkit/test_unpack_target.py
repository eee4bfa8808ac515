"""The directory that is unpacked into: nothing outside of it is written, and a name is given to whole files only."""

import errno
import gc
import os
import stat
from pathlib import Path

import pytest

from kitfs.modelkit import beneath
from kitfs.modelkit.unpack_errors import PathExists, PathIsLink, PathNotDirectory, TargetFull, UnpackFailed
from kitfs.modelkit.unpack_target import Target


@pytest.fixture(params=["openat2", "name by name"], autouse=True)
def way(request, monkeypatch):
    """Both ways to open directories; the second is for kernels that have no openat2."""
    if request.param == "name by name":
        monkeypatch.setattr(beneath, "_OPENAT2", -1)  # ENOSYS
    return request.param


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "victim").write_bytes(b"keep")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["victim"]
    assert (folder / "victim").read_bytes() == b"keep"


def write(target: Target, path: bytes, data: bytes = b"new", mode: int = 0o644) -> None:
    file = target.create(path, mode)
    file.write(data, 0)
    file.place()


def names(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_way_is_the_one_that_is_meant(tmp_path, way):
    """The kernel here has openat2, and the other way is taken when it says that it has not."""
    (tmp_path / "a").mkdir()
    root = beneath.Directory(os.open(tmp_path, os.O_PATH))
    fd = beneath.find_beneath(root.fd, b"a")
    assert (fd is None) == (way == "name by name")
    if fd is not None:
        os.close(fd)


def test_file_and_implied_directories_are_made(place):
    """A file whose directories nobody made lies there; they have 0755 less the umask."""
    with Target(place) as target:
        write(target, b"a/b/c.bin", b"data", 0o640)
    assert (place / "a/b/c.bin").read_bytes() == b"data"
    assert stat.S_IMODE((place / "a/b/c.bin").stat().st_mode) == 0o640 & ~current_umask()
    assert stat.S_IMODE((place / "a/b").stat().st_mode) == 0o755 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_target_may_be_reached_through_a_link(tmp_path, place):
    """The directory that the user names may be a symbolic link, as with ``tar -C``."""
    (tmp_path / "real").mkdir()
    place.symlink_to("real")
    with Target(place) as target:
        write(target, b"x")
    assert (tmp_path / "real/x").read_bytes() == b"new"


@pytest.mark.parametrize("path", [b"link/x", b"a/link/x", b"link/deeper/x", b"absolute/x", b"up/x", b"proc/x"])
def test_no_link_on_the_way_is_followed(place, outside, path):
    """Links that are in the target, wherever they lead, are an error that names the link."""
    (place / "a").mkdir(parents=True)
    (place / "link").symlink_to("../outside")
    (place / "a/link").symlink_to("../../outside")
    (place / "absolute").symlink_to(outside)
    (place / "up").symlink_to("..")
    (place / "proc").symlink_to(f"/proc/self/fd/{os.open(outside, os.O_PATH)}")
    before = names(place)
    for overwrite in (False, True):
        with Target(place, overwrite=overwrite) as target, pytest.raises(PathIsLink) as caught:
            target.create(path, 0o644)
        assert caught.value.path == path.rpartition(b"/")[0].removesuffix(b"/deeper")
    assert names(place) == before


def test_link_in_place_of_a_directory_is_refused(place, outside):
    """A directory's entry does not accept a link to a directory, as GNU tar's default does not."""
    place.mkdir()
    (place / "a").symlink_to(outside)
    with Target(place, overwrite=True) as target, pytest.raises(PathIsLink):
        target.make_directory(b"a", 0o755)


@pytest.mark.parametrize("path", [b"../x", b"..", b".", b"a/..", b"", b"a/../../outside/x", b"/x"])
def test_paths_that_lead_out_are_refused(place, outside, path):
    """Whatever a layer may hold, the last guard refuses it too."""
    place.mkdir()
    with Target(place) as target, pytest.raises(UnpackFailed):
        target.create(path, 0o644)


def test_existing_file_is_an_error(place):
    """Without a switch a file that is there stays, and the error names it in kit's words."""
    place.mkdir()
    (place / "x").write_bytes(b"old")
    with Target(place) as target, pytest.raises(PathExists) as caught:
        target.create(b"x", 0o644)
    assert "path 'x' already exists" in str(caught.value)
    assert (place / "x").read_bytes() == b"old"


def test_file_that_appears_meanwhile_is_not_replaced(place):
    """A file that somebody else makes between beginning and placing stays, and nothing is left beside it."""
    with Target(place) as target:
        file = target.create(b"x", 0o644)
        file.write(b"new", 0)
        (place / "x").write_bytes(b"theirs")
        with pytest.raises(PathExists):
            file.place()
    assert names(place) == ["x"]
    assert (place / "x").read_bytes() == b"theirs"


def test_existing_file_is_passed_over(place):
    """With ignore_existing there is nothing to write, whatever is there, and overwrite does not matter."""
    (place / "folder").mkdir(parents=True)
    (place / "x").write_bytes(b"old")
    with Target(place, overwrite=True, ignore_existing=True) as target:
        assert target.create(b"x", 0o644) is None
        assert target.create(b"folder", 0o644) is None


def test_overwriting_replaces_links_and_leaves_other_names_alone(place, outside):
    """A symlink is replaced and not followed; a hard link's other name keeps its bytes; the mode is the layer's."""
    place.mkdir()
    (place / "soft").symlink_to(outside / "victim")
    os.link(outside / "victim", place / "hard")
    (place / "plain").write_bytes(b"old and longer")
    (place / "plain").chmod(0o600)
    with Target(place, overwrite=True) as target:
        for path in (b"soft", b"hard", b"plain"):
            write(target, path, mode=0o644)
    assert [(place / name).read_bytes() for name in ("soft", "hard", "plain")] == [b"new"] * 3
    assert not (place / "soft").is_symlink()
    assert stat.S_IMODE((place / "plain").stat().st_mode) == 0o644 & ~current_umask()


def test_overwriting_replaces_no_directory_and_no_device(place):
    """What is neither a regular file nor a link is not replaced, as in kit."""
    (place / "folder").mkdir(parents=True)
    os.mkfifo(place / "pipe")
    with Target(place, overwrite=True) as target:
        for path in (b"folder", b"pipe"):
            with pytest.raises(PathExists) as caught:
                target.create(path, 0o644)
            assert "already exists and is not a regular file" in str(caught.value)


def test_existing_directory_stays_and_a_file_is_no_directory(place):
    """A directory that is there keeps its mode; a file where one is needed is an error, at it and below it."""
    place.mkdir()
    (place / "a").mkdir(mode=0o700)
    (place / "file").write_bytes(b"")
    with Target(place, overwrite=True) as target:
        target.make_directory(b"a", 0o755)
        with pytest.raises(PathNotDirectory):
            target.make_directory(b"file", 0o755)
        with pytest.raises(PathNotDirectory):
            target.create(b"file/x", 0o644)
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o700


def test_narrow_directory_gets_its_mode_at_the_end(place):
    """A directory that its owner may not write is filled first; nested ones end as recorded too."""
    with Target(place) as target:
        target.make_directory(b"a", 0o555)
        target.make_directory(b"a/b", 0o500)
        write(target, b"a/b/x")
        target.finish()
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o555 & ~current_umask()
    assert stat.S_IMODE((place / "a/b").stat().st_mode) == 0o500


def test_discarded_file_leaves_nothing(place):
    """A file that is given up leaves neither its name nor the one that it was written under."""
    with Target(place) as target:
        file = target.create(b"a/x", 0o644)
        file.write(b"half", 0)
        file.discard()
        file.discard()
    assert names(place) == ["a"]


def test_unfinished_file_has_no_name(place):
    """While a file is written there is nothing under its name."""
    with Target(place) as target:
        file = target.create(b"x", 0o644)
        file.write(b"half", 0)
        assert not (place / "x").exists()
        file.discard()


def test_many_directories_need_few_descriptors(place):
    """Ten times as many directories as are kept open take a bounded number of descriptors."""
    gc.collect()  # what tests before this one have left open
    before = len(os.listdir("/proc/self/fd"))
    with Target(place) as target:
        for number in range(1300):
            target.make_directory(b"%d" % number, 0o755)
            write(target, b"%d/x" % number)
        assert len(os.listdir("/proc/self/fd")) - before < 140
    del target
    assert len(os.listdir("/proc/self/fd")) <= before


def test_copy_falls_back_to_reading_and_writing(place, tmp_path, monkeypatch):
    """Where the kernel can not copy between two files, their bytes are read and written; a short source is told."""
    data = os.urandom(3 << 20)
    (tmp_path / "source").write_bytes(data)

    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    with Target(place) as target:
        file = target.create(b"x", 0o644)
        assert file.copy(source, 0, 2 << 20) == 2 << 20
        assert file.copy(source, 2 << 20, 9 << 20) == 1 << 20
        file.place()
    os.close(source)
    assert (place / "x").read_bytes() == data


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_named(code):
    """No room is an error of its own, with the file."""
    from kitfs.modelkit.unpack_errors import failure

    error = failure(b"model/x", OSError(code, os.strerror(code)))
    assert isinstance(error, TargetFull)
    assert "model/x" in str(error) and error.hint


def test_setuid_is_what_the_kernel_leaves_to_the_caller(place):
    """Bits beyond the permissions are asked for, as kit does; writing takes setuid and setgid from who is not root."""
    with Target(place) as target:
        write(target, b"tool", mode=0o6755)
        target.make_directory(b"shared", 0o3775)
    bits = 0o6000 if os.geteuid() == 0 else 0
    assert stat.S_IMODE((place / "tool").stat().st_mode) == bits | 0o755 & ~current_umask()
    assert stat.S_IMODE((place / "shared").stat().st_mode) == 0o1775 & ~current_umask()
