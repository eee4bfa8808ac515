"""The order of writing, as the kernel saw it: store.md 2, step by step."""

import re
from pathlib import Path

import pytest

from kitfs.store.fsck import check
from kitfs.store.store import Store

CHILD = Path(__file__).with_name("store_child.py")
RENAME = re.compile(r'renameat2\(.*?"(?P<source>[^"]+)".*?"(?P<target>[^"]+)", RENAME_NOREPLACE\) = 0')


@pytest.fixture
def calls(strace, tmp_path, python):
    """The writing calls of a process that stores a ModelKit under two tags, paths relative to the home."""
    home = tmp_path / "home"
    strace.plain([*python, CHILD, "prepare", home])
    lines = strace.log([*python, CHILD, "work", home], "-s", "0")
    with Store.open(home) as store:
        assert not check(store, read_data=True).problems
    return [line.replace(f"{home}/", "") for line in lines]


def find(calls, pattern, start=0):
    """Where the first call after ``start`` matches."""
    return next(place for place in range(start, len(calls)) if re.search(pattern, calls[place]))


def renames(calls):
    return [(place, match) for place, line in enumerate(calls) if (match := RENAME.search(line))]


def test_content_is_on_disk_with_its_mode_before_it_has_a_name(calls):
    """Each ingest is written, made 0444 and fsynced, in this order, before its rename; nothing is written after."""
    ingests = [(place, match["source"]) for place, match in renames(calls) if match["source"].startswith("ingest/")]
    assert len(ingests) == 6
    linked = 0
    for rename, source in ingests:
        name = re.escape(source)
        synced = find(calls, rf"fsync\(\d+<{name}>\) = 0")
        if any(re.search(rf'linkat\(.*"{name}"', line) for line in calls):
            linked += 1
            assert synced < rename
            continue
        written = find(calls, rf"write\(\d+<{name}>")
        assert written < find(calls, rf"fchmod\(\d+<{name}>, 0444\)") < synced < rename
        assert not any(re.search(rf"write\(\d+<{name}>", line) for line in calls[synced:])
    assert linked == 1


def test_name_is_on_disk_before_the_index_has_it(calls):
    """Each rename is followed by an fsync of its directory, before the next page of the index is written."""
    for rename, match in renames(calls):
        folder = re.escape(str(Path(match["target"]).parent))
        synced = find(calls, rf"fsync\(\d+<{folder}>\) = 0", rename)
        assert synced < find(calls, r"(pwrite64|writev|pwritev)\(\d+<index/data.mdb>", rename)


def test_lease_notes_a_blob_before_it_is_in_place(calls):
    """The digest is in the lease's file before its blob has a name."""
    blobs = [place for place, match in renames(calls) if match["target"].startswith("blobs/")]
    notes = [place for place, line in enumerate(calls) if re.search(r"write\(\d+<leases/", line)]
    assert len(notes) == len(blobs)
    assert all(note < blob for note, blob in zip(notes, blobs, strict=True))


def test_tag_is_in_the_log_before_the_index_and_acknowledged_last(calls):
    """tags.log is written and fsynced, then the transaction is, then the step is acknowledged."""
    start = 0
    for _ in range(2):
        written = find(calls, r"write\(\d+<tags\.log>", start)
        synced = find(calls, r"fsync\(\d+<tags\.log>\) = 0", written)
        pages = find(calls, r"fdatasync\(\d+<index/data\.mdb>\) = 0", synced)
        meta = find(calls, r"pwrite64\(\d+<index/data\.mdb>", pages)
        start = find(calls, r"write\(1<", meta)


def test_no_more_is_synced_than_needed(calls):
    """A blob costs two fsyncs (itself, its directory), a change of tags one and a commit, nothing else."""
    fsyncs = [line for line in calls if " fsync(" in line or line.startswith("fsync(")]
    commits = [line for line in calls if "fdatasync(" in line]
    assert len(fsyncs) == 2 * 6 + 2
    assert len(commits) == 4


def test_name_of_the_index_is_on_disk_before_its_first_transaction(strace, tmp_path, python):
    """LMDB never syncs the folder of a file it makes: without this a power cut could take all of a new index."""
    home = tmp_path / "home"
    lines = [line.replace(f"{home}/", "") for line in strace.log([*python, CHILD, "prepare", home], "-s", "0")]
    made = find(lines, r"pwrite64\(\d+<index/data\.mdb>|writev\(\d+<index/data\.mdb>")
    assert find(lines, r"fsync\(\d+<index>\) = 0", made) < find(lines, r"fdatasync\(\d+<index/data\.mdb>\) = 0")
