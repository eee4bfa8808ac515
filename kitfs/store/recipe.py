"""Recipes: what a split blob holds beside its members' bytes, and which members go where.

A plain tar is its headers, its members and their padding, one after the other; a recipe has all but the members'
bytes, so that recipe and members give the published bytes back exactly. Used by whatever reads, writes or checks split
blobs. Pure but for ``read_recipe`` and ``find_recipe``. The format, big-endian::

    0    8   "KITFSRCP"
    8    4   version, 1
    12   32  SHA-256 of the blob
    44   8   size of the blob
    52   4   number of members, 1 to MEMBERS_MAX
    56   8   size of the rest: the blob's bytes that are no member's
    64   8   size of the rest as it is stored
    72   48  for each member, by offset: offset in the blob (8), size (8, not 0), SHA-256 (32)
         …   the rest, in the blob's order, as one zstd frame that says its content size
         16  xxh3-128 of all bytes before

A member that occurs twice is listed twice. Members without bytes are not: their headers are all there is of them.
zstandard is imported only when the rest is asked for, which a mount never does.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kitfs.digest import CHECKSUM_SIZE, Digest, checksum
from kitfs.store.errors import BlobCorrupt, BlobNotFound, LimitExceeded
from kitfs.store.layout import Layout

VERSION = 1
MEMBERS_MAX = 65_536
REST_SIZE_MAX = 64 << 20
"""Bytes of a tar that are no member's: a recipe is read whole, and so is its rest."""

_MAGIC = b"KITFSRCP"
_HEADER = struct.Struct(">8sI32sQIQQ")
_MEMBER = struct.Struct(">QQ32s")
_FILE_SIZE_MAX = _HEADER.size + _MEMBER.size * MEMBERS_MAX + REST_SIZE_MAX + (1 << 20)
_LEVEL = 3


class RecipeMember(NamedTuple):
    """Where a member's bytes belong.

    Attributes:
        offset: Of its first byte in the blob.
        size: Bytes, at least 1.
        digest: Of these bytes.
    """

    offset: int
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that verified.

    Attributes:
        digest: The blob's.
        size: The blob's.
        members: By offset.
        rest_size: Bytes that are no member's.
        packed_rest: These, compressed.
    """

    digest: Digest
    size: int
    members: tuple[RecipeMember, ...]
    rest_size: int
    packed_rest: memoryview

    def sizes(self) -> dict[Digest, int]:
        """Each member once, with its size."""
        return {member.digest: member.size for member in self.members}

    def unpack_rest(self) -> bytes:
        """The bytes that are no member's, in order.

        Raises:
            BlobCorrupt: when they do not decode to what the recipe says.
        """
        import zstandard

        try:
            if zstandard.frame_content_size(self.packed_rest) != self.rest_size:
                raise BlobCorrupt(self.digest, "its recipe's rest has another size")
            rest = zstandard.ZstdDecompressor().decompress(self.packed_rest, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BlobCorrupt(self.digest, f"its recipe's rest does not decode: {error}") from error
        if len(rest) != self.rest_size:
            raise BlobCorrupt(self.digest, "its recipe's rest is cut short")
        return rest


def encode_recipe(digest: Digest, size: int, members: Sequence[RecipeMember], rest: bytes | bytearray) -> bytes:
    """The bytes of a recipe.

    Raises:
        LimitExceeded: when there are more members, or more bytes beside them, than a recipe takes.
    """
    import zstandard

    for what, count, limit in (
        ("the number of members of a split layer", len(members), MEMBERS_MAX),
        ("the size of a split layer without its members", len(rest), REST_SIZE_MAX),
    ):
        if count > limit:
            raise LimitExceeded(what, count, limit)
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(rest)
    header = _HEADER.pack(_MAGIC, VERSION, digest.raw, size, len(members), len(rest), len(packed))
    table = b"".join(_MEMBER.pack(member.offset, member.size, member.digest.raw) for member in members)
    body = b"".join((header, table, packed))
    return body + checksum(body)


def parse_recipe(data: bytes, digest: Digest) -> Recipe:
    """Read a recipe of a blob.

    Raises:
        BlobCorrupt: when it is not this blob's, does not verify, or contradicts itself.
    """
    if len(data) < _HEADER.size + CHECKSUM_SIZE or data[: len(_MAGIC)] != _MAGIC:
        raise BlobCorrupt(digest, "its recipe is no recipe")
    if checksum(memoryview(data)[:-CHECKSUM_SIZE]) != data[-CHECKSUM_SIZE:]:
        raise BlobCorrupt(digest, "its recipe's checksum differs")
    _, version, raw, size, count, rest_size, packed_size = _HEADER.unpack_from(data)
    if version != VERSION:
        raise BlobCorrupt(digest, f"its recipe has version {version}")
    if raw != digest.raw:
        raise BlobCorrupt(digest, f"its recipe is that of {Digest.from_raw(raw)}")
    stop = _HEADER.size + count * _MEMBER.size
    if count > MEMBERS_MAX or rest_size > REST_SIZE_MAX or stop + packed_size + CHECKSUM_SIZE != len(data):
        raise BlobCorrupt(digest, "its recipe's sizes are beyond its limits or its end")
    table = memoryview(data)[_HEADER.size : stop]
    members = tuple(RecipeMember(at, length, Digest.from_raw(key)) for at, length, key in _MEMBER.iter_unpack(table))
    _check_places(digest, size, rest_size, members)
    return Recipe(digest, size, members, rest_size, memoryview(data)[stop : stop + packed_size])


def _check_places(digest: Digest, size: int, rest_size: int, members: Sequence[RecipeMember]) -> None:
    at = total = 0
    for member in members:
        if not member.size or member.offset < at:
            raise BlobCorrupt(digest, "its recipe's members overlap or are empty")
        at = member.offset + member.size
        total += member.size
    if not members or at > size or total + rest_size != size:
        raise BlobCorrupt(digest, "its recipe's members and rest do not add up to its size")


def read_recipe(layout: Layout, digest: Digest) -> Recipe:
    """The recipe of a blob, from its file.

    Raises:
        BlobNotFound: when there is none.
        BlobCorrupt: when it does not verify or can not be read.
    """
    path = layout.recipe(digest)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            data = file.read(_FILE_SIZE_MAX + 1)
    except FileNotFoundError:
        raise BlobNotFound(digest) from None
    except OSError as error:
        raise BlobCorrupt(digest, f"its recipe can not be read: {error.strerror}") from error
    if len(data) > _FILE_SIZE_MAX:
        raise BlobCorrupt(digest, "its recipe is too large")
    return parse_recipe(data, digest)


def find_recipe(layout: Layout, digest: Digest) -> Recipe | None:
    """The recipe of a blob, or None when there is none that verifies."""
    try:
        return read_recipe(layout, digest)
    except (BlobNotFound, BlobCorrupt):
        return None


def has_all_members(layout: Layout, recipe: Recipe) -> bool:
    """Whether a file of the right size is there for every member."""
    for digest, size in recipe.sizes().items():
        try:
            if os.lstat(layout.member(digest)).st_size != size:
                return False
        except OSError:
            return False
    return True
