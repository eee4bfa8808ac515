"""What an index holds that the blobs do not tell: tags and inode numbers, from the log, the sessions and an old index.

Used by ``kitfs/modelkit/rebuild.py``, which holds the store alone. Reads, but for a damaged or torn ``tags.log``,
which is mended.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from kitfs.digest import Digest
from kitfs.store import repair_tags, schema, tags_log
from kitfs.store.errors import TagsLogCorrupt
from kitfs.store.layout import Layout
from kitfs.store.records import InodeRange, TagRecord
from kitfs.store.salvage import OldIndex
from kitfs.store.tags_log import LoggedTag, LogLine

Tags = dict[tuple[str, str], TagRecord]

INODE_GAP = 1 << 48
"""Inode numbers go on at the next multiple of this when nothing tells which were given out: room for 256 mounts of a
whole store, or 67 million of one ModelKit, since the last such time."""


@dataclass(frozen=True, slots=True)
class LoggedTags:
    """What ``tags.log`` tells, once it is whole.

    Attributes:
        tags: All tags.
        origins: Where each ModelKit that ever had a tag first came from.
        size: Bytes of the log.
        problem: What was wrong with it; empty when nothing was.
    """

    tags: Tags
    origins: dict[Digest, str]
    size: int
    problem: str = ""


def find_tags(layout: Layout, old: OldIndex) -> LoggedTags:
    """All tags.

    The log is the authority. Where it is damaged, or lacks what the old index had of it, the old index's tags are, if
    they are all there by their own count; else every tag that either still has. The log is then written anew in one
    line and the damaged one kept in ``quarantine/``. A torn end is cut off.

    Raises:
        StoreWriteFailed: when the log can not be read or written.
    """
    try:
        if old.log_position is not None:
            tags_log.replay(layout.tags_log, old.log_position)
        lines, end = tags_log.read_lines(layout.tags_log, 0)
    except TagsLogCorrupt as error:
        lines = tags_log.read_damaged(layout.tags_log)
        kept = {(record.repository, record.tag): record for record in old.tags}
        if not old.tags_agree:
            kept = _records(tags_log.replay_lines(lines)) | kept
        size = repair_tags.replace_log(layout, kept, int(time.time()))
        return LoggedTags(kept, _origins(lines), size, error.reason)
    if end < tags_log.size_of(layout.tags_log):
        tags_log.cut(layout.tags_log, end)
    return LoggedTags(_records(tags_log.replay_lines(lines)), _origins(lines), end)


def _origins(lines: Iterable[LogLine]) -> dict[Digest, str]:
    origins: dict[Digest, str] = {}
    for line in lines:
        for item in line.set:
            origins.setdefault(Digest.parse(item.manifest), item.origin)
    return origins


def _records(logged: dict[tuple[str, str], LoggedTag]) -> Tags:
    return {
        name: TagRecord(Digest.parse(tag.set.manifest), tag.set.origin, tag.at_s, *name) for name, tag in logged.items()
    }


def find_inodes(recorded: Iterable[InodeRange], old: OldIndex) -> tuple[list[InodeRange], int]:
    """Ranges of inode numbers, and the first number that comes after all that were ever given out.

    Args:
        recorded: Ranges of the sessions that are there, which keep their numbers whatever the old index says.
        old: What the old index still told; a range that overlaps a session's is not taken.
    """
    ranges: dict[bytes, InodeRange] = {}
    taken: list[InodeRange] = []
    for item in recorded:
        taken.append(item)
        known = ranges.get(item.key)
        if known is None or known.first < item.first:
            ranges[item.key] = item
    for item in sorted(old.inodes, key=lambda item: item.first):
        if item in taken or not any(_overlap(item, other) for other in taken):
            taken.append(item)
            known = ranges.get(item.key)
            if known is None or known.first < item.first:
                ranges[item.key] = item
    following = max((item.first + item.count for item in taken), default=schema.INODE_FIRST)
    if old.next_inode is not None:
        return list(ranges.values()), max(following, old.next_inode)
    return list(ranges.values()), -(-following // INODE_GAP) * INODE_GAP


def _overlap(one: InodeRange, other: InodeRange) -> bool:
    return one.first < other.first + other.count and other.first < one.first + one.count
