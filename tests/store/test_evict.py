"""Making room: what goes, in which order, and what never does."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kitfs.digest import Digest
from kitfs.store import catalog, schema
from kitfs.store.errors import MemberNotFound
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.partials import Partial
from kitfs.store.quota import Quota
from kitfs.store.records import MemberTotal
from kitfs.store.repair import repair
from kitfs.store.store import Store

CHILD = Path(__file__).with_name("member_child.py")


def _fill(store, build, count=4, size=1000):
    """Members of ``size`` bytes, the first used longest ago; their digests."""
    digests = [build.member(bytes([number]) * size) for number in range(count)]
    with store.index.write() as txn:
        for number, digest in enumerate(digests):
            record = msgspec.structs.replace(catalog.find_member(txn, digest), last_used_s=1000 + number)
            txn.put(schema.MEMBERS, digest.raw, record)
    return digests


def _left(store, digests):
    found = [number for number, digest in enumerate(digests) if store.find_member(digest)]
    files = [number for number, digest in enumerate(digests) if store.layout.member(digest).exists()]
    assert found == files
    return found


def test_what_fits_evicts_nothing(store, build):
    """Room that is there is given without a look at the members."""
    digests = _fill(store, build)
    store.quota = Quota(size=5000)
    assert store.make_room(1000)
    assert _left(store, digests) == [0, 1, 2, 3]
    assert store.measure_members() == (4000, 5000)


def test_least_recently_used_go_first_and_no_more_than_needed(store, build):
    """1500 bytes of 4000 have to go: the two that were used longest ago."""
    digests = _fill(store, build)
    store.quota = Quota(size=4500)
    assert store.make_room(2000)
    assert _left(store, digests) == [2, 3]
    assert list(store.layout.ingest.iterdir()) == []
    assert store.measure_members() == (2000, 4500)


def test_opening_makes_a_member_recently_used(store, build, build_store):
    """The note is written at the latest when the store is closed."""
    digests = _fill(store, build)
    with Store.open(store.home) as other:
        os.close(other.open_member(digests[0])[0])
    store.quota = Quota(size=4000)
    assert store.make_room(1000)
    assert _left(store, digests) == [0, 2, 3]


def test_use_that_a_kill_leaves_unnoted_costs_a_member_its_place(store, build):
    """A process that ends before it has written when it used a member: the record is older, all else as it was."""
    digests = _fill(store, build)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from kitfs.digest import Digest; from kitfs.store.store import Store\n"
        "os.close(Store.open(Path(sys.argv[1])).open_member(Digest.parse(sys.argv[2]))[0]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, store.home, str(digests[0])], check=True)
    record = store.find_member(digests[0])
    assert record is not None and record.last_used_s == 1000
    assert check(store).problems == []
    store.quota = Quota(size=4000)
    assert store.make_room(1000)
    assert _left(store, digests) == [1, 2, 3]


def test_an_open_member_stays(store, build):
    """Not evicted while a descriptor of it is open, by whomever; then it is."""
    digests = _fill(store, build)
    fd, is_trusted = store.open_member(digests[0])
    copy = os.dup(fd)
    os.close(fd)
    assert is_trusted
    store.quota = Quota(size=1000)
    assert not store.make_room(1000)
    assert _left(store, digests) == [0, 1, 2, 3], "evicting the others would not have been enough"
    assert store.make_room(0)
    assert _left(store, digests) == [0]
    assert os.pread(copy, 2000, 0) == bytes(1000)
    os.close(copy)
    with Store.open(store.home) as other:
        other.quota = Quota(size=1000)
        assert other.make_room(1000)
    assert _left(store, digests) == []


def test_what_can_not_fit_evicts_nothing(store, build):
    """A member larger than the quota is no reason to empty the cache."""
    digests = _fill(store, build)
    store.quota = Quota(size=4000)
    assert not store.make_room(4001)
    store.quota = Quota(size=0)
    assert not store.make_room(1)
    assert _left(store, digests) == [0, 1, 2, 3]


def test_pinned_and_held_members_stay_and_pinned_ones_do_not_count(store, build):
    """A recipe's members are part of a blob; a lease's are being placed."""
    digests = _fill(store, build)
    with store.index.write() as txn:
        record = catalog.find_member(txn, digests[0])
        catalog.put_members(txn, {digests[0]: msgspec.structs.replace(record, pins=[Digest.of(b"blob")])})
    store.quota = Quota(size=3000)
    assert store.measure_members()[0] == 3000
    with store.lease("placing") as lease:
        lease.hold(digests[1])
        assert store.make_room(1000)
        assert _left(store, digests) == [0, 1, 3]
        assert store.make_room(2000)
        assert _left(store, digests) == [0, 1]
        assert not store.make_room(3000)
    assert _left(store, digests) == [0, 1]
    with store.index.write() as txn:
        catalog.put_members(txn, {digests[0]: record})


def test_free_space_of_the_disk_is_a_bound_without_a_quota(store, build):
    """No quota at all: what would leave less than a part of the disk free does not fit."""
    disk = os.statvfs(store.home)
    assert not store.make_room(disk.f_bavail * disk.f_frsize)


def test_partial_members_count_with_what_they_take(store, build):
    """Of 100 MiB with 64 KiB in them 64 KiB, and the whole while somebody goes on with it."""
    partial = Partial(store.layout, "layer.0", 100 << 20, 200)
    partial.write(100, memoryview(bytes(65536)), 50 << 20)
    assert store.measure_members()[0] == 100 << 20
    partial.close()
    assert 65536 <= store.measure_members()[0] < (1 << 20)


def test_partial_members_go_first_and_not_while_they_are_used(store, build):
    """What nobody goes on with is worth least; what somebody does stays, like an open member."""
    digests = _fill(store, build)
    partials = [Partial(store.layout, f"layer.{number}", 1 << 20, 2) for number in range(2)]
    for partial in partials:
        partial.write(0, memoryview(bytes(1 << 19)), 0)
    partials[0].close()
    store.quota = Quota(size=(1 << 20) + 5000)
    assert store.make_room(1000)
    assert [partial.path.exists() for partial in partials] == [False, True]
    assert _left(store, digests) == [0, 1, 2, 3]
    assert not store.make_room(6000)
    partials[1].close()
    assert store.make_room(600_000)
    assert not partials[1].path.exists()
    assert _left(store, digests) == [0, 1, 2, 3]


def test_many_small_members_go_in_batches(store, build):
    """More than are locked at once."""
    with store.lease("many") as lease:
        change = store.change(lease)
        digests = []
        for number in range(300):
            data = number.to_bytes(2) * 50
            digests.append(build.put(lease, data, member=True))
            change.add_member(digests[-1], len(data))
        change.commit()
    store.quota = Quota(size=1000)
    assert store.make_room(1000)
    assert _left(store, digests) == []
    assert store.measure_members() == (0, 1000)


def test_the_total_follows_every_way_a_member_comes_and_goes(store, build):
    """Added, added again, collected, dropped for wrong bytes: never scanned for, always right."""
    build.kit(layers=(bytes(1000), b"\x01" * 1000))
    digests = _fill(store, build, count=3)
    build.member(bytes(1000))
    with store.index.read() as txn:
        assert txn.find(schema.COUNTS, schema.MEMBER_TOTAL, MemberTotal) == MemberTotal(3, 3000)
    gc(store)
    assert _left(store, digests) == [0, 1]
    path = store.layout.member(digests[1])
    path.chmod(0o600)
    path.write_bytes(b"other")
    assert not store.restamp_member(digests[1])
    with store.index.read() as txn:
        assert txn.find(schema.COUNTS, schema.MEMBER_TOTAL, MemberTotal) == MemberTotal(1, 1000)


def test_a_store_without_a_total_gets_one(damaged, build_damaged):
    """As one that was made before there was a quota, or whose index was made anew."""
    digests = _fill(damaged, build_damaged)
    with damaged.index.write() as txn:
        txn.delete(schema.COUNTS, schema.MEMBER_TOTAL)
    assert not check(damaged).problems
    assert damaged.measure_members()[0] == 4000
    damaged.quota = Quota(size=4000)
    assert damaged.make_room(1000)
    assert _left(damaged, digests) == [1, 2, 3]


def test_a_wrong_total_is_found_and_repaired(damaged, build_damaged):
    """A quota that is kept by a wrong sum is none."""
    _fill(damaged, build_damaged)
    with damaged.index.write() as txn:
        txn.put(schema.COUNTS, schema.MEMBER_TOTAL, MemberTotal(1, 7))
    assert [finding.damage for finding in check(damaged).problems] == ["wrong-member-total"]
    assert repair(damaged).exit_code == 1
    assert not check(damaged).problems
    assert damaged.measure_members()[0] == 4000


def test_a_corrupt_record_is_passed_over(damaged, build_damaged):
    """It is fsck's; others go in its place."""
    digests = _fill(damaged, build_damaged)
    with damaged.index.write() as txn:
        txn._txn.put(b"f" + digests[0].raw, b"rubbish")
    damaged.quota = Quota(size=4000)
    assert damaged.make_room(1000)
    assert not damaged.layout.member(digests[1]).exists()
    assert damaged.layout.member(digests[0]).exists()


def test_a_member_being_evicted_is_not_there(store, build):
    """A reader that comes while an evictor has the file does not get it, and does not wait."""
    import fcntl

    (digest,) = _fill(store, build, count=1)
    with open(store.layout.member(digest), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(MemberNotFound):
            store.open_member(digest)
    os.close(store.open_member(digest)[0])


def test_evictors_readers_and_makers_beside_each_other(store):
    """Eight processes, right bytes or a clear no for every reader, no open file evicted, a clean store after."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    verbs = {"evict": 60, "read": 2000, "make": 40}
    children = [
        subprocess.Popen(
            [sys.executable, "-B", CHILD, verb, store.home, str(rounds)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for verb, rounds in [*verbs.items(), *verbs.items(), ("read", 2000), ("make", 40)]
    ]
    done = [child.communicate(timeout=120) for child in children]
    assert [(child.returncode, errors) for child, (_, errors) in zip(children, done, strict=True)] == [(0, "")] * 8
    assert sum(int(out) for out, _ in done) > 0
    store.quota = Quota(size=4000)
    assert store.make_room(0)
    used, limit = store.measure_members()
    assert used <= limit
    assert gc(store).kept >= 0
