"""Packing what can not be packed: a named error with its place, and a store that is as it was."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.modelkit.entries import DEPTH_MAX, PathUnreadable
from kitfs.modelkit.ignore import IgnoreMalformed, IgnoreRules
from kitfs.modelkit.pack import KitfileNotFound, PackUnusable, pack
from kitfs.modelkit.parentage import PathTaken
from kitfs.modelkit.resolve import ModelKitNotFound, ParentChainMalformed
from kitfs.modelkit.walk import FileChanged, PathsUnpackable, iter_entries
from kitfs.oci.go_json import JsonUnsupported
from kitfs.oci.kitfile import KitfileMalformed
from kitfs.oci.manifest import parse_manifest
from kitfs.oci.reference import Reference, parse_reference
from kitfs.store.errors import StoreWriteFailed
from kitfs.store.store import Store


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A directory that packs."""
    folder = tmp_path / "kit"
    (folder / "m").mkdir(parents=True)
    (folder / "m/w.bin").write_bytes(b"w" * 3000)
    (folder / "Kitfile").write_text("model:\n  path: m\n")
    return folder


def is_empty(store: Store) -> bool:
    """Whether nothing is visible and no ingest is left; placed blobs without a record are GC's."""
    tags, manifests = list(store.iter_tags()), list(store.iter_manifests())
    left = list((store.home / "ingest").iterdir()) + list((store.home / "leases").iterdir())
    return not tags and not manifests and not list(store.iter_blobs()) and not left


def refuse(store: Store, folder: Path, error: type[KitfsError], match: str, *references: Reference) -> None:
    with pytest.raises(error, match=match):
        pack(store, folder, None, list(references) or [parse_reference("a:1")])
    assert is_empty(store)


KITFILES = {
    "model:\n  path: ../m\n": (KitfileMalformed, "leaves the directory"),
    "modle: x\n": (KitfileMalformed, "line 1: unknown key 'modle'"),
    "model:\n  path: nowhere\n": (PathsUnpackable, "nowhere does not exist"),
    "model:\n  path: m/w.bin/x\n": (PathsUnpackable, "m/w.bin/x: Not a directory"),
    "model:\n  path: link\n": (PathsUnpackable, "link is a symbolic link"),
    "model:\n  path: link/w.bin\n": (PathsUnpackable, "behind the symbolic link link"),
    "model:\n  path: pipe\n": (PathsUnpackable, "pipe is neither a file nor a directory"),
    "model:\n  path: nowhere:1\n": (ModelKitNotFound, "nowhere:1 is not in the store"),
    "mcpServers:\n  - {name: a, path: d.mcpb}\n": (PathsUnpackable, "line 2: d.mcpb is a directory"),
    "model:\n  path: m\n  parameters: {a: !!float 5}\ncode:\n  - path: x\ndocs:\n  - path: y\n": (
        PathsUnpackable,
        "x does not exist\n.*y does not exist",
    ),
}


@pytest.mark.parametrize("text", KITFILES, ids=lambda text: repr(text[:40]))
def test_kitfile_that_can_not_be_packed_is_refused(store: Store, kit: Path, text: str):
    """Bad Kitfiles, missing paths (all of them), links and devices as layers, missing parents."""
    (kit / "link").symlink_to("m")
    os.mkfifo(kit / "pipe")
    (kit / "d.mcpb").mkdir()
    (kit / "Kitfile").write_text(text)
    error, match = KITFILES[text]
    refuse(store, kit, error, match)


def test_missing_kitfile_and_directory_are_refused(store: Store, kit: Path):
    """Without a Kitfile, without the named one, without the directory."""
    with pytest.raises(KitfileNotFound, match="No such file"):
        pack(store, kit, kit / "other", [])
    (kit / "Kitfile").unlink()
    refuse(store, kit, KitfileNotFound, "none of Kitfile, kitfile, .kitfile")
    refuse(store, kit / "nowhere", KitfileNotFound, "is no directory")
    with pytest.raises(PackUnusable, match="No such file"):
        pack(store, kit / "nowhere", None, [], kitfile_raw=b"model: {}\n")
    with pytest.raises(PackUnusable, match="Not a directory"):
        pack(store, kit / "m/w.bin", None, [], kitfile_raw=b"model: {}\n")


def test_malformed_ignore_file_is_refused(store: Store, kit: Path):
    """A pattern that can not be understood stops the pack."""
    (kit / ".kitignore").write_text("ok\n[\n")
    refuse(store, kit, IgnoreMalformed, "line 2")


def test_request_that_makes_no_sense_is_refused(store: Store, kit: Path):
    """A digest is no tag, and time has an end."""
    refuse(store, kit, PackUnusable, "only a tag", Reference("localhost/a", None, Digest("a" * 64)))
    for created_s in (-1, 253_402_300_800):
        with pytest.raises(PackUnusable, match="out of range"):
            pack(store, kit, None, [], created_s=created_s)


def test_tree_that_is_too_deep_is_refused(store: Store, kit: Path):
    """More directories inside each other than are walked, with the path."""
    path = kit / "m"
    for _ in range(DEPTH_MAX + 1):
        path = path / "d"
        path.mkdir()
    refuse(store, kit, PathUnreadable, f"more than {DEPTH_MAX} directories")


class Disturbing:
    """Disturbs the directory when the first bytes of a layer have been read."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def begin(self, _name: str, _size: int) -> "Disturbing":
        return self

    def advance(self, size: int) -> None:
        """Act once."""
        action, self._action = self._action, None
        if action is not None:
            action()

    def finish(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
def test_file_that_changes_while_it_is_read_is_an_error(store: Store, kit: Path, change: str):
    """Growing, shrinking and rewriting are noticed, and nothing of the layer stays."""
    path = kit / "m/w.bin"
    path.write_bytes(bytes(3 << 20))
    os.utime(path, ns=(0, 0))

    def disturb() -> None:
        if change == "rewrite":
            with path.open("r+b") as file:
                file.write(b"x")
        else:
            os.truncate(path, (4 << 20) if change == "grow" else (2 << 20))

    with pytest.raises(FileChanged, match=r"m/w\.bin"):
        pack(store, kit, None, [parse_reference("a:1")], progress=Disturbing(disturb))
    assert is_empty(store)


def test_file_swapped_for_a_link_is_not_followed(kit: Path):
    """What becomes a link, a pipe or nothing between the look and the opening is an error; nothing is followed."""
    path = kit / "m/w.bin"
    secret = kit / "secret"
    secret.write_text("s")
    swaps: list[Callable[[], object]] = [
        lambda: path.symlink_to(secret),
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: None,
    ]
    for swap in swaps:
        fd = os.open(kit, os.O_RDONLY)
        try:
            path.unlink(missing_ok=True)
            path.write_text("w")
            entries = iter_entries(fd, "m", IgnoreRules([], ["m"]).layer("m"), lambda _path, _mode: None)
            assert next(entries).path == "m"
            entry = next(entries)
            path.unlink()
            swap()
            with pytest.raises(PathUnreadable, match=r"m/w\.bin"), entry.open(lambda _size: None):
                pass
            if path.is_dir():
                path.rmdir()
        finally:
            os.close(fd)


def test_directory_swapped_for_a_link_is_not_followed(store: Store, kit: Path):
    """A directory that becomes a link to elsewhere while its neighbour is read is passed over."""
    (kit / "m/a").write_bytes(b"first")
    (kit / "m/z").mkdir()
    (kit / "m/z/inner").write_text("inner")
    outside = kit.parent / "outside"
    outside.mkdir()
    (outside / "inner").write_text("secret")

    def swap() -> None:
        (kit / "m/z").rename(kit.parent / "moved")
        (kit / "m/z").symlink_to(outside)

    warnings: list[str] = []
    digest = pack(store, kit, None, [], progress=Disturbing(swap), warn=warnings.append)
    (layer,) = parse_manifest(store.read_blob(digest)).layers
    assert [member.path for member in store.get_toc(layer.digest)] == [b"m", b"m/a", b"m/w.bin"]
    assert warnings == ["manifestVersion is '', expected '1.0.0'", "m/z is a symbolic link and is not packed"]


def test_path_of_the_parents_model_is_taken(store: Store, kit: Path):
    """A child can not put its own files where its parent's model lies."""
    pack(store, kit, None, [parse_reference("base:1")])
    (kit / "Kitfile").write_text("model:\n  path: base:1\ncode:\n  - path: ./m/\n")
    with pytest.raises(PathTaken, match="path m is taken: the model of base:1"):
        pack(store, kit, None, [parse_reference("child:1")])
    assert [tag for _, tag, _ in store.iter_tags()] == ["1"]


def test_tag_of_a_parent_can_not_move_onto_the_child(store: Store, kit: Path):
    """A chain that would come back to itself is refused, directly and over one kit between."""
    pack(store, kit, None, [parse_reference("a:1")])
    (kit / "Kitfile").write_text("model:\n  path: a:1\n")
    with pytest.raises(ParentChainMalformed, match="a:1 -> a:1"):
        pack(store, kit, None, [parse_reference("a:1")])
    pack(store, kit, None, [parse_reference("b:1")])
    (kit / "Kitfile").write_text("model:\n  path: b:1\n")
    with pytest.raises(ParentChainMalformed, match="a:1 -> b:1 -> a:1"):
        pack(store, kit, None, [parse_reference("a:1")])


def test_chain_of_parents_ends_at_ten(store: Store, kit: Path):
    """Ten parents pack, eleven do not."""
    pack(store, kit, None, [parse_reference("k:0")])
    for number in range(1, 11):
        (kit / "Kitfile").write_text(f"model:\n  path: k:{number - 1}\n")
        pack(store, kit, None, [parse_reference(f"k:{number}")])
    (kit / "Kitfile").write_text("model:\n  path: k:10\n")
    with pytest.raises(ParentChainMalformed, match="more than 10 parents"):
        pack(store, kit, None, [parse_reference("k:11")])


def test_value_that_json_can_not_hold_is_refused_with_its_line(store: Store, kit: Path):
    """NaN in parameters never reaches a config."""
    (kit / "Kitfile").write_text("model:\n  path: m\n  parameters: [.inf]\n")
    with pytest.raises((KitfileMalformed, JsonUnsupported), match="line 3"):
        pack(store, kit, None, [])
    assert is_empty(store)


def test_store_that_can_not_write_is_an_error(store: Store, kit: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk is the store's error; nothing is visible, and packing again succeeds."""
    real_write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 3000:
            raise OSError(28, "No space left on device")
        return real_write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreWriteFailed):
            pack(store, kit, None, [parse_reference("a:1")])
    assert is_empty(store)
    pack(store, kit, None, [parse_reference("a:1")])


def test_packs_of_one_tree_at_once_make_one_modelkit(store: Store, kit: Path):
    """Four threads that pack the same tree get the same ModelKitID, and each sets its tag."""
    results: list[Digest] = []

    def run(number: int) -> None:
        results.append(pack(store, kit, None, [parse_reference(f"a:{number}")], created_s=0))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1
    assert sorted(tag for _, tag, _ in store.iter_tags()) == ["0", "1", "2", "3"]
