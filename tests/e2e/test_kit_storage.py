"""The main job without a set-up: kit pulled it, `kitfs mount` serves it."""

import json
import os
from pathlib import Path

import pytest

TAGS = "storage/bG9jYWxob3N0L215bGxt-tags.json"


@pytest.fixture
def kitops_home(kitfs, shared_fixtures, copy_writable) -> Path:
    """kit's home with the ModelKits of kit 1.7.0, where the environment names it."""
    return copy_writable(shared_fixtures / "kit-v1.7.0", Path(kitfs.environment["KITOPS_HOME"]))


def test_mount_straight_from_kits_storage(kitfs, kitops_home):
    """With KITOPS_HOME set, one command mounts what kit has."""
    directory = kitfs.mount("myllm:3.1.4")
    assert (directory / "model/config.json").stat().st_size == 612
    assert kitfs.run("list", "-q").stdout != ""


@pytest.mark.root
def test_mount_writable_straight_from_kits_storage(kitfs, kitops_home):
    """A writable mount, too, finds what kit has in a store that is new."""
    directory = kitfs.mount("myllm:3.1.4", "--writable")
    (directory / "model/config.json").write_text("{}")
    assert kitfs.run("diff", directory).stdout == "M model/config.json\n"


def test_a_parent_comes_along(kitfs, kitops_home):
    """A kit whose model is a reference brings its parent in from the same storage."""
    directory = kitfs.mount("registry.example.com:8080/acme/team_a/tuned:1")
    assert (directory / "head/classifier.bin").stat().st_size == 200_000
    assert (directory / "model/vocab.txt").stat().st_size == 231_508


def test_blobs_of_the_same_owner_are_linked(kitfs, kitops_home):
    """Import from kit's storage copies nothing: blobs are hard links, and outlive kit's own."""
    kitfs.run("import", kitops_home)
    inodes = {path.stat().st_ino for path in (kitops_home / "storage/blobs/sha256").iterdir()}
    blobs = [path for path in (kitfs.home / "blobs").rglob("*") if path.is_file()]
    assert sum(path.stat().st_ino in inodes for path in blobs) == len(inodes) - 14  # manifests and configs are copied


def test_a_tag_that_kit_moved_is_imported_anew(kitfs, kitops_home):
    """At each mount a tag from kit's storage is looked up there again, and the move is said."""
    kitfs.mount("myllm:latest", at="before")
    tags = kitops_home / TAGS
    recorded = json.loads(tags.read_text())
    recorded["latest"] = recorded["3.1.4-gzip"]
    tags.write_text(json.dumps(recorded))
    (kitfs.folder / "after").mkdir()
    said = kitfs.run("mount", "myllm:latest", kitfs.folder / "after").stderr
    assert "moved" in said
    identity = (kitfs.folder / "after/.kitfs/id").read_text().strip()
    assert identity == recorded["latest"]["digest"]
    assert (kitfs.folder / "before/.kitfs/id").read_text().strip() != identity


def test_a_tag_set_by_kitfs_stays(kitfs, kitops_home):
    """A tag that kitfs set is not looked up in kit's storage."""
    kitfs.run("import", kitops_home)
    kitfs.run("tag", "myllm:3.1.4-gzip", "myllm:latest")
    directory = kitfs.mount("myllm:latest")
    wanted = json.loads((kitops_home / TAGS).read_text())["3.1.4-gzip"]["digest"]
    assert (directory / ".kitfs/id").read_text().strip() == wanted


def test_kit_removing_its_blobs_does_not_break_a_mount(kitfs, kitops_home):
    """What kit deletes from its storage goes on being served."""
    directory = kitfs.mount("myllm:3.1.4")
    for path in (kitops_home / "storage/blobs/sha256").iterdir():
        path.unlink()
    assert len((directory / "model/model-00001-of-00002.safetensors").read_bytes()) == 2_438_224
    assert os.statvfs(directory).f_files > 0
