"""The verbs gc and fsck: what they print and how they end."""

import pytest

from kitfs.digest import Digest
from kitfs.store.store import Store


@pytest.fixture
def loose(tmp_path):
    """A store with one blob that nothing keeps; its digest."""
    with Store.open(tmp_path / "home") as store, store.lease("test") as lease:
        with store.ingest(lease) as ingest:
            ingest.write(b"loose")
            digest = ingest.commit_blob()
        change = store.change(lease)
        change.add_blob(digest, 5)
        change.commit()
    return digest


def test_gc_dry_run_says_what_would_go_and_why(kitfs, loose):
    """A dry run names the thing, its size and the reason, and the thing is still there afterwards."""
    done = kitfs("gc", "--dry-run")
    assert done.code == 0
    [header, row] = done.out.splitlines()
    assert header.split() == ["KIND", "NAME", "SIZE", "REASON"]
    assert row.split()[:3] == ["blob", str(loose), "5"]
    assert "no tag, lease, session or staging directory leads to it" in row
    assert "would be removed" in done.err
    assert kitfs("gc", "--dry-run", "-q").out == f"{loose}\n"


def test_gc_removes_and_then_has_nothing_to_do(kitfs, loose):
    """The JSON form tells what went; a second run removes nothing."""
    done = kitfs("gc", "--format", "json")
    assert done.json == {
        "dryRun": False,
        "size": 5,
        "kept": 0,
        "removed": [
            {
                "kind": "blob",
                "name": str(loose),
                "size": 5,
                "reason": "no tag, lease, session or staging directory leads to it",
            }
        ],
    }
    again = kitfs("gc")
    assert (again.code, again.out) == (0, "")


def test_gc_spares_what_is_young(kitfs, loose):
    """With a grace period a fresh blob stays."""
    assert kitfs("gc", "--grace", "3600", "-q").out == ""
    assert kitfs("gc", "--grace", "-1").code == 2
    assert kitfs("gc", "-q").out == f"{loose}\n"


def test_fsck_of_a_clean_store(kitfs, loose):
    """A clean store ends with 0 and says how much was looked at; a blob that nobody keeps is no damage."""
    done = kitfs("fsck", "--read-data")
    assert (done.code, done.out) == (0, "")
    assert "1 blobs and 0 members checked: clean" in done.err
    assert kitfs("fsck", "--format", "json").json == {
        "blobs": 1, "members": 0, "sizeRead": 0, "exitCode": 0, "findings": [],
    }  # fmt: skip


def test_fsck_of_a_lost_blob(kitfs, loose, tmp_path):
    """A blob whose file is gone ends with 6 and is named, in every form."""
    (tmp_path / "home" / "blobs" / "sha256" / loose.hex[:2] / loose.hex).unlink()
    done = kitfs("fsck")
    assert done.code == 6
    assert done.out.splitlines()[1].split()[:3] == ["lost", "missing-blob", str(loose)]
    assert "something is lost" in done.err
    assert kitfs("fsck", "-q").out == f"{loose}\n"
    assert kitfs("fsck", "--format", "json").json["findings"][0]["damage"] == "missing-blob"


def test_fsck_repairs(kitfs, tmp_path):
    """What can be made anew ends with 1, before and after the repair, and then the store is clean."""
    with Store.open(tmp_path / "home") as store, store.lease("test") as lease:
        with store.ingest(lease) as ingest:
            ingest.write(b"member")
            ingest.commit_member()
        change = store.change(lease)
        change.add_member(Digest.of(b"member"), 6)
        change.commit()
        store.layout.member(Digest.of(b"member")).unlink()
    before = kitfs("fsck")
    assert before.code == 1
    assert "to be repaired (--repair)" in before.err
    repaired = kitfs("fsck", "--repair")
    assert repaired.code == 1
    assert repaired.out.splitlines()[1].split()[:2] == ["repaired", "missing-member"]
    assert kitfs("fsck").code == 0


@pytest.mark.parametrize("verb", ["gc", "fsck"])
def test_absent_store_is_not_made(kitfs, tmp_path, verb):
    """Neither verb makes a store where there is none: exit code 3 and one line."""
    done = kitfs(verb)
    assert done.code == 3
    assert "no store at" in done.err
    assert not (tmp_path / "home").exists()
