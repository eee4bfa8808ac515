"""What can still be read of an index that is about to be made anew: the few facts that no file tells.

Used by what makes the index anew. A damaged LMDB file can end the process that reads it (SIGBUS, an assertion), so it
is read by a process of its own, ``python -m kitfs.store.salvage``, which says what it finds as it finds it: what it
said before it died counts. Only records whose checksum verifies are taken. Reads without locks, so nobody may be
writing: the caller holds ``index_swap.hold_unused``.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kitfs.store import agreement, schema
from kitfs.store.errors import IndexCorrupt, IndexFailed, RecordCorrupt
from kitfs.store.index import DATA_NAME, Txn, read_unlocked
from kitfs.store.records import CountRecord, InodeRange, LogPosition, NextInode, TagRecord, parse_value
from kitfs.store.stamp import find_status

_TIMEOUT_S = 600.0


class _Said(msgspec.Struct, omit_defaults=True):
    """One line of the reading process; one field is set."""

    inodes: InodeRange | None = None
    next_inode: int | None = None
    tag: TagRecord | None = None
    log_position: int | None = None
    tags_agree: bool = False
    problem: str = ""
    is_done: bool = False


@dataclass(slots=True)
class OldIndex:
    """What an index still told.

    Attributes:
        inodes: Ranges of inode numbers.
        next_inode: The first number that no range had, or None when that can not be read.
        tags: Tags whose records verify.
        log_position: How much of ``tags.log`` they contain, or None when that can not be read.
        tags_agree: Whether they are all that the index had, by its own count.
        problem: What is wrong with it; empty when all its records verify.
    """

    inodes: list[InodeRange] = field(default_factory=list)
    next_inode: int | None = None
    tags: list[TagRecord] = field(default_factory=list)
    log_position: int | None = None
    tags_agree: bool = False
    problem: str = ""


def read_old_index(path: Path) -> OldIndex:
    """What the index in a folder still tells; whatever happens to the process that reads it."""
    status = find_status(path / DATA_NAME)
    if status is None or status.st_size == 0:
        return OldIndex(problem="it is not there" if status is None else "it is empty")
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
        said, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        said, code = error.stdout or b"", -1
    return _collect(said, code)


def _collect(said: bytes, code: int) -> OldIndex:
    old = OldIndex()
    is_done = False
    for line in said.splitlines():
        try:
            fact = msgspec.json.decode(line, type=_Said)
        except msgspec.DecodeError:
            break  # cut short
        if fact.inodes is not None:
            old.inodes.append(fact.inodes)
        if fact.tag is not None:
            old.tags.append(fact.tag)
        old.next_inode = fact.next_inode if fact.next_inode is not None else old.next_inode
        old.log_position = fact.log_position if fact.log_position is not None else old.log_position
        old.tags_agree = old.tags_agree or fact.tags_agree
        old.problem = old.problem or fact.problem
        is_done = is_done or fact.is_done
    if not is_done and not old.problem:
        old.problem = f"a process that read it ended with {code}"
    return old


def _say(**fact: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(_Said(**fact)) + b"\n")  # type: ignore[arg-type]  # one field each
    sys.stdout.buffer.flush()


def main(path: Path) -> None:
    """Say what the index tells, a line for each fact."""
    try:
        with read_unlocked(path) as txn:
            _say_records(txn)
            problems = sorted(_iter_problems(txn))
            _say(problem=problems[0] if problems else "", is_done=True)
    except (IndexCorrupt, IndexFailed) as error:
        _say(problem=error.reason, is_done=True)


def _say_records(txn: Txn) -> None:
    with contextlib.suppress(RecordCorrupt):
        following = txn.find(schema.COUNTS, schema.NEXT_INODE, NextInode)
        _say(next_inode=following.number if following else None)
    for key, value in txn.iter_raw(schema.INODE_BASES):
        with contextlib.suppress(RecordCorrupt):
            _say(inodes=parse_value(schema.INODE_BASES, key, value, InodeRange))
    with contextlib.suppress(RecordCorrupt):
        position = txn.find(schema.COUNTS, schema.LOG_POSITION, LogPosition)
        _say(log_position=position.size if position else None)
    for key, value in txn.iter_raw(schema.TAGS):
        with contextlib.suppress(RecordCorrupt):
            _say(tag=parse_value(schema.TAGS, key, value, TagRecord))
    with contextlib.suppress(RecordCorrupt):
        recorded = txn.find(schema.COUNTS, schema.COUNT_TAGS, CountRecord) or CountRecord()
        _say(tags_agree=agreement.count_tags(txn) == recorded)


def _iter_problems(txn: Txn) -> Iterator[str]:
    """What does not verify; one sentence is enough."""
    from kitfs.store.fsck import iter_corrupt_records

    for error in iter_corrupt_records(txn):
        yield str(error)
        return
    try:
        for what, name, actual in agreement.count_tables(txn):
            recorded = txn.find(schema.COUNTS, name, CountRecord) or CountRecord()
            if recorded != actual:
                yield f"its {what} are not those that it counts"
    except RecordCorrupt as error:
        yield str(error)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
