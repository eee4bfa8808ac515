"""The values of the index: their fields, and the codec that versions and checksums each.

Read by everything above the store. Records are facts, frozen; ``encode_value`` and ``parse_value`` are pure.
Fields are encoded by position (MessagePack arrays), so new ones come last, with a default.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from kitfs.digest import CHECKSUM_SIZE, Digest, checksum
from kitfs.store.errors import RecordCorrupt
from kitfs.store.schema import VALUE_FORMAT

BlobForm = Literal["whole", "linked", "split"]
"""``whole``: a file of our own making. ``linked``: a second name of another program's file. ``split``: a recipe under
``recipes/`` and member files, which together are the blob (``recipe.py``)."""

KIND_FILE = 0
KIND_DIRECTORY = 1


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """What a file looked like when its bytes were last known to be right (lazy.md 3).

    Attributes:
        device: ``st_dev``.
        inode: ``st_ino``.
        size: Bytes.
        mtime_ns: Time of the last change of its bytes.
        ctime_ns: Time of the last change of anything; at least ``stamp.TICK_NS`` before the stamp was taken.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class BlobRecord(msgspec.Struct, frozen=True, array_like=True):
    """A blob that is in the store.

    Attributes:
        size: Bytes.
        form: Whether it is a file of our own, a hard link to another program's, or a recipe with its members.
        media_types: Media types it was seen under, in order of appearance.
        origin: Where it came from, for people: ``here``, ``kit``, ``layout``, a registry's host.
        added_s: When it was first recorded, seconds since the epoch.
        last_used_s: When it was last recorded or held by a change.
        stamp: Its file (of a split blob, its recipe) when last verified, or None when it has to be hashed before it is
            trusted.
    """

    size: int
    form: BlobForm
    media_types: list[str]
    origin: str
    added_s: int
    last_used_s: int
    stamp: Stamp | None = None


class ManifestRecord(msgspec.Struct, frozen=True, array_like=True):
    """A blob that is a manifest; its bytes are read from the blob.

    Attributes:
        config: The config blob.
        layers: The layer blobs in manifest order; one digest may occur twice.
        parents: The chain of parent manifests as last resolved, nearest first.
        indexes: The image indexes of its layers that are in the store as blobs, as its descriptors name them.
    """

    config: Digest
    layers: list[Digest]
    parents: list[Digest] = []
    indexes: list[Digest] = []


class TagRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a tag points at.

    Attributes:
        manifest: The ModelKitID.
        origin: Who set it: ``here``, ``kit``, ``layout`` or ``registry``.
        set_s: When, seconds since the epoch.
        repository: The full repository name.
        tag: The tag itself.
    """

    manifest: Digest
    origin: str
    set_s: int
    repository: str = ""
    tag: str = ""


class LayerRecord(msgspec.Struct, frozen=True, array_like=True):
    """A blob that is a layer, as the indexing pass over it found it.

    Attributes:
        diff_id: Digest of the uncompressed layer.
        format: ``tar`` or ``raw``.
        compression: ``none``, ``gzip`` or ``zstd``.
        member_count: Entries of its TOC, directories included.
        size_decoded: Bytes of the uncompressed layer.
        size_members: Bytes of all its files.
        state: ``indexed``.
        span_checksums_size: Bytes of its span checksums; filled in by the change that records it.
        checkpoint_values: Values of its checkpoints, 0 when it has none; filled in likewise.
        outline_values: Values of its outline, 0 when it is made from the TOC; filled in likewise.
    """

    diff_id: Digest
    format: str
    compression: str
    member_count: int
    size_decoded: int
    size_members: int
    state: str = "indexed"
    span_checksums_size: int = 0
    checkpoint_values: int = 0
    outline_values: int = 0


class TocMember(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of a layer's table of contents.

    Attributes:
        path: Its cleaned path inside the layer; empty for the one member of a raw layer.
        kind: ``KIND_FILE`` or ``KIND_DIRECTORY``.
        mode: Permission bits as recorded.
        size: Bytes; 0 for a directory.
        offset: Of its first byte in the uncompressed layer.
        digest: SHA-256 of its bytes, 32 raw bytes, or None for a directory.
    """

    path: bytes
    kind: int
    mode: int
    size: int
    offset: int
    digest: bytes | None = None


class MemberRecord(msgspec.Struct, frozen=True, array_like=True):
    """A member whose whole file is in the store.

    Attributes:
        size: Bytes.
        state: ``native``; ``damaged`` when its bytes were found to be wrong and recipes need it: importing a ModelKit
            that has it puts it right.
        last_used_s: When it was last recorded or opened, seconds since the epoch; opening is noted late.
        stamp: Its file when last verified, or None when it has to be hashed before it is trusted.
        pins: Split blobs of which it is a part: while there is one it is neither evicted nor dropped.
    """

    size: int
    state: str
    last_used_s: int
    stamp: Stamp | None = None
    pins: list[Digest] = []


class MemberTotal(msgspec.Struct, frozen=True, array_like=True):
    """Members that can be made anew: those that nothing pins.

    Attributes:
        count: How many.
        size: Bytes of them all.
    """

    count: int = 0
    size: int = 0


class InodeRange(msgspec.Struct, frozen=True, array_like=True):
    """Inode numbers ``[first, first + count)`` given to one tree for ever.

    Attributes:
        key: The whole key, since the table's may be a digest of it.
        first: The first number.
        count: How many.
    """

    key: bytes
    first: int
    count: int


class NextInode(msgspec.Struct, frozen=True, array_like=True):
    """The first inode number that no range has.

    Attributes:
        number: That number.
    """

    number: int


class CountRecord(msgspec.Struct, frozen=True, array_like=True):
    """How many elements a table has, and what they are.

    Attributes:
        count: How many.
        elements: XOR of the elements' checksums, 16 bytes.
    """

    count: int = 0
    elements: bytes = bytes(CHECKSUM_SIZE)

    def toggled(self, element: bytes, difference: int) -> CountRecord:
        """With one element added (``difference`` 1) or removed (-1)."""
        mask = int.from_bytes(checksum(element)) ^ int.from_bytes(self.elements)
        return CountRecord(self.count + difference, mask.to_bytes(CHECKSUM_SIZE))


class LogPosition(msgspec.Struct, frozen=True, array_like=True):
    """How much of ``tags.log`` the table of tags contains.

    Attributes:
        size: Bytes from the start of the log.
    """

    size: int = 0


Record = TypeVar("Record")

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[object, msgspec.msgpack.Decoder[object]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (
        BlobRecord,
        ManifestRecord,
        TagRecord,
        LayerRecord,
        MemberRecord,
        InodeRange,
        NextInode,
        CountRecord,
        MemberTotal,
        LogPosition,
        bytes,
        list[TocMember],
    )
}
_HEADER_SIZE = 1 + CHECKSUM_SIZE


def _covered(table: str, key: bytes, version: bytes, body: bytes) -> bytes:
    return checksum(b"".join((table.encode(), b"\0", len(key).to_bytes(2), key, version, body)))


def encode_value(table: str, key: bytes, record: object) -> bytes:
    """The bytes to store under ``key``: format, checksum over table, key and body, body."""
    version = bytes((VALUE_FORMAT,))
    body = _ENCODER.encode(record)
    return version + _covered(table, key, version, body) + body


def parse_value(table: str, key: bytes, value: bytes, kind: type[Record]) -> Record:
    """The record in a stored value.

    Raises:
        RecordCorrupt: when the format is unknown, the checksum differs, or the body is not of this kind.
    """
    if len(value) < _HEADER_SIZE:
        raise RecordCorrupt(table, key, f"only {len(value)} bytes")
    version, expected, body = value[:1], value[1:_HEADER_SIZE], value[_HEADER_SIZE:]
    if _covered(table, key, version, body) != expected:
        raise RecordCorrupt(table, key, "its checksum differs")
    if version[0] != VALUE_FORMAT:
        raise RecordCorrupt(table, key, f"format {version[0]} is not known")
    try:
        return _DECODERS[kind].decode(body)  # type: ignore[return-value]  # the decoder of `kind` gives a `kind`
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise RecordCorrupt(table, key, str(error)) from error
