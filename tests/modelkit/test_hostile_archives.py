"""Hostile archives from import to the unpacked tree: refused by name, or harmless; nothing outside is ever written."""

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from kitfs.errors import KitfsError, MalformedError
from kitfs.modelkit.unpack import UnpackOptions, unpack
from kitfs.modelkit.unpack_errors import UnpackFailed
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store
from kitfs.transfer.detect import open_source
from kitfs.transfer.importer import import_source

KIT = "application/vnd.kitops.modelkit.model.v1.tar"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "+gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "+zstd": zstandard.compress,
}


def tar_of(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
    """A tar of members with attributes as they are given, whatever they are."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for name, data, attributes in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def entry(name: str, data: bytes = b"", **attributes: object) -> tuple[str, bytes, dict[str, object]]:
    """One member."""
    return name, data, attributes


FINE = entry("a", b"fine")
LINKS = {
    "symbolic link": entry("l", type=tarfile.SYMTYPE, linkname="/etc"),
    "symbolic link out": entry("l", type=tarfile.SYMTYPE, linkname="../outside"),
    "hard link": entry("l", type=tarfile.LNKTYPE, linkname="a"),
    "hard link out": entry("l", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "character device": entry("d", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "block device": entry("d", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
    "pipe": entry("p", type=tarfile.FIFOTYPE),
    "unknown type": entry("u", type=b"Z"),
}
REFUSED = {
    "escape": tar_of(FINE, entry("../x", b"x")),
    "escape below": tar_of(FINE, entry("b/../../x", b"x")),
    "absolute": tar_of(FINE, entry("/tmp/kitfs-hostile", b"x")),
    "dots inside": tar_of(FINE, entry("b/../c", b"x")),
    "file with a slash at its end": tar_of(FINE, entry("b/", b"x")),
    "component of 256 bytes": tar_of(FINE, entry("n" * 256, b"x")),
    "path of 4097 bytes": tar_of(FINE, entry("n/" * 2048 + "x", b"x")),
    "depth 10 000": tar_of(FINE, entry("d/" * 10_000 + "x", b"x")),
    "same path twice": tar_of(FINE, entry("a", b"other")),
    "same path spelled otherwise": tar_of(FINE, entry("./a", b"other")),
    "file and directory": tar_of(FINE, entry("a", type=tarfile.DIRTYPE)),
    "file below a file": tar_of(FINE, entry("a/b", b"x")),
    "cut short": tar_of(entry("a", bytes(5000)))[:3000],
    **{what: tar_of(FINE, member) for what, member in LINKS.items()},
}


def import_kit(store: Store, layout: Path) -> None:
    """Import the ModelKit by its name, so that what is refused raises."""
    source = open_source(layout)
    try:
        import_source(store, source, references=[parse_reference("x:1")], copy=True)
    finally:
        source.close()


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_archive_is_refused(store: Store, tmp_path: Path, make_layout: Callable[..., Path], what: str):
    """In each compression a named error: no tag, no ModelKit, no blob, and nothing outside of the target."""
    before = set(tmp_path.iterdir())
    for number, (suffix, packer) in enumerate(PACKERS.items()):
        layout = make_layout(tmp_path / f"layout-{number}", "x:1", [(KIT + suffix, packer(REFUSED[what]))])
        with pytest.raises(MalformedError):
            import_kit(store, layout)
        assert [list(store.iter_tags()), list(store.iter_manifests()), list(store.iter_blobs())] == [[], [], []]
    assert {path for path in tmp_path.iterdir() if not path.name.startswith("layout-")} == before
    assert not Path("/tmp/kitfs-hostile").exists()


def test_member_named_kitfile_is_refused(store: Store, tmp_path: Path, make_layout: Callable[..., Path]):
    """A member can not take the place of the Kitfile that is written anew."""
    layout = make_layout(tmp_path / "layout", "x:1", [(KIT, tar_of(FINE, entry("Kitfile", b"theirs")))])
    with pytest.raises(KitfsError, match="Kitfile"):
        import_kit(store, layout)
        unpack(store, parse_reference("x:1"), tmp_path / "out")
    assert not (tmp_path / "out/Kitfile").exists() or b"theirs" not in (tmp_path / "out/Kitfile").read_bytes()


@pytest.mark.parametrize("after", [b"x" * 512, tar_of(entry("b", b"x"))], ids=["data", "another archive"])
def test_what_comes_after_the_end_is_nothing(
    store: Store, tmp_path: Path, make_layout: Callable[..., Path], after: bytes
):
    """An archive ends at its two blocks of zeros, as for GNU tar, bsdtar, Go and Python."""
    import_kit(store, make_layout(tmp_path / "layout", "x:1", [(KIT, tar_of(FINE) + after)]))
    unpack(store, parse_reference("x:1"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "Kitfile"}


ODD = ["\udcff\udcfe", "caf\u00e9", "cafe\u0301", "line\nfeed", " space ", "-rf", "a..b", "...", "\\", "*", "\x1b[2J"]


def test_odd_names_and_modes_come_out_harmless(store: Store, tmp_path: Path, make_layout: Callable[..., Path]):
    """Names of any bytes stay what they are; foreign owners and times are not taken over."""
    members = [entry(name, name.encode(errors="surrogateescape"), uid=12, gid=3, mtime=9) for name in ODD]
    layout = make_layout(tmp_path / "layout", "x:1", [(KIT, tar_of(*members, entry("s", b"s", mode=0o640)))])
    import_kit(store, layout)
    unpack(store, parse_reference("x:1"), tmp_path / "out")
    found = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert found.keys() == {*ODD, "s", "Kitfile"}
    for name in ODD:
        status = found[name].lstat()
        assert found[name].read_bytes() == os.fsencode(name)
        assert (status.st_uid, stat.S_IFMT(status.st_mode)) == (os.getuid(), stat.S_IFREG)
        assert status.st_mtime > 1_000_000_000
    assert stat.S_IMODE(found["s"].stat().st_mode) == 0o640


def test_links_that_lie_in_the_target_are_not_followed(store: Store, tmp_path: Path, make_layout: Callable[..., Path]):
    """A name that is a link out of the target is an error, or with -o is replaced; its end is as it was."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("mine")
    layout = make_layout(tmp_path / "layout", "x:1", [(KIT, tar_of(entry("d/a", b"theirs"), entry("a", b"theirs")))])
    import_kit(store, layout)
    for number, (name, target) in enumerate([("a", outside / "a"), ("d", outside), ("a", tmp_path / "nowhere")]):
        for overwrite in (False, True):
            out = tmp_path / f"out-{number}-{overwrite}"
            out.mkdir()
            (out / name).symlink_to(target)
            try:
                unpack(store, parse_reference("x:1"), out, UnpackOptions(overwrite=overwrite))
            except UnpackFailed:
                assert (name, overwrite) != ("a", True)
            assert (outside / "a").read_text() == "mine"
            assert list(outside.iterdir()) == [outside / "a"] and not (tmp_path / "nowhere").exists()
