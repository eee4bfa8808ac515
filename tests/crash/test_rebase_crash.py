"""Moving a staging directory onto another ModelKit, killed or broken at any of its calls."""

import shutil
from pathlib import Path

import pytest

from kitfs.modelkit.staging import open_staging
from kitfs.store.gc import gc
from kitfs.store.staging import iter_registrations
from kitfs.store.store import Store

CHILD = Path(__file__).with_name("rebase_child.py")
CALLS = ("mkdir", "rename", "unlink", "unlinkat", "rmdir", "fsync", "write", "chmod", "fchmod")


@pytest.fixture
def prepared(strace, python, tmp_path):
    """A store and a staging directory, to be copied: nothing in them depends on where they lie but paths."""
    home, folder = tmp_path / "home", tmp_path / "folder"
    strace.plain([*python, CHILD, "prepare", home, folder])
    with Store.open(home) as store:
        tags = {repository: record.manifest for repository, _, record in store.iter_tags()}
    return home, folder, tags["localhost/one"], tags["localhost/two"]


def untag(home) -> None:
    """Leave nothing but the staging directory to keep both ModelKits."""
    with Store.open(home) as store, store.lease("untag") as lease:
        change = store.change(lease)
        for repository, tag, _ in list(store.iter_tags()):
            change.remove_tag(repository, tag)
        change.commit()
        gc(store)


@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO"])
def test_killed_rebase_leaves_the_old_or_the_new(prepared, strace, points, python, tmp_path, fault, assert_holds):
    """All that was changed over the former ModelKit, or nothing over the other; it can be repeated."""
    home, folder, old, new = prepared
    command = [*python, CHILD, "work", home, folder]
    restored = {folder / "work": tmp_path / "kept", home / "staging": tmp_path / "registered"}
    for path, copy in restored.items():
        shutil.copytree(path, copy, symlinks=True)
    counts = strace.count(command, CALLS)
    met = 0
    for call, number in points(counts, CALLS):
        for path, copy in restored.items():
            shutil.rmtree(path)
            shutil.copytree(copy, path, symlinks=True)
        met += strace.run(command, call, number, fault).returncode != 0
        staging = open_staging(folder / "work")
        changed = sorted(path.name for path in staging.upper.rglob("*"))
        assert (staging.manifests, changed) in (([old], ["changed", "folder"]), ([new], []))
        with Store.open(home) as store:
            ((_, registration),) = iter_registrations(store.layout)
            assert str(staging.manifests[0]) in registration.manifests
        strace.plain(command)
        staging = open_staging(folder / "work")
        assert staging.manifests == [new] and list(staging.upper.iterdir()) == []
        assert sorted(path.name for path in staging.path.iterdir()) == ["staging.json", "upper", "work"]
    assert met > len(CALLS) // 2
    untag(home)
    with Store.open(home) as store:
        assert [digest for digest, _ in store.iter_manifests()] == [new]
    assert_holds(home)
