"""A rebuild of the index that is killed at any moment leaves the old index or the new one, whole."""

import shutil

import pytest

from kitfs.modelkit.rebuild import rebuild_index
from kitfs.progress import NoProgress
from kitfs.store import catalog
from kitfs.store.store import Store
from kitfs.transfer.detect import open_source
from kitfs.transfer.importer import import_source

CALLS = ("fdatasync", "pwrite64", "pwritev", "rename", "link", "linkat", "fsync", "ftruncate", "unlink", "unlinkat")
REBUILD = (
    "import sys; from pathlib import Path; from kitfs.progress import NoProgress\n"
    "from kitfs.modelkit.rebuild import rebuild_index\n"
    "rebuild_index(Path(sys.argv[1]), NoProgress())"
)


def read_index(home):
    """Tags, blobs, and the layers with what is in them."""
    with Store.open(home) as store:
        blobs = {digest: (record.size, record.form, record.media_types) for digest, record in store.iter_blobs()}
        layers = {digest: store.get_toc(digest) for digest in blobs if store.find_layer(digest)}
        return list(store.iter_tags()), list(store.iter_manifests()), blobs, layers


@pytest.fixture
def forgetful(tmp_path, shared_fixtures):
    """A store whose index has forgotten a layer: its home, what it says, and what one made anew says."""
    home = tmp_path / "home"
    source = open_source(shared_fixtures / "kit-v0.2.3")
    with Store.open(home) as store:
        import_source(store, source, copy=True)
        layer = next(digest for digest, _ in store.iter_blobs() if store.find_layer(digest))
    source.close()
    new = read_index(home)
    with Store.open(home) as store, store.index.write() as txn:
        catalog.delete_layer(txn, layer)
    return home, read_index(home), new


def test_killed_rebuild_leaves_the_old_or_the_new_index(strace, points, python, forgetful, assert_holds):
    """Killed at a writing call, the store opens with one of the two; the same command again makes the new one."""
    home, old, new = forgetful
    assert old != new
    kept = home.with_name("kept")
    shutil.copytree(home / "index", kept)
    command = [*python, "-c", REBUILD, home]
    counts = strace.count(command)
    assert read_index(home) == new
    seen = {"old": 0, "new": 0}
    last = [(name, counts[name]) for name in ("fsync", "ftruncate") if counts[name]]  # behind the rename
    for name, number in dict.fromkeys([*points(counts, CALLS), *last]):
        shutil.rmtree(home / "index")
        shutil.copytree(kept, home / "index")
        strace.run(command, name, number, "signal=KILL")
        found = read_index(home)
        assert found in (old, new), (name, number)
        seen["old" if found == old else "new"] += 1
        strace.plain(command)
        assert read_index(home) == new
        assert_holds(home)
        assert not (home / "index.new").exists()
    assert seen["old"] > 2
    assert seen["new"]
    print(dict(counts), seen)


def test_what_a_killed_rebuild_left_goes_with_the_next_collection(forgetful, assert_holds):
    """The folder of an index that was not finished is removed by GC."""
    home, _, _ = forgetful
    rebuild_index(home, NoProgress())
    shutil.copytree(home / "index", home / "index.new")
    assert_holds(home)
    assert not (home / "index.new").exists()
