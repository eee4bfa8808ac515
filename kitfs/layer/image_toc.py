"""The table of contents in an image index: columns, and the checks that make it one that an archive can have.

`image_index` uses it. For `n` members in the order of the archive, numbers little-endian::

    kind u8          n times: 0 file, 1 directory
    mode u16         n times: permission bits as recorded, at most 07777
    size u64         n times: bytes; of a directory 0
    offset u64       n times: of the first byte in the decoded layer
    length u16       n times: bytes of the path
    SHA-256, 32      for each file, in order
    paths            one behind another

What comes over a network is believed by nobody here: paths, order and places are looked at as those of an archive are
when it is read, so that what passes can be shown. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from kitfs.archive.tar_member import BLOCK_SIZE, MemberKind, TarMalformed
from kitfs.archive.tar_names import PathSet, TocLimits
from kitfs.layer.columns import Cursor, ImageIndexMalformed, encode_column
from kitfs.store.records import KIND_DIRECTORY, KIND_FILE, TocMember

_DIGEST_SIZE = 32
_MODE_MAX = 0o7777


def encode_toc(toc: Sequence[TocMember]) -> bytes:
    """The columns of a table of contents."""
    return b"".join(
        (
            encode_column("B", [member.kind for member in toc]),
            encode_column("H", [member.mode for member in toc]),
            encode_column("Q", [member.size for member in toc]),
            encode_column("Q", [member.offset for member in toc]),
            encode_column("H", [len(member.path) for member in toc]),
            *(member.digest for member in toc if member.digest is not None),
            *(member.path for member in toc),
        )
    )


def parse_toc(cursor: Cursor, count: int) -> list[TocMember]:
    """The columns as members; what they say is not looked at, but for their kinds.

    Raises:
        ImageIndexMalformed: when they are cut short, or a kind is not known.
    """
    start = cursor.offset
    kinds = cursor.take(count, "kinds of members")
    if any(kind not in (KIND_FILE, KIND_DIRECTORY) for kind in kinds):
        raise ImageIndexMalformed(start, "a member of an unknown kind")
    columns = [cursor.take_column(code, count, "members") for code in ("H", "Q", "Q", "H")]
    digests = cursor.take(_DIGEST_SIZE * kinds.count(KIND_FILE), "digests of members")
    paths = cursor.take(sum(columns[-1]), "paths")
    toc: list[TocMember] = []
    at = place = 0
    for kind, mode, size, offset, length in zip(kinds, *columns, strict=True):
        digest = None
        if kind == KIND_FILE:
            digest = digests[at : at + _DIGEST_SIZE]
            at += _DIGEST_SIZE
        toc.append(TocMember(paths[place : place + length], kind, mode, size, offset, digest))
        place += length
    return toc


def check_toc(toc: Sequence[TocMember], size_decoded: int, offset: int) -> None:
    """See that a tar of so many bytes can have these members.

    Args:
        toc: The members.
        size_decoded: Bytes of the tar.
        offset: Of the table in the image index, for the error.

    Raises:
        ImageIndexMalformed: when it can not.
    """
    paths = PathSet(TocLimits())
    stop = 0
    for number, member in enumerate(toc):
        if member.mode > _MODE_MAX or (member.kind == KIND_DIRECTORY and member.size):
            raise ImageIndexMalformed(offset, f"member {number}: mode {member.mode:o}, {member.size} bytes")
        if member.offset % BLOCK_SIZE or member.offset < stop + BLOCK_SIZE:
            raise ImageIndexMalformed(offset, f"member {number}: no header fits before byte {member.offset}")
        stop = member.offset + member.size
        if stop > size_decoded:
            raise ImageIndexMalformed(offset, f"member {number}: ends at byte {stop} of {size_decoded}")
        try:
            clean = paths.add(member.path, MemberKind(member.kind), offset)
        except TarMalformed as error:
            raise ImageIndexMalformed(offset, f"member {number}: {error.reason}") from error
        if not clean or clean != member.path:
            raise ImageIndexMalformed(offset, f"member {number}: {member.path[:200]!r} is no clean path")
