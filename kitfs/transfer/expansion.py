"""How much more than usual the compressed layers of one import may decode to: what a decompression bomb can cost.

A bomb costs time, since every decoded byte is hashed, and disk, once somebody reads it and its members are made into
files; memory is bounded by the size of pieces and spans. Its ratio does not tell it from a preallocated tensor: both
are zeros, 1030 to 1 by deflate and 32 000 to 1 by zstd. So layers may exceed 256 times their size by an amount, shared
by all layers of an import: 8 GiB, or what `import --expansion-max` says, and never more than the disk has free. 8 GiB
of zeros are 11 CPU-seconds; 256 MiB of each layer are not counted. Used by `importer`; one thread.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from kitfs.layer.decode import DecodeLimits

EXPANSION_MAX = 8 << 30
"""Decoded bytes that layers of one import may have beyond what is usual."""

_FREE_SIZE = 256 << 20


class Expansion:
    """What is left of an import's allowance."""

    def __init__(self, home: Path, size_max: int = EXPANSION_MAX) -> None:
        """Begin an import.

        Args:
            home: The store's folder, whose free space bounds the allowance.
            size_max: Decoded bytes beyond the usual.

        Raises:
            OSError: when the folder can not be looked at.
        """
        status = os.statvfs(home)
        self._left = min(size_max, status.f_bavail * status.f_frsize)

    def limits(self) -> DecodeLimits:
        """What the next layer may cost."""
        return dataclasses.replace(DecodeLimits(), free_size=_FREE_SIZE + self._left)

    def spend(self, published_size: int, decoded_size: int) -> None:
        """A layer was decoded, so far or to its end."""
        usual = _FREE_SIZE + DecodeLimits().ratio * published_size
        self._left -= min(max(decoded_size - usual, 0), self._left)
