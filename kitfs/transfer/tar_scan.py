"""A look at the headers of a plain tar before it is read: is it to be kept split?

Used by ``intake``. Reads 4 KiB at each header and nothing more of the members, and gives up after ``ENTRIES_MAX``
entries. What it says is about bytes that nobody has verified yet; whoever splits or copies them afterwards does.
"""

from __future__ import annotations

import os

from kitfs.archive.tar_toc import TarMalformed, TocReader
from kitfs.store.split_ingest import ENTRIES_MAX, is_worth_splitting
from kitfs.transfer.source import SourceBlob

_READ_SIZE = 4096
_SAMPLE_SIZE = 4 << 20
"""What is waited for of a blob that arrives: its members so far stand for the others."""


def is_split_worthy(blob: SourceBlob) -> bool:
    """Whether a source's plain tar is worth splitting; not one that is malformed, which the import then names.

    Of a blob that arrives only the beginning is looked at: what it says may be wrong.

    Raises:
        OSError: when the source can not be read.
        KitfsError: when no more of it arrives.
    """
    reader = TocReader()
    entries = size_members = at = 0
    seen = blob.wait(_SAMPLE_SIZE)
    try:
        while at < seen and not reader.is_over and entries <= ENTRIES_MAX:
            data = os.pread(blob.fd, min(_READ_SIZE, seen - at), blob.offset + at)
            if not data:
                return False
            for piece in reader.feed(data):
                if piece.starts:
                    entries += 1
                    size_members += piece.member.size
            at += len(data) + reader.pass_over()
    except TarMalformed:
        return False
    if at < blob.size and not reader.is_over:
        entries = -(-entries * blob.size // max(at, 1))
        size_members = size_members * blob.size // max(at, 1)
    return is_worth_splitting(entries, size_members, blob.size)
