"""A member of a tar archive and the refusal that names one: the words reader and writer share.

Only values: nothing here reads or writes anything.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from kitfs.errors import MalformedError

BLOCK_SIZE = 512
"""Bytes of a header; data is padded to a multiple of it (POSIX.1-2017, pax, "ustar Interchange Format")."""


class MemberKind(enum.IntEnum):
    """What a member is; ModelKits hold nothing else. The numbers are stored."""

    FILE = 0
    DIRECTORY = 1


class TarMember(NamedTuple):
    """One file or directory of an archive.

    Attributes:
        path: Relative path: no leading ``./``, no trailing or doubled ``/``, no ``.`` or ``..`` component.
        kind: File or directory.
        mode: Permission bits as recorded, 0 to 0o7777; whoever serves them drops setuid and setgid.
        size: Bytes of data; 0 for a directory.
        offset: Where its data starts in the archive, a multiple of 512.
        mtime_s: Modification time in seconds since 1970, of any sign.
    """

    path: bytes
    kind: MemberKind
    mode: int
    size: int
    offset: int
    mtime_s: int


class TarMalformed(MalformedError):
    """An archive that breaks its format, or holds what a ModelKit can not hold.

    Attributes:
        offset: Byte in the archive of the header, or of its end, that is refused.
        reason: What is wrong, in words.
        member: Name of the member as the archive spells it, where it is known.
    """

    def __init__(self, offset: int, reason: str, member: bytes | None = None) -> None:
        place = f"tar archive, byte {offset}"
        if member is not None:
            place += f", member {member[:200]!r}"
        super().__init__(f"{place}: {reason}")
        self.offset = offset
        self.reason = reason
        self.member = member
