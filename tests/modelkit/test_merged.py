"""A parent with an upper directory over it: what a child would hold. ``tests/mount`` compares it with live overlays."""

import os
import stat
from pathlib import Path

import pytest

from kitfs.archive.tar_toc import MemberKind
from kitfs.digest import Digest
from kitfs.modelkit.merged import MergedTree
from kitfs.modelkit.nodes import Modes, Tree
from kitfs.modelkit.upper import UpperMalformed, UpperUnreadable
from kitfs.store.outline import Outline
from kitfs.store.records import TocMember

FILES = {"data/a": b"aa", "data/b": b"b", "data/sub/c": b"ccc", "docs/d": b"d", "top": b"top"}
MODES = {"data/a": 0o600, "data/b": 0o755}


def tree_of(files: dict[str, bytes]) -> Tree:
    """A tree with a link ``model`` and ``.kitfs``, as a mount shows it; directories are 0700."""
    tree = Tree(0)
    folders = {str(above) for path in files for above in Path(path).parents} - {"."}
    toc = [TocMember(path.encode(), 1, 0o700, 0, 0) for path in sorted(folders)]
    toc += [TocMember(path.encode(), 0, MODES.get(path, 0o644), len(data), 0) for path, data in files.items()]
    tree.add(Outline.of(toc), None, inline=[b""] * len(folders) + list(files.values()))
    tree.add(Outline.of([TocMember(b".kitfs/id", 0, 0o644, 2, 0)]), None, inline=[b"id"])
    tree.add(Outline.of([TocMember(b"model", 0, 0o777, 4, 0)]), None, inline=[b"data"], is_link=True)
    return tree


def put(upper: Path, path: str, data: bytes = b"new", mode: int = 0o644) -> Path:
    place = upper / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    place.chmod(mode)
    return place


def put_directory(upper: Path, path: str, **marks: bytes) -> Path:
    place = upper / path
    place.mkdir(parents=True)
    for name, value in marks.items():
        os.setxattr(place, f"user.overlay.{name}", value)
    return place


def merge(upper: Path, **options: object) -> MergedTree:
    return MergedTree(tree_of(FILES), upper, shown=Modes.WRITABLE, **options)


def listed(merged: MergedTree) -> list[str]:
    """Every path, directories with a slash."""
    found, pending = [], [b""]
    while pending:
        for entry in merged.iter_children(pending.pop()):
            is_directory = entry.kind is MemberKind.DIRECTORY
            found.append(entry.path.decode() + "/" * is_directory)
            pending += [entry.path] * is_directory
    return sorted(found)


def changed(merged: MergedTree) -> list[str]:
    return [f"{change.kind} {change.path.decode()}{'/' * change.is_directory}" for change in merged.iter_changes()]


ALL = ["data/", "data/a", "data/b", "data/sub/", "data/sub/c", "docs/", "docs/d", "top"]


def test_an_empty_upper_directory_changes_nothing(upper):
    """All is the parent's, with its recorded modes; neither ``.kitfs`` nor our link is in a child."""
    merged = merge(upper)
    assert listed(merged) == ALL
    assert changed(merged) == []
    assert (merged.find(b"data/a").mode, merged.find(b"data").mode) == (0o600, 0o700)
    assert merged.find(b"model") is None and merged.find(b".kitfs") is None and merged.find(b"") is None


def test_marks_of_fuse_overlayfs_by_name(upper):
    """``.wh.NAME`` hides a name, beside a file of that name too; ``.wh..wh..opq`` hides what a directory held."""
    put(upper, ".wh.top", b"")
    put(upper, "data/.wh.b", b"")
    put(upper, "data/b", b"hidden all the same")
    put(upper, "docs/.wh..wh..opq", b"")
    put(upper, "docs/new")
    for overlay in (None, "fuse-overlayfs"):
        merged = merge(upper, overlay=overlay)
        assert listed(merged) == ["data/", "data/a", "data/sub/", "data/sub/c", "docs/", "docs/new"]
        assert changed(merged) == ["D data/b", "D docs/d", "A docs/new", "D top"]


@pytest.mark.root
def test_such_names_are_files_to_the_kernels_overlay(upper):
    """The kernel knows no marks by name."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    put(upper, ".wh.top", b"")
    assert changed(merge(upper, overlay="overlay")) == ["A .wh.top"]


def test_opaque_by_xattr(upper):
    """A directory that was removed and made again holds what was put there since; ``x`` and ``n`` are not opaque."""
    put_directory(upper, "data", opaque=b"y")
    put_directory(upper, "docs", opaque=b"x")
    assert listed(merge(upper)) == ["data/", "docs/", "docs/d", "top"]
    assert changed(merge(upper)) == ["D data/a", "D data/b", "D data/sub/"]


def test_a_whiteout_by_xattr(upper):
    """An empty file with the xattr hides a name; one that is not empty is a file."""
    os.setxattr(put(upper, "top", b""), "user.overlay.whiteout", b"")
    os.setxattr(put(upper, "docs/d", b"D"), "user.overlay.whiteout", b"")
    assert changed(merge(upper)) == ["M docs/d", "D top"]


def test_redirects_lead_to_where_a_directory_was(upper):
    """A renamed directory has the parent's nodes: from the root, or from where its own directory was."""
    put_directory(upper, "moved", redirect=b"/data")
    put_directory(upper, "moved/under", redirect=b"sub")
    put(upper, ".wh.data", b"")
    put(upper, "moved/.wh.sub", b"")
    merged = merge(upper)
    assert listed(merged) == ["docs/", "docs/d", "moved/", "moved/a", "moved/b", "moved/under/", "moved/under/c", "top"]
    node = merged.find(b"moved/under/c").node
    assert node == merged.tree.get_path(b"data/sub/c")
    assert merged.find(b"moved/a").mode == 0o600
    assert changed(merged) == ["D data/", "A moved/", "A moved/a", "A moved/b", "A moved/under/", "A moved/under/c"]


def test_a_metacopy_has_the_parents_bytes(upper):
    """chmod copies nothing up, rename neither: the node is the parent's, the mode the new one."""
    os.setxattr(put(upper, "top", b"\0\0\0", 0o755), "user.overlay.metacopy", b"")
    renamed = put(upper, "docs/renamed", b"\0")
    os.setxattr(renamed, "user.overlay.metacopy", b"")
    os.setxattr(renamed, "user.overlay.redirect", b"/docs/d")
    merged = merge(upper)
    assert (merged.find(b"top").mode, merged.find(b"top").node.name, merged.find(b"top").upper) == (0o755, b"top", None)
    assert merged.find(b"docs/renamed").node.name == b"d"
    assert changed(merged) == ["A docs/renamed", "M top"]


@pytest.mark.parametrize(
    ("redirect", "reason"),
    [
        (b"/../../etc", "no path in the parent"),
        (b"..", "no path in the parent"),
        (b"", "no path in the parent"),
        (b"/", "no path in the parent"),
        (b"data/sub", "no path in the parent"),
        (b"/data//sub", "no path in the parent"),
        (b"/nothing", "which the parent has not"),
        (b"/top", "which the parent has not"),
        (b"/top/x", "which the parent has not"),
        (b"/data", "shown at 'where it was' too"),
    ],
)
def test_a_redirect_that_no_overlay_leaves(upper, redirect, reason):
    """A redirect out of the parent, to nothing, to a file, or to what is shown in its place is refused by name."""
    put_directory(upper, "x", redirect=redirect)
    with pytest.raises(UpperMalformed, match=reason) as caught:
        merge(upper)
    assert caught.value.path == b"x"


def test_a_directory_is_shown_once(upper):
    """Any number of redirects to one directory, or to one inside of another, would make any number of entries."""
    put(upper, ".wh.data", b"")
    put_directory(upper, "x", redirect=b"/data")
    put_directory(upper, "y", redirect=b"/data/sub")
    with pytest.raises(UpperMalformed, match="too"):
        merge(upper)
    put(upper, "x/.wh.sub", b"")
    assert "y/c" in listed(merge(upper))
    put_directory(upper, "z", redirect=b"/data")
    with pytest.raises(UpperMalformed, match="too"):
        merge(upper)


def test_a_metacopy_of_nothing(upper):
    """A file whose bytes should be in the parent, and are not."""
    os.setxattr(put(upper, "new"), "user.overlay.metacopy", b"")
    with pytest.raises(UpperMalformed, match="which has no such file"):
        merge(upper)


def test_modes_that_a_child_records(upper):
    """A mode that is still the shown one is the parent's; another is its own, and so is that of what is new."""
    put(upper, "data/a", b"longer", 0o644)
    put(upper, "data/b", b"b", 0o644)
    put(upper, "new", b"", 0o640)
    (upper / "data").chmod(0o755)
    put_directory(upper, "docs").chmod(0o750)
    merged = merge(upper)
    modes = {path: merged.find(path).mode for path in (b"data", b"data/a", b"data/b", b"docs", b"docs/d", b"new")}
    assert modes == {
        b"data": 0o700,
        b"data/a": 0o600,
        b"data/b": 0o644,
        b"docs": 0o750,
        b"docs/d": 0o644,
        b"new": 0o640,
    }
    assert merged.find(b"data/a").replaced == merged.tree.get_path(b"data/a")
    assert merged.find(b"new").replaced is None
    assert changed(merged) == ["M data/a", "M data/b", "M docs/", "A new"]


def test_modes_of_fuse_overlayfs_in_xattrs(upper):
    """Where the upper directory itself has an override, those of its files count, types among them; else none does."""
    file, other = put(upper, "new", b"", 0o755), put(upper, "pipe", b"", 0o755)
    os.setxattr(file, "user.fuseoverlayfs.override_stat", b"0:0:100640")
    os.setxattr(other, "user.fuseoverlayfs.override_stat", b"0:0:600:pipe")
    assert merge(upper).find(b"new").mode == 0o755
    os.setxattr(upper, "user.fuseoverlayfs.override_stat", b"0:0:40755")
    assert merge(upper).find(b"new").mode == 0o640
    assert merge(upper).others == [(b"pipe", stat.S_IFIFO | 0o600)]
    os.setxattr(file, "user.fuseoverlayfs.override_stat", b"0:0")
    with pytest.raises(UpperMalformed, match="override"):
        merge(upper)


def test_links_and_pipes_are_others(upper, tmp_path):
    """What a ModelKit can not hold is listed, hides what was there, and is never followed."""
    put(tmp_path, "outside/secret")
    (upper / "data").symlink_to(tmp_path / "outside")
    os.mkfifo(upper / "top")
    merged = merge(upper)
    assert listed(merged) == ["docs/", "docs/d"]
    assert [(path, stat.S_IFMT(mode)) for path, mode in merged.others] == [
        (b"data", stat.S_IFLNK),
        (b"top", stat.S_IFIFO),
    ]
    assert changed(merged) == ["D data/", "D top"]


def test_our_own_entries_are_passed_over(upper):
    """``.kitfs`` and a link ``model`` that leads where ours does are in no child, whatever was done to them."""
    put(upper, ".kitfs/note")
    (upper / ".kitfs/link").symlink_to("/")
    (upper / "model").symlink_to("data")
    merged = merge(upper)
    assert (listed(merged), merged.others, changed(merged)) == (ALL, [], [])
    (upper / "model").unlink()
    (upper / "model").symlink_to("docs")
    assert merge(upper).others == [(b"model", stat.S_IFLNK | 0o777)]
    (upper / "model").unlink()
    put(upper, "model/weights")
    assert changed(merge(upper)) == ["A model/", "A model/weights"]


def test_a_file_that_becomes_a_directory(upper):
    """It is deleted and added; so is a directory that becomes a file."""
    put(upper, "top/in")
    put(upper, "data")
    assert changed(merge(upper)) == ["D data/", "A data", "D top", "A top/", "A top/in"]
    sizes = [(change.size_before, change.size_after) for change in merge(upper).iter_changes()]
    assert sizes == [(6, None), (None, 3), (3, None), (None, 0), (None, 3)]


def test_swapped_after_it_was_looked_at(upper, tmp_path):
    """A link in the place of a file, or of a directory on the way, leads nowhere."""
    put(tmp_path, "outside/file", b"secret")
    put(upper, "data/file")
    merged = merge(upper)
    entry = merged.find(b"data/file")
    (upper / "data/file").unlink()
    (upper / "data/file").symlink_to(tmp_path / "outside/file")
    with pytest.raises(UpperUnreadable, match="data/file"), merged.open_upper(entry):
        pass
    (upper / "data/file").unlink()
    (upper / "data").rmdir()
    (upper / "data").symlink_to(tmp_path / "outside")
    with pytest.raises(UpperUnreadable, match="data/file"), merged.open_upper(entry):
        pass
    (upper / "data").unlink()
    (upper / "data").mkdir()
    os.mkfifo(upper / "data/file")
    with pytest.raises(UpperUnreadable, match="no regular file any more"), merged.open_upper(entry):
        pass


def test_a_snapshot_knows_that_it_is_old(upper):
    """Another name, mode, size, or a write that leaves the size: the tree that was read is not current."""
    file = put(upper, "new", b"123")
    for change in (
        lambda: put(upper, "newer"),
        lambda: file.chmod(0o600),
        lambda: file.write_bytes(b"1234"),
        lambda: file.write_bytes(b"4321"),
        lambda: (upper / "newer").unlink(),
    ):
        merged = merge(upper)
        assert merged.is_current()
        change()
        assert not merged.is_current()


def test_only_what_was_touched_is_read(upper):
    """A file that holds what it held is no change: it is read, and nothing else is; without a digest it counts as M."""
    put(upper, "data/a", b"aa")
    put(upper, "data/b", b"B", 0o755)
    put(upper, "docs/d", b"dd")
    assert changed(merge(upper)) == ["M data/b", "M docs/d"]


def test_digests_of_layers_are_asked_for_where_sizes_are_equal(upper):
    """A file in a layer has its digest from whoever knows it; only equal sizes and modes make one look."""
    tree = Tree(0)
    layer = Digest.of(b"layer")
    tree.add(Outline.of([TocMember(name, 0, 0o644, 3, 0) for name in (b"a", b"b", b"c")]), layer)
    put(upper, "a", b"aaa")
    put(upper, "b", b"bbb")
    put(upper, "c", b"longer")
    merged = MergedTree(tree, upper, shown=Modes.WRITABLE)
    asked = []

    def find_digest(node):
        asked.append(node.name)
        return Digest.of(b"aaa")

    assert [change.path for change in merged.iter_changes(find_digest)] == [b"b", b"c"]
    assert asked == [b"a", b"b"]
    assert [change.path for change in merged.iter_changes()] == [b"a", b"b", b"c"]
