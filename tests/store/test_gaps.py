"""Damage in odd places: records that vanish, things that lie where a file should, rot under an unchanged stamp."""

import os

import msgspec
import pytest

from kitfs.digest import Digest
from kitfs.store import catalog, schema
from kitfs.store.errors import BlobCorrupt, MemberNotFound
from kitfs.store.findings import Weight
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.records import MemberRecord
from kitfs.store.repair import repair
from kitfs.store.stamp import stamp_of

LAYER = Digest.of(b"layer")

ODD = {
    "symlink": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": lambda path: os.mknod(path, 0o140600),
}


@pytest.fixture
def full(damaged, build_damaged):
    """A store with a ModelKit whose layer is one member, and that member."""
    build_damaged.kit()
    build_damaged.member(b"layer")
    assert check(damaged, read_data=True).exit_code == 0
    return damaged


@pytest.mark.parametrize("odd", ODD)
def test_odd_thing_in_the_place_of_a_blob(full, build_damaged, odd):
    """Neither a symlink nor a folder, pipe or socket is opened as a blob; a repair moves it, an import heals."""
    path = full.layout.blob(LAYER)
    path.unlink()
    ODD[odd](path)
    with pytest.raises(BlobCorrupt):
        full.open_blob(LAYER)
    with pytest.raises(BlobCorrupt):
        full.read_blob(LAYER)
    assert repair(full).exit_code == 6
    assert not path.is_symlink()
    assert not path.exists()
    build_damaged.kit()
    assert full.read_blob(LAYER) == b"layer"
    assert check(full, read_data=True).exit_code == 0


@pytest.mark.parametrize("odd", ODD)
def test_odd_thing_in_the_place_of_a_member(full, odd):
    """A member is not there when no plain file is, and the check says so."""
    path = full.layout.member(LAYER)
    path.unlink()
    ODD[odd](path)
    with pytest.raises(MemberNotFound):
        full.open_member(LAYER)
    assert "missing-member" in {finding.damage for finding in check(full).problems}


def test_members_of_a_layer_whose_record_vanished_stay(full):
    """When the index has lost what a kept layer holds, GC keeps all members, and the check names the layer."""
    with full.index.write() as txn:
        catalog.delete_layer(txn, LAYER)
    assert gc(full).victims == []
    assert full.find_member(LAYER) is not None
    assert [finding.damage for finding in check(full).problems] == ["unindexed-layer"]
    with full.index.write() as txn:
        txn.delete(schema.BLOBS, LAYER.raw)
    assert gc(full).victims == []
    assert full.layout.member(LAYER).exists()


def test_member_without_a_stamp_is_looked_at(full):
    """A member that was never believed is mentioned, and its size is compared all the same."""
    with full.index.write() as txn:
        txn.put(schema.MEMBERS, LAYER.raw, MemberRecord(5, "native", 0))
    [finding] = check(full).findings
    assert (finding.damage, finding.weight) == ("unstamped-member", Weight.NOTE)
    path = full.layout.member(LAYER)
    path.chmod(0o644)
    path.write_bytes(b"lay")
    [finding] = check(full).problems
    assert finding.damage == "stale-member"
    assert repair(full).exit_code == 1
    assert full.find_member(LAYER) is None


def test_lost_counter_of_inode_numbers_gives_none_out_twice(full):
    """When the note of the next number has vanished, numbers go on behind the ranges that are there."""
    first = full.inode_base(b"one", 10)
    with full.index.write() as txn:
        txn.delete(schema.COUNTS, schema.NEXT_INODE)
    assert full.inode_base(b"two", 10) == first + 10
    assert check(full).exit_code == 0


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_rot_under_an_unchanged_stamp_is_healed(full, build_damaged, part):
    """A blob that rotted without a trace is quarantined by a repair that reads, and storing it again heals it."""
    manifest = full.get_tag("localhost/myllm", "1").manifest
    digest = {"manifest": manifest, "config": full.get_manifest(manifest).config, "layer": LAYER}[part]
    path = full.layout.blob(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)
    with full.index.write() as txn:  # the stamp of the rotten file: as if nothing had touched it
        record = catalog.find_blob(txn, digest)
        txn.put(schema.BLOBS, digest.raw, msgspec.structs.replace(record, stamp=stamp_of(path.stat())))
    assert check(full).exit_code == 0
    assert repair(full, read_data=True).exit_code == 6
    assert [item.name.partition(".")[0] for item in full.layout.quarantine.iterdir()] == [digest.hex]
    assert check(full).exit_code == 6
    build_damaged.kit()
    assert check(full, read_data=True).exit_code == 0
