"""Files that may have changed on disk since they were stored: hash once, then trust by a new stamp, or drop.

Used through ``Store`` by imports, the read path and fsck. A member that split blobs need is never dropped: one whose
bytes are wrong is noted as damaged and no longer trusted, until an import puts the right ones in its place. No lock
and no transaction is held while a file is hashed; the stamp compared before and after tells whether it stood still
meanwhile.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kitfs.digest import Digest
from kitfs.store import catalog, durable, gate, schema
from kitfs.store.errors import BlobCorrupt, BlobNotFound, RecordCorrupt
from kitfs.store.index import Index, Txn
from kitfs.store.layout import Layout
from kitfs.store.lease import Lease
from kitfs.store.link import hash_file
from kitfs.store.records import MemberRecord, Stamp
from kitfs.store.stamp import find_status, is_settled, matches, settle, stamp_of


def verify_file(path: Path, digest: Digest) -> Stamp | None:
    """Hash a file; the stamp it may be trusted by, or None when its bytes are others or it is not there.

    Waits at most 20 ms for a file that was just written to settle. One that changes while it is read gets none.

    Raises:
        StoreWriteFailed: when it can not be read.
    """
    is_right, stamp = hash_and_stamp(path, digest)
    return stamp if is_right else None


def hash_and_stamp(
    path: Path, digest: Digest, watch: Callable[[memoryview], None] | None = None
) -> tuple[bool, Stamp | None]:
    """Whether a file's bytes are right, and the stamp of it; None when its status did not stand still meanwhile.

    Args:
        path: The file; one that is not there, or no plain file, is not right.
        digest: What it should hold.
        watch: Sees the bytes as they pass; a view is overwritten once the call returns.

    Raises:
        StoreWriteFailed: when it can not be read.
    """
    before = find_status(path)
    if before is None or not stat.S_ISREG(before.st_mode):  # opening a pipe would wait for ever
        return False, None
    stamp = stamp_of(before)
    settle(stamp)
    with durable.naming(path, "reading"):
        try:
            is_right = hash_file(path, watch) == digest
        except FileNotFoundError:
            return False, None
    stands_still = matches(stamp, find_status(path)) and is_settled(stamp, time.time_ns())
    return is_right, stamp if stands_still else None


def restamp_member(layout: Layout, index: Index, digest: Digest) -> bool:
    """Hash a member's file once; right bytes get a new stamp, wrong ones are dropped, file and record.

    A pinned member stays, its record saying ``damaged``.

    Right bytes whose status moves meanwhile stay without a new stamp: another process may be about to record them.

    Returns:
        Whether its bytes are right. False: read it from its layer, which can make it anew.

    Raises:
        StoreWriteFailed: when the file can not be read.
        RecordCorrupt, IndexFailed, IndexCorrupt: when the index fails.
    """
    path = layout.member(digest)
    seen = find_status(path)
    is_right, stamp = hash_and_stamp(path, digest)
    if is_right and stamp is not None:
        with index.write() as txn:
            record = catalog.find_member(txn, digest)
            if record is not None:
                txn.put(schema.MEMBERS, digest.raw, msgspec.structs.replace(record, state="native", stamp=stamp))
    if is_right:
        return True
    # Inside the gate nobody places a file: one that was made anew while this one was hashed stays, with its record.
    # Its inode number may be that of the file it replaced, so the whole stamp is compared.
    # The record goes first, or a kill between the two would leave it without its file (I2).
    with gate.exclusive(layout.gc_lock):
        now = find_status(path)
        if now is None or (seen is not None and matches(stamp_of(seen), now)):
            with index.write() as txn:
                record = _find_pinned(txn, digest)
                if record is not None:
                    record = msgspec.structs.replace(record, state="damaged", stamp=None)
                    catalog.put_members(txn, {digest: record})
                    return False
                catalog.delete_members(txn, [digest])
            durable.remove(path)
    return False


def _find_pinned(txn: Txn, digest: Digest) -> MemberRecord | None:
    """The record of a member that split blobs need; one that does not verify goes, as wrong bytes without pins do."""
    try:
        record = catalog.find_member(txn, digest)
    except RecordCorrupt:
        return None
    return record if record is not None and record.pins else None


def hold_verified(index: Index, lease: Lease, digest: Digest) -> None:
    """Hold a blob and be sure that its bytes are right: by its stamp, else by hashing it once.

    A split blob is right when its recipe verifies and each of its members is, by its own stamp or by hashing it.

    What an import asks before it passes over a blob that is there already: an error says to ingest it
    again, which puts the right bytes in place.

    Raises:
        BlobNotFound: when there is no such file.
        BlobCorrupt: when its bytes have another digest.
        StoreWriteFailed, LeaseEnded: when it can not be held or read.
        RecordCorrupt: when the record of the blob, or anything the index has of it as a layer, does not verify.
        IndexFailed, IndexCorrupt: when the index fails.
    """
    lease.hold(digest)
    with index.read() as txn:
        record = catalog.find_blob(txn, digest)
        if catalog.find_layer(txn, digest) is not None:
            catalog.check_layer(txn, digest)
    if record is not None and record.form == "split":
        _verify_members(lease.layout, index, digest)
        return
    path = lease.layout.blob(digest)
    try:
        status = os.lstat(path)
    except OSError:
        raise BlobNotFound(digest) from None
    if record is not None and matches(record.stamp, status):
        return
    stamp = verify_file(path, digest)
    if stamp is None:
        raise BlobCorrupt(digest, f"its {status.st_size} bytes have another digest")
    if record is not None:
        with index.write() as txn:
            current = catalog.find_blob(txn, digest)
            if current is not None:
                txn.put(schema.BLOBS, digest.raw, msgspec.structs.replace(current, stamp=stamp))


def _verify_members(layout: Layout, index: Index, digest: Digest) -> None:
    from kitfs.store.recipe import read_recipe  # a mount needs no recipes

    recipe = read_recipe(layout, digest)
    with index.read() as txn:
        records = {member: catalog.find_member(txn, member) for member in recipe.sizes()}
    for member, record in records.items():
        if record is None or digest not in record.pins:
            raise BlobCorrupt(digest, f"its member {member} is not recorded as its")
        if matches(record.stamp, find_status(layout.member(member))):
            continue
        if not restamp_member(layout, index, member):
            raise BlobCorrupt(digest, f"its member {member} has other bytes or is not there")
