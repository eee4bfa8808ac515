"""Ranges of inode numbers: given to a tree once, for ever, so that a successor of a worker shows the same ones."""

from __future__ import annotations

from kitfs.store import schema
from kitfs.store.errors import LimitExceeded
from kitfs.store.index import Index, Txn
from kitfs.store.records import InodeRange, NextInode


def take_inodes(index: Index, key: bytes, count: int) -> int:
    """The first of ``count`` inode numbers that belong to a tree for ever; at least 2.

    Args:
        index: Where they are noted.
        key: What identifies the tree; the same key and count give the same number.
        count: How many numbers it needs. A larger count than before gets a new range.

    Raises:
        LimitExceeded: when ``count`` is out of bounds.
        RecordCorrupt, IndexFull, IndexFailed, IndexCorrupt: when the index fails.
    """
    if not 0 < count <= schema.INODE_COUNT_MAX:
        raise LimitExceeded("the number of inodes of a tree", count, schema.INODE_COUNT_MAX)
    table_key = schema.encode_text_key(key)
    with index.read() as txn:
        found = txn.find(schema.INODE_BASES, table_key, InodeRange)
    if found is not None and found.count >= count:
        return found.first
    with index.write() as txn:
        found = txn.find(schema.INODE_BASES, table_key, InodeRange)
        if found is not None and found.count >= count:
            return found.first
        number = _find_following(txn)
        txn.put(schema.INODE_BASES, table_key, InodeRange(key, number, count))
        txn.put(schema.COUNTS, schema.NEXT_INODE, NextInode(number + count))
    return number


def _find_following(txn: Txn) -> int:
    """The first number that no range has; from the ranges where the note of it has vanished."""
    following = txn.find(schema.COUNTS, schema.NEXT_INODE, NextInode)
    if following is not None:
        return following.number
    stops = (record.first + record.count for _, record in txn.iter(schema.INODE_BASES, InodeRange))
    return max(stops, default=schema.INODE_FIRST)
