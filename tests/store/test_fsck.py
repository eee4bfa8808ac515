"""The check names every class of damage, and a repair mends what can be mended."""

import os

import pytest

from kitfs.digest import Digest
from kitfs.store import catalog, schema
from kitfs.store.findings import Weight
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.outline import MEMBERS_MIN
from kitfs.store.records import CountRecord, InodeRange, LayerRecord, TocMember
from kitfs.store.repair import repair
from kitfs.store.store import Store

LAYER = Digest.of(b"layer")
MEMBER = Digest.of(b"member")


def rewrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def rot(path, data):
    """Other bytes, the same size, the same times: as if the disk had done it."""
    status = path.stat()
    rewrite(path, data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def raw_put(store, table, key, value):
    with store.index.write() as txn:
        txn._txn.put(schema.PREFIXES[table] + key, value)


def raw_delete(store, table, key):
    with store.index.write() as txn:
        txn.delete(table, key)


def corrupt(table, index=0):
    def damage(store):
        with store.index.read() as txn:
            key, value = list(txn.iter_raw(table))[index]
        raw_put(store, table, key, value[:-1] + bytes((value[-1] ^ 1,)))

    return damage


def misplace_manifest(store):
    manifest = store.get_tag("localhost/myllm", "1").manifest
    with store.index.write() as txn:
        txn.delete(schema.MANIFESTS, manifest.raw)


def overlap(store):
    for key in (b"a", b"b"):
        with store.index.write() as txn:
            txn.put(schema.INODE_BASES, schema.encode_text_key(key), InodeRange(key, 2, 5))


def count_wrong(store):
    with store.index.write() as txn:
        txn.put(schema.COUNTS, schema.COUNT_TAGS, CountRecord(9))


def stray(store):
    (store.layout.content("blobs") / "ab" / "README").write_text("?")


DAMAGES = {
    "missing-blob": lambda store: store.layout.blob(LAYER).unlink(),
    "wrong-size": lambda store: rewrite(store.layout.blob(LAYER), b"lay"),
    "wrong-digest": lambda store: rot(store.layout.blob(LAYER), b"LAYER"),
    "missing-member": lambda store: store.layout.member(MEMBER).unlink(),
    "stale-member": lambda store: rot(store.layout.member(MEMBER), b"MEMBER"),
    "wrong-member-digest": lambda store: rot(store.layout.member(MEMBER), b"MEMBER"),
    "incomplete-manifest": lambda store: raw_delete(store, schema.BLOBS, LAYER.raw),
    "layer-without-blob": lambda store: raw_delete(store, schema.BLOBS, LAYER.raw),
    "incomplete-layer": lambda store: raw_delete(store, schema.TOCS, schema.encode_sequence_key(LAYER, 0)),
    "tag-without-manifest": misplace_manifest,
    "disagreeing-counts": count_wrong,
    "overlapping-inodes": overlap,
}
LOST = {"missing-blob", "wrong-size", "wrong-digest", "incomplete-layer", "overlapping-inodes"}


@pytest.fixture
def full(damaged, build_damaged):
    """A store with every kind of record."""
    build_damaged.kit()
    build_damaged.member(b"member")
    toc = [TocMember(b"%d" % number, 0, 0o644, 0, 0, Digest.of(b"").raw) for number in range(MEMBERS_MIN + 1)]
    with damaged.lease("outline") as lease:
        change = damaged.change(lease)
        change.add_layer(LAYER, LayerRecord(LAYER, "tar", "none", len(toc), 5, 0), toc, b"c" * 16)
        change.commit()
    damaged.inode_base(b"tree", 3)
    assert check(damaged, read_data=True).exit_code == 0
    return damaged


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_what_it_hit(full, damage):
    """Each class of damage is found under its name, and the exit code is not 0."""
    DAMAGES[damage](full)
    report = check(full, read_data=True)
    assert damage in {finding.damage for finding in report.problems}
    assert report.exit_code in (1, 6)


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_mends_or_says_what_is_lost(full, damage):
    """After a repair what was derived is right again and said once; what is lost is said with exit code 6."""
    DAMAGES[damage](full)
    report = repair(full, read_data=True)
    assert report.exit_code == (6 if damage in LOST else 1)
    if damage not in LOST:
        assert check(full, read_data=True).exit_code == 0
        assert repair(full).exit_code == 0


@pytest.mark.parametrize("table", [table for table in schema.PREFIXES if table != schema.COUNTS])
def test_corrupt_record_of_every_table_is_found(full, table):
    """A flipped bit in a record of any table is found; no other record is accused of it."""
    corrupt(table)(full)
    found = [finding for finding in check(full).findings if finding.damage == "corrupt-record"]
    assert [finding.name.partition("[")[0] for finding in found] == [table]


@pytest.mark.parametrize("table", [schema.TAGS, schema.MANIFESTS, schema.BLOBS, schema.MEMBERS, schema.COUNTS])
def test_corrupt_records_are_made_anew(full, table):
    """Records of tags, manifests, blobs, members and counts are made anew from files and the log."""
    before = [(repository, tag, record.manifest) for repository, tag, record in full.iter_tags()]
    manifests = list(full.iter_manifests())
    corrupt(table)(full)
    assert repair(full).exit_code == 1
    assert [(repository, tag, record.manifest) for repository, tag, record in full.iter_tags()] == before
    assert list(full.iter_manifests()) == manifests
    assert check(full, read_data=True).exit_code == 0


@pytest.mark.parametrize("index", range(4))
def test_corrupt_count_keeps_nobody_from_opening(full, index):
    """With any record of the counts corrupt the store opens, is read, and is mended by a repair."""
    corrupt(schema.COUNTS, index)(full)
    with Store.open(full.home) as again:
        assert again.find_tag("localhost/myllm", "1") is not None
        assert repair(again).exit_code == 1
        assert check(again, read_data=True).exit_code == 0


def test_corrupt_blob_is_moved_aside_and_healed_by_storing_it_again(full, build_damaged):
    """A repair moves a corrupt blob to quarantine; storing the ModelKit again makes the store clean (I7)."""
    DAMAGES["wrong-digest"](full)
    assert repair(full, read_data=True).exit_code == 6
    [quarantined] = full.layout.quarantine.iterdir()
    assert quarantined.read_bytes() == b"LAYER"
    build_damaged.kit()
    assert check(full, read_data=True).exit_code == 0


def test_unknown_key_is_found(full):
    """A key of no table is damage."""
    with full.index.write() as txn:
        txn._txn.put(b"zzz", b"value")
    assert check(full).exit_code == 6


def test_leftovers_are_notes(full, build_damaged):
    """What GC will remove, and files that are not ours, are mentioned and are no damage."""
    with full.lease("test") as lease:
        build_damaged.put(lease, b"unrecorded")
    (full.layout.ingest / "dead.1").write_bytes(b"x")
    (full.layout.leases / "dead").write_bytes(b"")
    stray(full)
    report = check(full, read_data=True)
    assert report.exit_code == 0
    assert sorted({finding.damage for finding in report.findings}) == ["leftover", "unknown-file"]
    assert len(report.findings) == 4
    assert all(finding.weight is Weight.NOTE for finding in report.findings)


def test_rot_is_found_only_by_reading(full):
    """A blob that rotted below the file system looks right until its bytes are read."""
    DAMAGES["wrong-digest"](full)
    assert check(full).exit_code == 0
    report = check(full, read_data=True)
    assert report.exit_code == 6
    assert report.size_read > 5


def test_tag_that_only_the_log_has_comes_back(full):
    """A tag that vanished from the table is restored from the log by a repair."""
    raw_delete(full, schema.TAGS, schema.encode_tag_key("localhost/myllm", "1"))
    assert check(full).exit_code == 1
    assert repair(full).exit_code == 1
    assert full.find_tag("localhost/myllm", "1") is not None
    assert check(full).exit_code == 0


def test_layer_without_its_table_of_contents_is_found(damaged, build_damaged):
    """A store whose index was made anew from its files is not clean: its ModelKits can not be mounted."""
    build_damaged.kit("kit", [b"layer"])
    with damaged.index.write() as txn:
        catalog.delete_layer(txn, Digest.of(b"layer"))
    report = check(damaged)
    assert [(finding.damage, finding.name) for finding in report.problems] == [
        ("unindexed-layer", str(Digest.of(b"layer")))
    ]
    assert report.exit_code == 6


def test_pipe_in_the_place_of_a_blob_is_found_without_waiting(damaged, build_damaged):
    """What is no plain file is named and never opened."""
    build_damaged.kit("kit", [b"layer"])
    path = damaged.layout.blob(Digest.of(b"layer"))
    path.unlink()
    os.mkfifo(path)
    assert [finding.damage for finding in check(damaged, read_data=True).problems] == ["missing-blob"]


def test_store_with_a_corrupt_log_position_can_be_opened_and_repaired(damaged, build_damaged):
    """The one record that every opening reads keeps nobody from reading, nor fsck from mending it."""
    manifest = build_damaged.kit()
    raw_put(damaged, schema.COUNTS, schema.LOG_POSITION, b"rotten")
    home = damaged.home
    damaged.close()
    with Store.open(home) as store:
        assert store.get_tag("localhost/myllm", "1").manifest == manifest
        assert [finding.damage for finding in check(store).problems] == ["corrupt-record"]
        assert repair(store).exit_code == 1
        assert check(store).problems == []
        gc(store)
        assert store.get_tag("localhost/myllm", "1").manifest == manifest
