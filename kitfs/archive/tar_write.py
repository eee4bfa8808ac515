"""Tar headers as `kit pack` writes them, byte for byte, so that equal trees give equal layer digests.

kit uses Go's ``archive/tar`` with the format left open: USTAR where everything fits, else PAX. The rules here are
those of its ``Writer.WriteHeader`` (go.dev/src/archive/tar: ``splitUSTARPath``, ``writePAXHeader``), with kit's
uid 1000, gid 0, no owner names and mtime 0. The packer is the user. Pure; the caller writes the data, the padding
and `END_OF_ARCHIVE`, and orders the members.
"""

from __future__ import annotations

from kitfs.archive.tar_member import BLOCK_SIZE, MemberKind
from kitfs.errors import UsageError

END_OF_ARCHIVE = bytes(2 * BLOCK_SIZE)
"""What follows the last member: two zero blocks, no padding to 10 240."""

_NAME_SIZE = 100
_PREFIX_SIZE = 155
_OCTAL_SIZE_MAX = 0o77777777777  # 8 GiB - 1, eleven digits
_PAX_SIZE_MAX = 1 << 20  # Go's maxSpecialFileSize
_UID = 1000
_GID = 0


class MemberUnwritable(UsageError):
    """A member that the format can not hold.

    Attributes:
        name: The name as it was given.
        reason: What is wrong with it, in words.
    """

    def __init__(self, name: bytes, reason: str) -> None:
        super().__init__(f"can not be written to a tar archive: {name[:200]!r}: {reason}")
        self.name = name
        self.reason = reason


def encode_member_header(name: bytes, *, kind: MemberKind, size: int, mode: int) -> bytes:
    """The header blocks of one member: 512 bytes, or three blocks and more with a PAX header.

    Args:
        name: Slash-separated path; a directory has no trailing slash (kit strips it).
        kind: File or directory.
        size: Bytes of data that will follow, 0 for a directory.
        mode: Permission bits, 0 to 0o7777.

    Raises:
        MemberUnwritable: for an empty name, a NUL in it, a path that is not relative and clean, a PAX header above
            1 MiB, a size below zero or above 2**63 - 1, a directory with a size, or other mode bits.
    """
    _check(name, kind, size, mode)
    typeflag = b"5" if kind is MemberKind.DIRECTORY else b"0"
    split = _split_ustar(name)
    is_plain = name.isascii() and (len(name) <= _NAME_SIZE or split is not None)
    if is_plain and size <= _OCTAL_SIZE_MAX:
        prefix, suffix = split or (b"", name)
        return _encode_block(suffix, typeflag, size=size, mode=mode, prefix=prefix)
    records: list[tuple[bytes, bytes]] = []
    if not name.isascii() or len(name) > _NAME_SIZE:
        records.append((b"path", name))
    if size > _OCTAL_SIZE_MAX:
        records.append((b"size", b"%d" % size))
    octal_size = size if size <= _OCTAL_SIZE_MAX else 0
    return _encode_pax(name, records) + _encode_block(_ascii(name), typeflag, size=octal_size, mode=mode)


def padding(size: int) -> bytes:
    """The zero bytes that follow `size` bytes of data."""
    return bytes(-size % BLOCK_SIZE)


def _check(name: bytes, kind: MemberKind, size: int, mode: int) -> None:
    if not name or b"\0" in name:
        raise MemberUnwritable(name, "the name is empty or holds a NUL")
    if any(part in (b"", b".", b"..") for part in name.split(b"/")):
        raise MemberUnwritable(name, "the path is absolute, or has an empty, '.' or '..' component")
    if not 0 <= size < 1 << 63 or (kind is MemberKind.DIRECTORY and size):
        raise MemberUnwritable(name, f"size {size}")
    if not 0 <= mode <= 0o7777:
        raise MemberUnwritable(name, f"mode {mode:o}")


def _split_ustar(name: bytes) -> tuple[bytes, bytes] | None:
    """Prefix and name field for a path above 100 bytes, at the last slash that leaves a prefix of at most 155."""
    if len(name) <= _NAME_SIZE or not name.isascii():
        return None
    at = name.rfind(b"/", 0, _PREFIX_SIZE + 1)
    rest = len(name) - at - 1
    if at <= 0 or not 0 < rest <= _NAME_SIZE:
        return None
    return name[:at], name[at + 1 :]


def _ascii(name: bytes) -> bytes:
    """The name without its bytes above 127: what the name field of a PAX member holds."""
    return bytes(byte for byte in name if byte < 0x80)


def _encode_pax(name: bytes, records: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(_encode_record(key, value) for key, value in records)
    if len(body) > _PAX_SIZE_MAX:
        raise MemberUnwritable(name, "the name is above 1 MiB")
    directory, slash, base = name.rpartition(b"/")
    pax_name = _ascii(directory + slash + b"PaxHeaders.0/" + base)[:_NAME_SIZE].rstrip(b"/")
    return _encode_block(pax_name, b"x", size=len(body), mode=0) + body + padding(len(body))


def _encode_record(key: bytes, value: bytes) -> bytes:
    """A PAX record: its length in decimal, itself included, a space, key, ``=``, value, newline."""
    rest = b" %b=%b\n" % (key, value)
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return b"%d%b" % (length, rest)


def _encode_block(name: bytes, typeflag: bytes, *, size: int, mode: int, prefix: bytes = b"") -> bytes:
    """One header block; a PAX header block (``x``) has uid 0 and no device fields."""
    block = bytearray(BLOCK_SIZE)
    field = name[:_NAME_SIZE]
    if len(name) > _NAME_SIZE and field.endswith(b"/"):
        # Go ends the cut name before its slashes, or old readers would take a file for a directory.
        at = len(field.rstrip(b"/"))
        field = field[:at] + b"\0" + field[at + 1 :]
    block[0 : len(field)] = field
    block[100:108] = b"%07o\0" % mode
    block[108:116] = b"%07o\0" % (0 if typeflag == b"x" else _UID)
    block[116:124] = b"%07o\0" % _GID
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"%011o\0" % 0
    block[148:156] = b" " * 8
    block[156:157] = typeflag
    block[257:265] = b"ustar\x0000"
    if typeflag != b"x":
        block[329:345] = b"0000000\x000000000\0"
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
