"""tags.log: written before the index, finished or cut at the next opening."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.digest import Digest
from kitfs.store import schema, tags, tags_log
from kitfs.store.errors import IndexFailed, StoreWriteFailed, TagsLogCorrupt
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.records import LogPosition
from kitfs.store.repair import repair
from kitfs.store.store import Store
from kitfs.store.tags_log import LogLine, LogSet

REPOSITORY = "localhost/myllm"
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: str(Digest.from_raw(raw)))
LINES = st.builds(
    LogLine,
    st.integers(0, 1 << 40),
    st.lists(st.builds(LogSet, st.text(max_size=20), st.text(max_size=5), DIGESTS, st.text(max_size=5)), max_size=3),
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=5)), max_size=3),
)


def set_of(store):
    return {tag: record.manifest for _, tag, record in store.iter_tags()}


def append_unapplied(store, tag, manifest):
    """What a process leaves that dies between the log and the transaction."""
    line = LogLine(7, [LogSet(REPOSITORY, tag, str(manifest), "kit")])
    return tags_log.append(store.layout.tags_log, line)


@given(LINES, st.integers(0, 1 << 50))
def test_line_is_read_back_at_its_own_place_only(line, offset):
    """A line is parsed where it was written, and nowhere else."""
    raw = tags_log.encode_line(offset, line)
    assert raw.count(b"\n") == 1
    assert tags_log.parse_line(offset, raw[:-1]) == line
    assert tags_log.parse_line(offset + 1, raw[:-1]) is None


@given(LINES, st.data())
def test_every_flipped_bit_of_a_line_is_noticed(line, data):
    """No line with one bit flipped is parsed."""
    raw = bytearray(tags_log.encode_line(0, line)[:-1])
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert tags_log.parse_line(0, bytes(raw)) is None


def test_unapplied_line_is_applied_at_the_next_opening(store, build):
    """A line that the index lacks sets its tag when the store is opened again, and only once."""
    manifest = build.kit()
    append_unapplied(store, "2", manifest)
    assert set_of(store) == {"1": manifest}
    with Store.open(store.home) as again:
        assert set_of(again) == {"1": manifest, "2": manifest}
        assert again.get_tag(REPOSITORY, "2").origin == "kit"
        assert again.get_tag(REPOSITORY, "2").set_s == 7


def test_unapplied_line_is_applied_before_the_next_change(store, build):
    """A process that has the store open applies a dead one's line before it writes its own."""
    manifest = build.kit()
    append_unapplied(store, "2", manifest)
    build.kit("other", tags=[(REPOSITORY, "3")])
    assert set(set_of(store)) == {"1", "2", "3"}


def test_index_that_lacks_everything_gets_tags_and_manifests_from_the_files(store_home, build_store):
    """After the index is lost, opening makes tags, manifests and blobs from the files; layers wait for an import."""
    with Store.open(store_home) as store:
        manifest = build_store(store).kit(layers=[b"one", b"two"])
    for name in ("data.mdb", "lock.mdb"):
        (store_home / "index" / name).unlink()
    with Store.open(store_home) as store:
        assert set_of(store) == {"1": manifest}
        assert len(store.get_manifest(manifest).layers) == 2
        assert store.get_blob(Digest.of(b"one")).size == 3
        gc(store)
        assert {finding.damage for finding in check(store, read_data=True).problems} == {"unindexed-layer"}
        build_store(store).kit(layers=[b"one", b"two"])
        assert not check(store, read_data=True).problems


def test_line_whose_files_are_gone_is_not_applied_and_stops_gc(damaged, build_damaged):
    """A tag that can not be restored is no tag, and nothing is swept while the log knows more."""
    build_damaged.kit()
    append_unapplied(damaged, "2", Digest("0" * 64))
    with Store.open(damaged.home) as again:
        assert set(set_of(again)) == {"1"}
        with pytest.raises(Exception, match=r"tags\.log says that localhost/myllm:2"):
            gc(again)
        assert "disagreeing-counts" in {finding.damage for finding in check(again).problems}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_torn_last_line_is_cut(store, build, cut):
    """A last line that was written in part is cut at the next opening, and never applied."""
    manifest = build.kit()
    size = store.layout.tags_log.stat().st_size
    _, stop = append_unapplied(store, "2", manifest)
    os.truncate(store.layout.tags_log, stop - cut)
    with Store.open(store.home) as again:
        assert set_of(again) == {"1": manifest}
        assert store.layout.tags_log.stat().st_size == size
        build.kit("other", tags=[(REPOSITORY, "3")])


def test_last_line_of_zeros_is_cut(store, build):
    """A last line whose page never reached the disk, zeros, is cut."""
    manifest = build.kit()
    with open(store.layout.tags_log, "ab") as log:
        log.write(bytes(300))
    with Store.open(store.home) as again:
        assert set_of(again) == {"1": manifest}


def test_corrupt_line_before_a_whole_one_is_named(damaged, build_damaged):
    """A bad line inside the log is no torn end: reading goes on, changes and GC refuse and name its offset."""
    manifest = build_damaged.kit()
    start, _ = append_unapplied(damaged, "2", manifest)
    append_unapplied(damaged, "3", manifest)
    with open(damaged.layout.tags_log, "r+b") as log:
        log.seek(start + 40)
        log.write(b"X")
    with Store.open(damaged.home) as again:
        assert set_of(again) == {"1": manifest}
        with pytest.raises(TagsLogCorrupt, match=str(start)):
            gc(again)
        with pytest.raises(TagsLogCorrupt, match=str(start)):
            build_damaged.kit("other")
        assert {finding.damage for finding in check(again).problems} == {"corrupt-tags-log"}
        assert repair(again).exit_code == 1
        assert set_of(again) == {"1": manifest}
        gc(again)
    with Store.open(damaged.home) as again:
        assert check(again).exit_code == 0


def test_failed_append_leaves_the_log_as_it_was(store, build, monkeypatch):
    """When the log can not be synced, the change fails, the tag stays as it was, and trying again works."""
    manifest = build.kit()
    size = store.layout.tags_log.stat().st_size
    fsync = os.fsync

    def fail(fd):
        if os.readlink(f"/proc/self/fd/{fd}").endswith("tags.log"):
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with store.lease("test") as lease:
        change = store.change(lease)
        change.set_tag(REPOSITORY, "2", manifest)
        with pytest.raises(StoreWriteFailed):
            change.commit()
    assert store.layout.tags_log.stat().st_size == size
    monkeypatch.undo()
    assert set_of(store) == {"1": manifest}
    build.kit("other", tags=[(REPOSITORY, "2")])


def test_failed_transaction_takes_its_line_back(store, build, monkeypatch):
    """When the transaction after the log fails, the line is cut off again and the tag never appears."""
    manifest = build.kit()
    size = store.layout.tags_log.stat().st_size

    def fail(*_):
        raise IndexFailed(store.layout.index, "no space")

    with store.lease("test") as lease:
        change = store.change(lease)
        change.set_tag(REPOSITORY, "2", manifest)
        monkeypatch.setattr("kitfs.store.change.LogPosition", fail)
        with pytest.raises(IndexFailed):
            change.commit()
    assert store.layout.tags_log.stat().st_size == size
    with Store.open(store.home) as again:
        assert set_of(again) == {"1": manifest}


def test_log_that_was_cut_short_stops_gc(damaged, build_damaged):
    """When the log has lost acknowledged lines, GC sweeps nothing; a repair writes it anew from the table."""
    manifest = build_damaged.kit()
    os.truncate(damaged.layout.tags_log, 0)
    with pytest.raises(Exception, match=r"tags\.log"):
        gc(damaged)
    assert list(damaged.iter_manifests())
    assert repair(damaged).exit_code == 1
    assert set_of(damaged) == {"1": manifest}
    gc(damaged)
    assert check(damaged, read_data=True).exit_code == 0


def test_position_is_where_the_log_ends(store, build):
    """After any change the index knows exactly how much of the log it has."""
    build.kit()
    with store.lease("test") as lease:
        change = store.change(lease)
        change.remove_tag(REPOSITORY, "1")
        change.commit()
    with store.index.read() as txn:
        assert tags.log_position(txn) == store.layout.tags_log.stat().st_size
        assert txn.find(schema.COUNTS, schema.LOG_POSITION, LogPosition).size > 0


def test_repair_keeps_every_tag_that_either_side_still_has(damaged, build_damaged):
    """With a corrupt record in the table and a corrupt line in the log, tags of the other records and lines stay."""
    first, second = build_damaged.kit("a", tags=[(REPOSITORY, "1")]), build_damaged.kit("b", tags=[(REPOSITORY, "2")])
    third = build_damaged.kit("c", tags=[(REPOSITORY, "3")])
    with damaged.index.write() as txn:
        txn._txn.put(b"t" + schema.encode_tag_key(REPOSITORY, "1"), b"\x01" + bytes(40))
    log = bytearray(damaged.layout.tags_log.read_bytes())
    log[log.index(b"\n") + 50] ^= 1
    damaged.layout.tags_log.write_bytes(log)
    assert check(damaged).exit_code != 0
    assert repair(damaged).exit_code == 1
    assert set_of(damaged) == {"1": first, "2": second, "3": third}
    assert check(damaged, read_data=True).exit_code == 0


def test_full_disk_keeps_nobody_from_reading(store, build, monkeypatch):
    """When a line left behind can not be applied for want of space, the store opens with the old tags."""
    manifest = build.kit()
    append_unapplied(store, "2", manifest)

    def fail(*_):
        raise IndexFailed(store.layout.index, "No space left on device")

    monkeypatch.setattr("kitfs.store.tags.put_tag", fail)
    with Store.open(store.home) as again:
        monkeypatch.undo()
        assert set_of(again) == {"1": manifest}
    with Store.open(store.home) as again:
        assert set_of(again) == {"1": manifest, "2": manifest}
