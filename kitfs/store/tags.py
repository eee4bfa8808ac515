"""Tags: the table, its count, and its agreement with ``tags.log``.

Used by changes, opening, GC, fsck and the facade. Every function takes a ``Txn``; those that change tags need a
write transaction, which also makes its holder the only writer of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kitfs.digest import Digest
from kitfs.store import catalog, recover, schema, tags_log
from kitfs.store.errors import ManifestNotFound, TagNotFound, TagTaken
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.records import LogPosition, TagRecord

COMPACT_LINES = 10_000
COMPACT_RATIO = 10
"""A log of more lines than both, the second times the number of tags, is compacted by GC."""

LINE_SIZE_MIN = 100
"""Bytes of a line that sets a tag, at least: a log with fewer for each need not be read to know that it is short."""


def find_tag(txn: Txn, repository: str, tag: str) -> TagRecord | None:
    """The tag's record, or None.

    Raises:
        RecordCorrupt: when it does not verify.
    """
    return txn.find(schema.TAGS, schema.encode_tag_key(repository, tag), TagRecord)


def iter_tags(txn: Txn, repository: str | None = None) -> Iterator[tuple[str, str, TagRecord]]:
    """All tags, or those of one repository, as (repository, tag, record), in no promised order.

    Raises:
        RecordCorrupt: at a record that does not verify.
    """
    if repository is None:
        prefixes = [b""]
    else:
        prefixes = [schema.encode_text_prefix(repository.encode() + b"\0"), schema.KEY_LONG]
    for prefix in prefixes:
        for _, record in txn.iter(schema.TAGS, TagRecord, prefix):
            if repository is None or record.repository == repository:
                yield record.repository, record.tag, record


def element(repository: str, tag: str, manifest: Digest) -> bytes:
    """What the count of tags sums up: the tag and where it points."""
    return schema.tag_text(repository, tag) + b"\0" + manifest.raw


def put_tag(txn: Txn, record: TagRecord) -> None:
    """Set or move a tag.

    Raises:
        ManifestNotFound: when the manifest is not recorded.
        RecordCorrupt: when the old record or the count does not verify.
    """
    if not txn.contains(schema.MANIFESTS, record.manifest.raw):
        raise ManifestNotFound(record.manifest)
    old = find_tag(txn, record.repository, record.tag)
    if old is not None:
        _toggle(txn, old, -1)
    txn.put(schema.TAGS, schema.encode_tag_key(record.repository, record.tag), record)
    _toggle(txn, record, 1)


def check_free(txn: Txn, repository: str, tag: str) -> None:
    """See that there is no such tag.

    Raises:
        TagTaken: when there is.
        RecordCorrupt: when its record does not verify.
    """
    old = find_tag(txn, repository, tag)
    if old is not None:
        raise TagTaken(repository, tag, old.manifest)


def delete_tag(txn: Txn, repository: str, tag: str) -> None:
    """Remove a tag.

    Raises:
        TagNotFound: when there is none.
        RecordCorrupt: when its record or the count does not verify.
    """
    old = find_tag(txn, repository, tag)
    if old is None:
        raise TagNotFound(repository, tag)
    txn.delete(schema.TAGS, schema.encode_tag_key(repository, tag))
    _toggle(txn, old, -1)


def _toggle(txn: Txn, record: TagRecord, difference: int) -> None:
    catalog.toggle_count(txn, schema.COUNT_TAGS, element(record.repository, record.tag, record.manifest), difference)


def log_position(txn: Txn) -> int:
    """Bytes of ``tags.log`` that the table contains.

    Raises:
        RecordCorrupt: when the record does not verify.
    """
    return (txn.find(schema.COUNTS, schema.LOG_POSITION, LogPosition) or LogPosition()).size


def is_behind(txn: Txn, layout: Layout) -> bool:
    """Whether ``tags.log`` has another size than the table knows: one ``stat``, for every opening.

    Raises:
        RecordCorrupt, StoreWriteFailed: when that can not be found out.
    """
    return tags_log.size_of(layout.tags_log) != log_position(txn)


def compact_log(txn: Txn, layout: Layout, scratch: Path, now_s: int) -> bool:
    """Replace ``tags.log`` by one line when it has many more lines than there are tags. Needs a write transaction.

    The log is replaced before this transaction commits: after a crash between the two the line itself tells which size
    it stands for, and the next opening goes on from there.

    Returns:
        Whether the log was replaced.

    Raises:
        RecordCorrupt, TagsLogCorrupt, StoreWriteFailed: when table or log can not be read, or the log not be written.
    """
    size = log_position(txn)
    if size < COMPACT_LINES * LINE_SIZE_MIN or size != tags_log.size_of(layout.tags_log):
        return False
    lines, end = tags_log.read_lines(layout.tags_log, 0)
    logged = tags_log.replay_lines(lines)
    live = {(repository, tag): record for repository, tag, record in iter_tags(txn)}
    if len(lines) <= max(COMPACT_LINES, COMPACT_RATIO * len(live)) or end != size:
        return False
    if {name: tag.set.manifest for name, tag in logged.items()} != {
        name: str(record.manifest) for name, record in live.items()
    }:
        return False  # a check names it
    left = tags_log.compact(layout.tags_log, logged.values(), size, now_s, scratch)
    txn.put(schema.COUNTS, schema.LOG_POSITION, LogPosition(left))
    return left < size


def catch_up(txn: Txn, layout: Layout) -> None:
    """Apply what ``tags.log`` has and the table lacks, and cut a torn end. Needs a write transaction.

    A line is left behind by a process that died between steps 5 and 6 of store.md 2. The records of its
    manifest and blobs are there or are made from the files; a line whose files are gone can not be applied, and
    then GC refuses to sweep and fsck names the tag, because the log and the table differ.

    Raises:
        TagsLogCorrupt: when a line other than the last does not verify.
        RecordCorrupt, StoreWriteFailed: when the log or the table can not be read or written.
    """
    start = recorded = log_position(txn)
    size = tags_log.size_of(layout.tags_log)
    if size == start:
        return
    replaced = tags_log.find_replaced(layout.tags_log, start)
    if replaced is not None:
        start = replaced
    elif size < start:
        return
    lines, stop = tags_log.read_lines(layout.tags_log, start)
    for line in lines:
        for repository, tag in line.removed:
            if find_tag(txn, repository, tag) is not None:
                delete_tag(txn, repository, tag)
        for item in line.set:
            manifest = Digest.parse(item.manifest)
            if recover.restore_manifest(txn, layout, manifest, origin=item.origin, now_s=line.at_s):
                put_tag(txn, TagRecord(manifest, item.origin, line.at_s, item.repository, item.tag))
    if stop < size:
        tags_log.cut(layout.tags_log, stop)
    if stop != recorded:
        txn.put(schema.COUNTS, schema.LOG_POSITION, LogPosition(stop))
