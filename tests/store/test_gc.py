"""Garbage collection: what goes and why, and when nothing may go. What stays is in the contract suite."""

import os
import threading

import pytest

from kitfs.digest import Digest
from kitfs.store import schema
from kitfs.store.errors import IndexDisagrees, RecordCorrupt
from kitfs.store.gc import gc
from kitfs.store.records import CountRecord


def names(report):
    return {(victim.kind, victim.name) for victim in report.victims}


def test_dry_run_says_what_would_go_and_touches_nothing(store, build):
    """The same things with the same reasons are named by a dry run and then removed; nothing else."""
    kept, loose = build.kit("kept"), build.kit("loose", [b"12345"], tags=[])
    before = sorted(store.home.rglob("*"))
    generation = store.generation()
    dry = gc(store, dry_run=True)
    assert sorted(store.home.rglob("*")) == before
    assert store.generation() == generation
    assert ("ModelKit", str(loose)) in names(dry)
    assert ("blob", str(Digest.of(b"12345"))) in names(dry)
    assert all(victim.reason for victim in dry.victims)
    real = gc(store)
    assert names(real) == names(dry)
    assert real.size == dry.size > 5
    assert gc(store).victims == []
    assert store.find_manifest(kept) is not None


def test_unrecorded_files_go(store, build):
    """A blob and a member that were placed by an operation which never recorded them are removed."""
    with store.lease("test") as lease:
        build.put(lease, b"blob")
        build.put(lease, b"member", member=True)
    report = gc(store)
    assert {(victim.kind, victim.reason) for victim in report.victims} == {
        ("blob", "the operation that stored it did not finish"),
        ("member", "the operation that stored it did not finish"),
    }
    assert gc(store).victims == []


def test_grace_keeps_what_is_young_and_what_it_leads_to(store, build):
    """Within the grace period nothing goes; after it everything does."""
    build.kit(tags=[])
    with store.lease("test") as lease:
        build.put(lease, b"unrecorded")
    assert gc(store, grace_s=3600).victims == []
    assert len(gc(store, grace_s=0).victims) == 4


def test_trash_of_an_interrupted_run_goes(store):
    """Files that an earlier run had renamed away and not unlinked are removed by the next."""
    (store.layout.ingest / "trash-abc.0").write_bytes(b"x" * 10)
    (store.layout.ingest / "gone-lease.1").write_bytes(b"y")
    report = gc(store)
    assert report.size == 11
    assert list(store.layout.ingest.iterdir()) == []


def test_open_file_outlives_its_name(store, build):
    """Who has a blob open reads on after GC has removed it."""
    build.kit(layers=[b"layer"], tags=[])
    fd = store.open_blob(Digest.of(b"layer"))
    gc(store)
    assert os.read(fd, 10) == b"layer"
    os.close(fd)


def delete_tag(txn):
    txn._txn.delete(b"t" + schema.encode_tag_key("localhost/myllm", "1"))


def delete_manifest(txn):
    [(key, _)] = list(txn.iter_raw(schema.MANIFESTS))
    txn._txn.delete(b"m" + key)


def delete_count(txn):
    txn.delete(schema.COUNTS, schema.COUNT_TAGS)


def change_count(txn):
    count = txn.find(schema.COUNTS, schema.COUNT_MANIFESTS, CountRecord)
    txn.put(schema.COUNTS, schema.COUNT_MANIFESTS, CountRecord(count.count, bytes(16)))


@pytest.mark.parametrize("vanish", [delete_tag, delete_manifest, delete_count, change_count])
def test_vanished_record_stops_the_sweep(damaged, build_damaged, vanish):
    """When a tag, manifest or count vanished from the index without an error, nothing is swept."""
    build_damaged.kit()
    with damaged.index.write() as txn:
        vanish(txn)
    files = sorted(damaged.layout.content("blobs").glob("*/*"))
    for dry_run in (True, False):
        with pytest.raises(IndexDisagrees):
            gc(damaged, dry_run=dry_run)
    assert sorted(damaged.layout.content("blobs").glob("*/*")) == files


@pytest.mark.parametrize("table", [schema.TAGS, schema.MANIFESTS, schema.BLOBS, schema.LAYERS, schema.TOCS])
def test_corrupt_record_stops_the_sweep(damaged, build_damaged, table):
    """A record that does not verify on the way from the roots is an error, and nothing goes."""
    build_damaged.kit()
    build_damaged.member(b"layer")
    with damaged.index.write() as txn:
        [key, *_] = [key for key, _ in txn.iter_raw(table)]
        txn._txn.put(schema.PREFIXES[table] + key, b"\x01" + bytes(40))
    files = sorted(damaged.layout.content("blobs").glob("*/*"))
    with pytest.raises((RecordCorrupt, IndexDisagrees)):
        gc(damaged)
    assert sorted(damaged.layout.content("blobs").glob("*/*")) == files


def test_collections_at_once_do_not_stumble_over_each_other(store, build):
    """What one GC has listed and another has taken away meanwhile is no error."""
    failures = []

    def collect(start):
        try:
            start.wait()
            gc(store)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    for number in range(10):
        build.kit(str(number), [b"%d.%d" % (number, layer) for layer in range(40)], tags=[])
        start = threading.Barrier(3)
        threads = [threading.Thread(target=collect, args=(start,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert list(store.iter_blobs()) == []
