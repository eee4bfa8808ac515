"""A store whose index is gone serves the same trees after `kitfs fsck --rebuild-index`, through the kernel."""

import hashlib
import os
from pathlib import Path

import pytest

REFERENCES = ["myllm:3.1.4", "myllm:3.1.4-gzip", "mp:raw", "registry.example.com:8080/acme/team_a/tuned:1"]


def read_tree(directory: Path) -> dict[str, tuple[int, str]]:
    """Path to inode number and digest of every file below a mount."""
    found = {}
    for folder, _, files in os.walk(directory):
        for name in files:
            path = Path(folder, name)
            digest = "" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(directory))] = (path.lstat().st_ino, digest)
    return found


@pytest.fixture
def kits(kitfs, shared_fixtures):
    """kit's and modctl's ModelKits, imported."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    kitfs.run("import", shared_fixtures / "modctl/layout", "--copy", "--as", "mp")
    return kitfs


def test_rebuilt_store_mounts_the_same_trees(kits):
    """Trees, and with an index that can still be read inode numbers too, are the same after the rebuild."""
    before = {}
    for number, reference in enumerate(REFERENCES):
        directory = kits.mount(reference, at=f"before-{number}")
        before[reference] = read_tree(directory)
        kits.run("umount", directory)
    kits.run("fsck", "--rebuild-index")
    for number, reference in enumerate(REFERENCES):
        directory = kits.mount(reference, at=f"same-{number}")
        assert read_tree(directory) == before[reference]
        kits.run("umount", directory)
    (kits.home / "index/data.mdb").unlink()
    kits.run("fsck", "--rebuild-index", status=1)
    for number, reference in enumerate(REFERENCES):
        kits.run("verify", reference)
        tree = read_tree(kits.mount(reference, at=f"after-{number}"))
        assert {path: digest for path, (_, digest) in tree.items()} == {
            path: digest for path, (_, digest) in before[reference].items()
        }


def test_rebuild_refuses_while_something_is_mounted(kits):
    """A mount has the index open: exit code 7, the mount goes on, and after umount the rebuild works."""
    directory = kits.mount("myllm:3.1.4-gzip")
    before = read_tree(directory)
    done = kits.run("fsck", "--rebuild-index", status=7)
    assert "umount" in done.stderr
    assert read_tree(directory) == before
    kits.run("umount", directory)
    kits.run("daemon", "stop")
    kits.run("fsck", "--rebuild-index")
