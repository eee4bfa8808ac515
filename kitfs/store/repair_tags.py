"""Repair of tags: the table and ``tags.log`` say the same again, whichever of them is damaged.

Used by ``repair.py`` inside its write transaction and the exclusive ``gc.lock``. The log is the authority while it
verifies as far as the table claims to contain it. Else the table is, if its records agree with their count; the
damaged log is moved to ``quarantine/`` and written anew in one line. If both are damaged, every tag that either still
has is kept. On disk in the end: a log that verifies; the table follows when the caller commits, and a crash before
that leaves a position that does not fit the log, which the next repair mends.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from kitfs.digest import Digest
from kitfs.store import agreement, durable, recover, schema, tags, tags_log
from kitfs.store.errors import RecordCorrupt, TagsLogCorrupt
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.records import CountRecord, LogPosition, TagRecord, parse_value
from kitfs.store.tags_log import LogLine, LogSet

Tags = dict[tuple[str, str], TagRecord]


def repair_tags(txn: Txn, layout: Layout) -> None:
    """Make table and log agree; see the module.

    Raises:
        StoreWriteFailed: when the log can not be read or written.
    """
    now_s = int(time.time())
    table = _read_table(txn)
    logged = _read_log(txn, layout)
    if logged is not None:
        wanted = {
            key: table[key] if key in table and table[key].manifest == manifest else _record(key, manifest, now_s)
            for key, manifest in logged.items()
        }
    else:
        wanted = table if _table_is_whole(txn) else _read_what_is_left(layout, now_s) | table
        size = replace_log(layout, wanted, now_s)
        txn.put(schema.COUNTS, schema.LOG_POSITION, LogPosition(size))
    for key, _ in list(txn.iter_raw(schema.TAGS)):
        txn.delete(schema.TAGS, key)
    for (repository, tag), record in wanted.items():
        recover.record_from_files(txn, layout, record.manifest, origin=record.origin, now_s=now_s)
        if txn.contains(schema.MANIFESTS, record.manifest.raw):
            txn.put(schema.TAGS, schema.encode_tag_key(repository, tag), record)


def _record(key: tuple[str, str], manifest: Digest, now_s: int) -> TagRecord:
    return TagRecord(manifest, "here", now_s, *key)


def _read_table(txn: Txn) -> Tags:
    """Tags of the table whose records verify."""
    found: Tags = {}
    for key, value in txn.iter_raw(schema.TAGS):
        try:
            record = parse_value(schema.TAGS, key, value, TagRecord)
        except RecordCorrupt:
            continue
        found[record.repository, record.tag] = record
    return found


def _table_is_whole(txn: Txn) -> bool:
    try:
        recorded = txn.find(schema.COUNTS, schema.COUNT_TAGS, CountRecord) or CountRecord()
        return agreement.count_tags(txn) == recorded
    except RecordCorrupt:
        return False


def _read_log(txn: Txn, layout: Layout) -> dict[tuple[str, str], Digest] | None:
    """All tags of the log, what the table lacks included; None when the log is damaged."""
    try:
        tags_log.replay(layout.tags_log, tags.log_position(txn))
        logged, end = tags_log.replay_whole(layout.tags_log)
    except (TagsLogCorrupt, RecordCorrupt):
        return None
    if end < tags_log.size_of(layout.tags_log):
        tags_log.cut(layout.tags_log, end)
    txn.put(schema.COUNTS, schema.LOG_POSITION, LogPosition(end))
    return {key: Digest.parse(text) for key, text in logged.items()}


def _read_what_is_left(layout: Layout, now_s: int) -> Tags:
    """Tags of the log's lines that verify, wherever others do not."""
    logged = tags_log.replay_lines(tags_log.read_damaged(layout.tags_log))
    return {key: _record(key, Digest.parse(tag.set.manifest), now_s) for key, tag in logged.items()}


def replace_log(layout: Layout, wanted: Tags, now_s: int) -> int:
    """Replace the log by one line that sets every tag, keeping the damaged one aside.

    Returns:
        The size of the log.

    Raises:
        StoreWriteFailed: when a step failed.
    """
    entries = [
        LogSet(repository, tag, str(record.manifest), record.origin) for (repository, tag), record in wanted.items()
    ]
    data = tags_log.encode_line(0, LogLine(now_s, entries)) if entries else b""
    _keep_aside(layout, layout.tags_log)
    scratch = layout.ingest / f"trash-tags-log-{os.getpid()}-{time.time_ns()}"
    durable.write_file(layout.tags_log, data, scratch=scratch, mode=0o600)
    return len(data)


def _keep_aside(layout: Layout, path: Path) -> None:
    with durable.naming(layout.quarantine, "making"):
        layout.quarantine.mkdir(mode=0o700, exist_ok=True)
    with durable.naming(path, "keeping a copy of"), contextlib.suppress(FileNotFoundError):
        os.link(path, layout.quarantine / f"{path.name}.{time.time_ns()}")
    durable.sync_directory(layout.quarantine)
