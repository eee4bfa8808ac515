"""What is known of a member whose bytes another layer of the store has: it needs no second pass of hashing.

`known_layer` finds it, the indexer uses it. A member that goes unchanged into a new plain tar lies there with the same
bytes, so its digest and its span checksums are the same, and so are the digests of the published ranges that fall whole
into it, where it begins at the same place of a range. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kitfs.digest import Digest
from kitfs.layer.ranges import DIGEST_SIZE, RANGE_SIZE


@dataclass(frozen=True, slots=True)
class KnownMember:
    """What is known of a member.

    Attributes:
        digest: Its digest.
        size: Its bytes, at least 1.
        checksums: Of its spans, 16 bytes each.
        offset: Where it begins in the layer that has it.
        ranges: Digests of that layer's ranges, 32 bytes each; empty where they are not recorded.
    """

    digest: Digest
    size: int
    checksums: bytes
    offset: int
    ranges: bytes

    def find_ranges(self, offset: int) -> dict[int, bytes]:
        """Digests of the ranges of another layer, by number, that lie in the member when it begins at an offset."""
        if not self.ranges or (offset - self.offset) % RANGE_SIZE:
            return {}
        first, stop = -(-offset // RANGE_SIZE), (offset + self.size) // RANGE_SIZE
        moved = (offset - self.offset) // RANGE_SIZE
        raw = memoryview(self.ranges)
        numbers = range(first, stop)
        return {number: bytes(raw[(number - moved) * DIGEST_SIZE :][:DIGEST_SIZE]) for number in numbers}


class KnownPart(NamedTuple):
    """A member that is known, and all its bytes.

    Attributes:
        member: What is known.
        pieces: The bytes, compared with the checksums as they are read.
    """

    member: KnownMember
    pieces: Iterator[bytes | memoryview]
