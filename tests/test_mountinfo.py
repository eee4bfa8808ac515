"""What is mounted, as proc(5) writes it: overlays with their layers, names with anything in them."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kitfs import mountinfo

KERNEL = (
    rb"45 27 0:40 / /mnt/w rw,nosuid - overlay kit:1 rw,lowerdir=/l\040a,upperdir=/u\134\054x\134\134y/upper,workdir=/w"
)


def test_layers_of_the_kernels_overlay_are_read():
    """Options are separated first; then octal escapes are taken away, and then backslashes."""
    (line,) = mountinfo.parse_mountinfo(KERNEL)
    assert line == (45, "0:40", Path("/mnt/w"), "overlay", "kit:1", {"rw", "nosuid"}, line.options)
    (overlay,) = mountinfo.iter_overlays([line], {})
    assert (overlay.lower, overlay.upper) == (Path("/l a"), Path("/u,x\\y/upper"))


def test_layers_of_fuse_overlayfs_are_those_of_its_process():
    """Told by mount point and user; of another user's process, or without one, nothing is known."""
    raw = rb"45 27 0:40 / /mnt/w rw - fuse.fuse-overlayfs fuse-overlayfs rw,user_id=5,group_id=5"
    lines = mountinfo.parse_mountinfo(raw)
    options = r"lowerdir=/l\:a,upperdir=/u\,x\\y/upper,workdir=/w"
    (overlay,) = mountinfo.iter_overlays(lines, {(Path("/mnt/w"), "5"): options})
    assert (overlay.lower, overlay.upper) == (Path("/l:a"), Path("/u,x\\y/upper"))
    assert list(mountinfo.iter_overlays(lines, {(Path("/mnt/w"), "6"): options})) == []
    assert list(mountinfo.iter_overlays(lines, {})) == []


def test_the_topmost_at_a_place_is_found(tmp_path):
    """By a path that is relative or leads through links, later mounts first."""
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    mounts = [(tmp_path / "real/mnt", "below"), (tmp_path / "real/mnt", "above"), (tmp_path / "other", "other")]
    for name in ("real/mnt", "alias/mnt", "real/x/../mnt"):
        assert mountinfo.find_at(tmp_path / name, mounts) == "above"
    assert mountinfo.find_at(tmp_path / "real", mounts) is None


@given(st.binary(max_size=200))
def test_no_mountinfo_raises(raw):
    """Whatever it holds, overlays or none come out."""
    list(mountinfo.iter_overlays(mountinfo.parse_mountinfo(raw + b"\n" + KERNEL + raw), {}))
