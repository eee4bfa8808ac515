"""The schema of the index: every table, key, value, sentinel, invariant, and the migration rule.

The authority for what the LMDB environment holds; ``records.py`` has the values' fields. Pure: encodes and
decodes keys, opens nothing. ::

    index/              LMDB, 4 KiB pages, everything in the main database; the first byte of a key is its table
    │
    ├── b blobs         <digest 32>                       → BlobRecord       a file under blobs/ that is whole, or one
    │                                                                        under recipes/ with all its members
    ├── m manifests     <digest 32>                       → ManifestRecord   that blob, understood as a manifest
    ├── t tags          <text key of repository NUL tag>  → TagRecord        repeats repository and tag
    ├── l layers        <digest 32>                       → LayerRecord      that blob, understood as a layer
    ├── o tocs          <digest 32> 00 <sequence u32be>   → list[TocMember]  <= TOC_BATCH members, in tar order
    ├── s checkpoints   <digest 32> 00 <sequence u32be>   → bytes            first <= CHECKPOINT_BATCH_SIZE each of the
    │                                                                        layer's span checksums, 16 bytes each;
    │                                                                        then the values of its checkpoints, as
    │                                                                        ``kitfs/layer/checkpoints.py`` has them
    ├── d outlines      <digest 32> 00 <sequence u32be>   → bytes            the layer's directories, as ``outline.py``
    │                                                                        has them; for layers of many members
    ├── f members       <digest 32>                       → MemberRecord     a file under members/ that is whole
    ├── i inode_bases   <text key of a tree's key>        → InodeRange       repeats its key; never deleted
    └── c counts        "tags"                            → CountRecord      number and XOR of element checksums
                        "manifests"                       → CountRecord      the same over manifests
                        "tags_log"                        → LogPosition      bytes of tags.log that are in `tags`
                        "inodes"                          → NextInode        first number that no range has
                        "members"                         → MemberTotal      number and bytes of members without pins

    Tables are no databases of their own, because the binding opens such a database only inside a write
    transaction: one process stopped in one would keep every other from opening the store.

    <digest 32>   the 32 raw bytes of a SHA-256
    text key      01 <bytes>        for up to KEY_TEXT_SIZE_MAX bytes, else
                  00 <SHA-256 32>   of them; LMDB ends keys at 511 bytes, and the value repeats the whole key
    value         <format u8 = VALUE_FORMAT> <checksum 16> <MessagePack of the record>
                  checksum = xxh3-128 over  <table name> 00 <key length u16be> <key> <format u8> <MessagePack>
                  so a value that is moved to another key or table does not verify

Sentinels: a ``stamp`` of nil means "never believed: hash before trusting"; a TocMember ``digest`` of nil is a
directory or a layer whose members were not hashed; an absent count is a count of 0 and 16 zero bytes, but an absent
``counts["members"]`` means "to be added up".

Invariants, each checked by a function of ``fsck.py``:

* a ``blobs`` record has its whole file, or its recipe where its form says so; a ``members`` record has its file (I2);
* every member of a split blob's recipe has a ``members`` record that names the blob in ``pins``, and no other has;
* ``manifests`` ⊆ ``blobs``; a manifest's config and every layer are in ``blobs``;
* a tag's manifest is in ``manifests``;
* ``layers`` ⊆ ``blobs``; sequences of ``tocs`` start at 0 without a gap and add up to ``member_count``, those of
  ``checkpoints`` to ``span_checksums_size`` and then ``checkpoint_values`` more, those of ``outlines`` to
  ``outline_values``;
* ``counts["tags"]``, the table and the replay of ``tags.log`` name the same (tag, manifest) pairs, and
  ``counts["manifests"]`` the keys of ``manifests``: a flipped bit can make a key vanish without an error, so GC
  sweeps nothing unless they do;
* ``counts["members"]`` is the sum over the records of ``members`` that verify and have no pins;
* numbers in ``inode_bases`` never overlap, start at 2, and are never given out again.

Everything but ``inode_bases`` follows from the files below the home. Migration: VALUE_FORMAT rises when a
record changes in a way that an older reader would misread; fields that are only added come last with a default
and leave it alone. A reader refuses a format above its own, and rewrites an older one when it next writes that
record. A change of a key raises ``layout.FORMAT_VERSION`` and is made by building the index anew.
"""

from __future__ import annotations

import hashlib
import struct

from kitfs.digest import Digest

BLOBS = "blobs"
MANIFESTS = "manifests"
TAGS = "tags"
LAYERS = "layers"
TOCS = "tocs"
CHECKPOINTS = "checkpoints"
OUTLINES = "outlines"
MEMBERS = "members"
INODE_BASES = "inode_bases"
COUNTS = "counts"

PREFIXES = {
    BLOBS: b"b",
    MANIFESTS: b"m",
    TAGS: b"t",
    LAYERS: b"l",
    TOCS: b"o",
    CHECKPOINTS: b"s",
    OUTLINES: b"d",
    MEMBERS: b"f",
    INODE_BASES: b"i",
    COUNTS: b"c",
}
"""First byte of the keys of each table."""

COUNT_TAGS = b"tags"
COUNT_MANIFESTS = b"manifests"
LOG_POSITION = b"tags_log"
NEXT_INODE = b"inodes"
MEMBER_TOTAL = b"members"

VALUE_FORMAT = 1
KEY_TEXT_SIZE_MAX = 200
KEY_LONG = b"\x00"
"""First byte of the key of a text longer than that."""

TOC_BATCH = 1024
"""Members in one value of ``tocs``: about 100 KiB with names of 40 bytes."""

CHECKPOINT_BATCH_SIZE = 256 * 1024
INODE_FIRST = 2
"""1 is a FUSE root."""

REPOSITORY_SIZE_MAX = 4096
TAG_SIZE_MAX = 128
MEDIA_TYPES_MAX = 16
"""Media types remembered of one blob."""

INODE_COUNT_MAX = 1 << 40
SEQUENCE_MAX = (1 << 32) - 1

_SEQUENCE = struct.Struct(">I")


def encode_text_key(text: bytes) -> bytes:
    """The key for text of any length; see the module's drawing."""
    if len(text) <= KEY_TEXT_SIZE_MAX:
        return encode_text_prefix(text)
    return KEY_LONG + hashlib.sha256(text).digest()


def encode_text_prefix(text: bytes) -> bytes:
    """What the keys of all short texts that begin with ``text`` begin with; long ones begin with ``KEY_LONG``."""
    return b"\x01" + text


def encode_tag_key(repository: str, tag: str) -> bytes:
    """The key of a tag."""
    return encode_text_key(tag_text(repository, tag))


def tag_text(repository: str, tag: str) -> bytes:
    """``repository NUL tag``: what a tag's key and its element checksum are made of."""
    return repository.encode() + b"\0" + tag.encode()


def encode_sequence_key(digest: Digest, sequence: int) -> bytes:
    """The key of one batch of a layer's table of contents or checksums."""
    return digest.raw + b"\0" + _SEQUENCE.pack(sequence)


def parse_sequence_key(key: bytes) -> tuple[Digest, int] | None:
    """The layer and sequence of a batch's key, or None when it is no such key."""
    if len(key) != 37 or key[32] != 0:
        return None
    return Digest.from_raw(key[:32]), _SEQUENCE.unpack_from(key, 33)[0]
