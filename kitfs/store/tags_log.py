"""``tags.log``: every tag change, on disk before the index says so.

Used by changes (append), opening (what the index lacks), GC and fsck (replay). One line is one change, which
may set and remove several tags::

    <checksum 32 hex> <JSON of LogLine> LF    checksum = xxh3-128 over  <offset of the line u64be> <JSON>

The offset inside the checksum makes a line valid in its own place only. Whoever appends holds the index's write
transaction, so there is one writer in all processes, and the order of lines is the order of transactions. A
process that dies between the append and its commit leaves a line that the index lacks; a power cut may leave
the last line torn, and only the last. Callers hold a write transaction for ``append`` and ``cut``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from kitfs.digest import Digest, DigestMalformed, checksum
from kitfs.store import durable
from kitfs.store.errors import StoreWriteFailed, TagsLogCorrupt


class LogSet(msgspec.Struct, frozen=True, array_like=True):
    """A tag set.

    Attributes:
        repository: The full repository name.
        tag: The tag.
        manifest: ``sha256:…`` of the manifest.
        origin: As in ``TagRecord``.
    """

    repository: str
    tag: str
    manifest: str
    origin: str


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change.

    Attributes:
        at_s: When, seconds since the epoch.
        set: Tags set, in order.
        removed: (repository, tag) pairs removed.
        replaces: Bytes of the log that this line, its first, has taken the place of; 0 in every other line.
        times: When each of ``set`` was set, in a line that takes the place of others.
    """

    at_s: int
    set: list[LogSet] = []
    removed: list[tuple[str, str]] = []
    replaces: int = 0
    times: list[int] = []


class LoggedTag(NamedTuple):
    """A tag as the log has it.

    Attributes:
        set: What set it.
        at_s: When, seconds since the epoch.
    """

    set: LogSet
    at_s: int


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(LogLine)
_PREFIX_SIZE = 33


def encode_line(offset: int, line: LogLine) -> bytes:
    """The bytes of a line that begins at ``offset``."""
    body = _ENCODER.encode(line)
    return checksum(offset.to_bytes(8) + body).hex().encode() + b" " + body + b"\n"


def parse_line(offset: int, raw: bytes) -> LogLine | None:
    """The line that begins at ``offset``, without its newline, or None when it does not verify."""
    body = raw[_PREFIX_SIZE:]
    if raw[:_PREFIX_SIZE] != checksum(offset.to_bytes(8) + body).hex().encode() + b" ":
        return None
    try:
        line = _DECODER.decode(body)
        for item in line.set:
            Digest.parse(item.manifest)
    except (msgspec.DecodeError, DigestMalformed):
        return None
    return line


def size_of(path: Path) -> int:
    """Bytes in the log; 0 when there is none.

    Raises:
        StoreWriteFailed: when it can not be looked at.
    """
    try:
        with durable.naming(path, "looking at"):
            return path.stat().st_size
    except StoreWriteFailed as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return 0
        raise


def read_lines(path: Path, start: int, stop: int | None = None) -> tuple[list[LogLine], int]:
    """The lines in ``[start, stop)`` (without ``stop``: to the end), and where the last whole one ends.

    Raises:
        TagsLogCorrupt: when a line that does not verify has a verifying one after it: that is no torn end.
        StoreWriteFailed: when the log can not be read.
    """
    if size_of(path) <= start:
        return [], start
    with durable.naming(path, "reading"), open(path, "rb") as file:
        file.seek(start)
        raw = file.read() if stop is None else file.read(stop - start)
    lines: list[LogLine] = []
    offset = start
    bad: int | None = None
    for piece in raw.splitlines(keepends=True):
        line = parse_line(offset, piece[:-1]) if piece.endswith(b"\n") else None
        if line is None:
            bad = offset if bad is None else bad
        elif bad is not None:
            raise TagsLogCorrupt(path, bad, "its checksum differs")
        else:
            lines.append(line)
        offset += len(piece)
    return lines, offset if bad is None else bad


def append(path: Path, line: LogLine) -> tuple[int, int]:
    """Append a change; it is on disk when this returns.

    Returns:
        Where the line begins and ends.

    Raises:
        StoreWriteFailed: when a step failed; the log is then cut back to what it was.
    """
    with durable.naming(path, "opening"):
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_CREAT, 0o600)
    try:
        start = os.fstat(fd).st_size
        data = encode_line(start, line)
        try:
            durable.write_all(fd, data, path)
            durable.sync_file(fd, path)
        except BaseException:
            with contextlib.suppress(OSError):  # then the next opening cuts or applies it
                os.ftruncate(fd, start)
            raise
    finally:
        os.close(fd)
    return start, start + len(data)


def cut(path: Path, size: int) -> None:
    """Shorten the log to ``size`` bytes: a torn end, or the line of a transaction that failed.

    Raises:
        StoreWriteFailed: when it failed.
    """
    with durable.naming(path, "cutting"):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)


def compact(path: Path, logged: Iterable[LoggedTag], size: int, now_s: int, scratch: Path) -> int:
    """Replace the log, of ``size`` bytes, by one line that says what they came to; on disk when this returns.

    Returns:
        The size of the log now: less than half, or ``size`` when nothing was done.

    Raises:
        StoreWriteFailed: when a step failed; the log is then as it was.
    """
    found = list(logged)
    line = LogLine(now_s, [tag.set for tag in found], replaces=size, times=[tag.at_s for tag in found])
    data = encode_line(0, line)
    if 2 * len(data) >= size:
        return size
    durable.write_file(path, data, scratch=scratch, mode=0o600)
    return len(data)


def find_replaced(path: Path, position: int) -> int | None:
    """Where the first line ends, if it has taken the place of the first ``position`` bytes of the log; else None.

    So it is when the process that compacted the log died before it could record the new size.

    Raises:
        StoreWriteFailed: when the log can not be read.
    """
    if not 0 < size_of(path) < position:
        return None
    with durable.naming(path, "reading"), open(path, "rb") as file:
        raw = file.readline()
    line = parse_line(0, raw[:-1]) if raw.endswith(b"\n") else None
    return len(raw) if line is not None and line.replaces == position else None


def replay(path: Path, stop: int) -> dict[tuple[str, str], str]:
    """All tags as the first ``stop`` bytes of the log have them: (repository, tag) → manifest digest.

    A log that was compacted when it had ``stop`` bytes has them in its first line.

    Raises:
        TagsLogCorrupt: when a line does not verify, or the log is shorter.
        StoreWriteFailed: when the log can not be read.
    """
    replaced = find_replaced(path, stop)
    stop = stop if replaced is None else replaced
    lines, end = read_lines(path, 0, stop)
    if end != stop:
        raise TagsLogCorrupt(path, end, f"only {size_of(path)} bytes of {stop} are there, or its checksum differs")
    return _replay(lines)


def replay_whole(path: Path) -> tuple[dict[tuple[str, str], str], int]:
    """All tags as the lines have them that verify, a torn end left out; and where the last of them ends.

    Raises:
        TagsLogCorrupt: when a line inside the log does not verify.
        StoreWriteFailed: when the log can not be read.
    """
    lines, end = read_lines(path, 0)
    return _replay(lines), end


def read_damaged(path: Path) -> list[LogLine]:
    """Those lines that verify in their places, whatever lies between them.

    Raises:
        StoreWriteFailed: when the log can not be read.
    """
    with durable.naming(path, "reading"):
        raw = path.read_bytes() if path.exists() else b""
    lines: list[LogLine] = []
    offset = 0
    for piece in raw.splitlines(keepends=True):
        line = parse_line(offset, piece[:-1])
        if line is not None:
            lines.append(line)
        offset += len(piece)
    return lines


def _replay(lines: list[LogLine]) -> dict[tuple[str, str], str]:
    return {name: logged.set.manifest for name, logged in replay_lines(lines).items()}


def replay_lines(lines: Iterable[LogLine]) -> dict[tuple[str, str], LoggedTag]:
    """All tags as some lines have them, with what each was set by."""
    tags: dict[tuple[str, str], LoggedTag] = {}
    for line in lines:
        for repository, tag in line.removed:
            tags.pop((repository, tag), None)
        for number, item in enumerate(line.set):
            at_s = line.times[number] if number < len(line.times) else line.at_s
            tags[item.repository, item.tag] = LoggedTag(item, at_s)
    return tags
