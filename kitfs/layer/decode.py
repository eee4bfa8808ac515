"""Decompression of a layer: bounded pieces out, strict about how the stream is made, limits on what it may cost.

Decoders come from `decoders.open_decoder`. The indexer and the materialiser use it with pieces of any size; the
output does not depend on them. Output pieces are at most `OUTPUT_SIZE`, whatever a hostile stream expands to.
Decoders check lengths and checksums of the format and raise `LayerMalformed`; they do not vouch for the content, the
digests do that. One thread at a time per decoder; the interpreter lock is released while decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from kitfs.layer.errors import LayerMalformed

OUTPUT_SIZE = 1 << 20
"""Upper bound of one output piece."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What a compressed layer may cost.

    Attributes:
        decoded_size: Bytes of the decoded layer.
        free_size: Decoded bytes that no ratio is asked of: a preallocated tensor is zeros. `transfer.expansion` has
            what they cost, and shares them among the layers of an import.
        ratio: Decoded bytes per published byte beyond `free_size`. Deflate reaches 1032, zstd far more; weights
            reach 1.3, text 10.
        free_parts: Gzip members or zstd frames that no content is asked of.
        part_size: Decoded bytes that each further one must have on average; bgzip's have 64 KiB.
        header_size: Bytes of one gzip member's header.
        window_size: Memory that a zstd frame may ask for; `zstd` itself reads no more without `--long`.
    """

    decoded_size: int = 1 << 42
    free_size: int = 8 << 30
    ratio: int = 256
    free_parts: int = 4096
    part_size: int = 1024
    header_size: int = 4096
    window_size: int = 128 << 20


class Decoder(Protocol):
    """A stream being decoded."""

    def feed(self, data: memoryview) -> Iterator[bytes | memoryview]:
        """Decode the next published bytes; the iterator must be run to its end.

        Raises:
            LayerMalformed: while iterating.
        """
        ...

    def close(self) -> None:
        """Say that there are no more bytes.

        Raises:
            LayerMalformed: when the stream is empty or cut short.
        """
        ...


class Meter:
    """Counts what a stream costs and refuses what is too much.

    Attributes:
        read_size: Published bytes consumed so far.
        decoded_size: Bytes produced so far.
        parts: Members or frames begun so far.
    """

    __slots__ = ("_limits", "decoded_size", "parts", "read_size")

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self.read_size = 0
        self.decoded_size = 0
        self.parts = 0

    def add_decoded(self, size: int) -> None:
        """Count output.

        Raises:
            LayerMalformed: when it is too large for what was read.
        """
        limits = self._limits
        self.decoded_size += size
        if self.decoded_size > limits.decoded_size:
            raise self.refuse(f"decodes to more than {limits.decoded_size} bytes")
        if self.decoded_size > limits.free_size + limits.ratio * self.read_size:
            what = f"decompression bomb: {self.decoded_size} bytes out of {self.read_size}"
            raise self.refuse(f"{what} (`import --expansion-max` admits more)")

    def add_part(self) -> None:
        """Count a gzip member or zstd frame.

        Raises:
            LayerMalformed: when there are too many for what they hold.
        """
        self.parts += 1
        if self.parts > self._limits.free_parts + self.decoded_size // self._limits.part_size:
            raise self.refuse(f"{self.parts} members or frames that hold next to nothing")

    def refuse(self, reason: str) -> LayerMalformed:
        """The error for what stands at the current byte."""
        return LayerMalformed(None, self.read_size, reason)
