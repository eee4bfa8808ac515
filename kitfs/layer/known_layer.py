"""Members of a split layer that go unchanged into a new one: what is known of them, and their bytes.

Used by commit, which must find only the new layer's own digest from the bytes. They are read through the layer's
checksums, files that are trusted too: rot below the file system must not get into a new layer's digest. Nothing is
known here of layers that are not split: what is written to the store is hashed as it is written, and a member of a
compressed layer has no checksums of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from kitfs.digest import Digest
from kitfs.layer.known import KnownMember, KnownPart
from kitfs.layer.ranges import DIGEST_SIZE, RANGE_SIZE, RangesBroken, parse_ranges
from kitfs.layer.reader import LayerReader
from kitfs.layer.span_reader import SpanReader
from kitfs.store.store import Store

_PIECE_SIZE = 1 << 20


class KnownLayer:
    """A split layer that members are taken of; as long-lived as its reader."""

    def __init__(self, store: Store, reader: LayerReader) -> None:
        """Read the digests of its ranges.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        self._reader = reader
        numbers = range(reader.record.checkpoint_values if reader.is_split else 0)
        values = [store.get_checkpoint_value(reader.layer, number) for number in numbers]
        self._ranges = _find_ranges(values, reader.record.size_decoded)

    def find(self, index: int) -> KnownPart | None:
        """A member; None when nothing is known of it.

        Raises:
            IndexError, NotAFile, BlobNotFound, RecordCorrupt, IndexFailed, IndexCorrupt: as `LayerReader.open_member`.
        """
        checked = self._reader.open_checked(index) if self._reader.is_split else None
        if checked is None or not checked.size:
            return None
        member = self._reader.toc[index]
        assert member.digest is not None  # files have one
        checksums, digest = bytes(checked.checksums), Digest.from_raw(member.digest)
        known = KnownMember(digest, member.size, checksums, member.offset, self._ranges)
        return KnownPart(known, _iter_pieces(checked))


def _find_ranges(values: list[bytes], layer_size: int) -> bytes:
    """Digests of all ranges of a layer, of the size that is written today, or nothing."""
    try:
        size, digests = parse_ranges(values)
    except RangesBroken:
        return b""
    is_whole = size == RANGE_SIZE and len(digests) == DIGEST_SIZE * -(-layer_size // RANGE_SIZE)
    return digests if is_whole else b""


def _iter_pieces(member: SpanReader) -> Iterator[bytes | memoryview]:
    """All bytes of a member, each compared with its span's checksum.

    Raises:
        LayerCorrupt: when a span is not what was verified.
        BlobNotFound, OSError: when the file is gone, or the disk fails.
    """
    for start in range(0, member.size, _PIECE_SIZE):
        yield member.read(start, min(start + _PIECE_SIZE, member.size))
