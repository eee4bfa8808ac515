"""The header of a gzip member (RFC 1952, section 2.3): where it ends, and what is refused in one. Pure."""

from __future__ import annotations

from isal import isal_zlib

TRAILER_SIZE = 8
"""CRC32 and ISIZE, four bytes each, little-endian."""

_MAGIC = b"\x1f\x8b"
_FIXED_SIZE = 10
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 0x02, 0x04, 0x08, 0x10
_RESERVED = 0xE0


class HeaderRefused(ValueError):
    """A header that breaks the format; its text says why."""


def has_magic(head: bytes | bytearray) -> bool:
    """Whether bytes begin as a header does, as far as they go."""
    return _MAGIC.startswith(bytes(head[:2]))


def find_header_end(head: bytes | bytearray) -> int | None:
    """Bytes of the header that `head` begins with, or None when more are needed.

    Raises:
        HeaderRefused: for another method than deflate, reserved flags, or a wrong checksum.
    """
    if len(head) < _FIXED_SIZE:
        return None
    flags = head[3]
    if head[2] != 8 or flags & _RESERVED:
        raise HeaderRefused(f"gzip header with method {head[2]} and flags 0x{flags:02x}")
    end = _FIXED_SIZE
    if flags & _FEXTRA:
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            end = head.find(0, end) + 1 if end < len(head) else 0
            if end == 0:
                return None
    if flags & _FHCRC:
        end += 2
        if end > len(head):
            return None
        if int.from_bytes(head[end - 2 : end], "little") != isal_zlib.crc32(head[: end - 2]) & 0xFFFF:
            raise HeaderRefused("gzip header with a wrong checksum")
    return end if end <= len(head) else None
