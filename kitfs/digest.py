"""Digests identify content and decide trust; checksums find rot and identify nothing.

``Digest`` is SHA-256, the only algorithm that the OCI image specification obliges everyone to read
(https://github.com/opencontainers/image-spec, descriptor.md, "Digests"). ``checksum`` is xxh3-128, 24 GB per
CPU-second here against 1.5 for SHA-256, and never a proof of anything against an adversary. Pure: no files.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

import xxhash

from kitfs.errors import IntegrityError, MalformedError

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

CHECKSUM_SIZE = 16
"""Bytes in a checksum (xxh3-128)."""


class DigestMalformed(MalformedError):
    """Text that is not ``sha256:`` followed by 64 lower-case hexadecimal digits."""

    def __init__(self, text: str) -> None:
        super().__init__(f"not a digest: {text[:100]!r} (expected sha256: and 64 lower-case hexadecimal digits)")
        self.text = text


class DigestMismatch(IntegrityError):
    """Bytes whose digest is not the expected one."""

    def __init__(self, expected: Digest, actual: Digest, what: str = "content") -> None:
        super().__init__(f"{what} has digest {actual}, expected {expected}")
        self.expected = expected
        self.actual = actual


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 digest.

    Attributes:
        hex: 64 lower-case hexadecimal digits.
    """

    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``sha256:<64 hex digits>``.

        Raises:
            DigestMalformed: for anything else, other algorithms and upper case included.
        """
        match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise DigestMalformed(str(text))
        return cls(match.group(1))

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        """The digest of some bytes."""
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def from_raw(cls, raw: bytes) -> Self:
        """From 32 bytes, as stored in keys and records.

        Raises:
            DigestMalformed: when there are not exactly 32 bytes.
        """
        if len(raw) != 32:
            raise DigestMalformed(raw.hex())
        return cls(raw.hex())

    @property
    def raw(self) -> bytes:
        """The digest as 32 bytes."""
        return bytes.fromhex(self.hex)

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


class Digester:
    """A running SHA-256 that also counts bytes.

    Attributes:
        size: Bytes fed so far.
    """

    __slots__ = ("_sha", "size")

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Feed bytes; the interpreter lock is released for pieces above 2 KiB."""
        self._sha.update(data)
        self.size += len(data)

    def digest(self) -> Digest:
        """The digest of all bytes fed so far."""
        return Digest(self._sha.hexdigest())


def checksum(data: bytes | bytearray | memoryview) -> bytes:
    """The xxh3-128 of some bytes, 16 bytes, big-endian (xxHash specification 0.2, canonical form)."""
    return xxhash.xxh3_128_digest(data)


class Checksummer:
    """A running checksum."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Feed bytes."""
        self._state.update(data)

    def digest(self) -> bytes:
        """The checksum of all bytes fed so far, as `checksum` gives it."""
        return self._state.digest()
