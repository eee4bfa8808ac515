"""One header block of a tar archive, and the records of a PAX extended header, as values.

`tar_toc` is the only user. The rule for every doubtful field: GNU tar, bsdtar, Go's archive/tar and Python's
tarfile must read it alike, else it is refused; two readers that see two trees in one archive are an attack
(the digest would vouch for both). Layouts: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block";
GNU tar manual, "Basic Tar Format". Pure.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

from kitfs.archive.tar_member import BLOCK_SIZE, TarMalformed

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12s")
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_DECIMAL_TIME = re.compile(rb"(-?\d{1,19})(?:\.\d{0,32})?", re.ASCII)
_DECIMAL = re.compile(rb"\d{1,40}", re.ASCII)
_SIGNED_DECIMAL = re.compile(rb"-?\d{1,19}", re.ASCII)
_INT64_MAX = (1 << 63) - 1
_PARSED_MAX = 1 << 14
_parsed: dict[bytes, int] = {}
_SIGNED = struct.Struct(f"{BLOCK_SIZE}b")
_STAR_PREFIX_SIZE = 131
_CHARSETS = (b"BINARY", b"ISO-IR 10646 2000 UTF-8")
# Keys that make another file of the member: a link, or a sparse file whose data are not its bytes.
_REFUSED_KEYS = (b"linkpath", b"SCHILY.realsize", b"SUN.holesdata")
_REFUSED_PREFIXES = (b"GNU.sparse.", b"GNU.dumpdir", b"GNU.volume.")


class Header(NamedTuple):
    """The fields of a header block that matter; owner, group and device are checked and dropped."""

    name: bytes
    typeflag: bytes
    mode: int
    size: int
    mtime_s: int


class PaxRecords(NamedTuple):
    """What an extended header changes in the member that follows it."""

    path: bytes | None
    size: int | None
    mtime_s: int | None


def parse_header(block: bytes, offset: int) -> Header:
    """Read a block of 512 bytes that is not all zero.

    Raises:
        TarMalformed: with a wrong checksum, a number that readers disagree on, or a prefix that not all read.
    """
    fields = _FIELDS.unpack(block)
    name, mode, uid, gid, size, mtime, recorded, typeflag, _link, magic = fields[:10]
    device_major, device_minor, prefix, tail = fields[13:17]
    _check_sum(block, recorded, offset)
    name = name.partition(b"\0")[0]
    for field, what in ((uid, "user id"), (gid, "group id"), (device_major, "device"), (device_minor, "device")):
        if field not in _parsed:
            _parse_number(field, what, offset, name)
    if magic != b"ustar\0":
        # GNU's --incremental keeps times there, tarfile takes them for a prefix; a V7 header ends before.
        if prefix.count(0) != len(prefix):
            raise TarMalformed(offset, "prefix field in a header that is not POSIX ustar", name)
    elif prefix[0]:
        name = _join_prefix(prefix, tail, name, offset)
    header = Header(
        name,
        typeflag,
        _parse_number(mode, "mode", offset, name) & 0o7777,
        _parse_number(size, "size", offset, name),
        _parse_number(mtime, "modification time", offset, name),
    )
    if header.size < 0:
        raise TarMalformed(offset, f"size {header.size}", name)
    return header


def _check_sum(block: bytes, recorded: bytes, offset: int) -> None:
    # Adler-32 of a block that is half zeros has its sum of bytes plus one in its lower half, unreduced: 256 * 255 is
    # below 65521. It takes a tenth of the time of sum().
    known = _parsed.get(recorded)
    rest = 8 * ord(" ") - sum(recorded)
    if known is not None and block.count(0) >= BLOCK_SIZE // 2 and (zlib.adler32(block) & 0xFFFF) - 1 + rest == known:
        return
    match = _OCTAL.fullmatch(recorded)
    if match is None:
        raise TarMalformed(offset, "no tar header (its checksum is not a number)")
    expected = _remember(recorded, int(match[1], 8))
    if sum(block) + rest == expected:
        return
    # Some old writers summed signed bytes; all readers accept that sum too.
    if sum(_SIGNED.unpack(block)) + rest != expected:
        raise TarMalformed(offset, "no tar header (its checksum is wrong)")


def _join_prefix(prefix: bytes, tail: bytes, name: bytes, offset: int) -> bytes:
    head = prefix.split(b"\0", 1)[0]
    if tail.endswith(b"tar\0") and len(head) >= _STAR_PREFIX_SIZE:
        raise TarMalformed(offset, "star header with times in its prefix", name)
    return head + b"/" + name


def _parse_number(field: bytes, what: str, offset: int, name: bytes) -> int:
    """An octal number (spaces before, spaces and NULs after), a base-256 number, or 0 for a field of NULs."""
    value = _parsed.get(field)
    if value is not None:
        return value
    match = _OCTAL.fullmatch(field)
    if match is not None:
        return _remember(field, int(match[1], 8))
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        if field[0] == 0xFF:
            value -= 1 << 8 * (len(field) - 1)
        if abs(value) <= _INT64_MAX:
            return value
    elif field.count(0) == len(field):
        return _remember(field, 0)
    raise TarMalformed(offset, f"{what} is not a number: {field!r}", name)


def _remember(field: bytes, value: int) -> int:
    """Keep what an octal field says; the fields of a million small files take some thousand values."""
    if len(_parsed) >= _PARSED_MAX:
        _parsed.clear()
    _parsed[field] = value
    return value


def parse_pax(body: bytes, offset: int) -> PaxRecords:
    """Read the records of an extended header.

    Raises:
        TarMalformed: for a record that is cut, empty, repeated or not a record; for a value that is not what
            its key wants; for links and sparse files.
    """
    path: bytes | None = None
    size: int | None = None
    mtime_s: int | None = None
    seen: set[bytes] = set()
    for key, value in _split_records(body, offset):
        if key in seen:
            raise TarMalformed(offset, f"extended header repeats {key[:100]!r}")
        seen.add(key)
        _check_value(key, value, offset)
        if key == b"path":
            path = value
        elif key == b"size":
            size = int(value)
        elif key == b"mtime":
            mtime_s = int(value.split(b".", 1)[0])
    return PaxRecords(path, size, mtime_s)


def _split_records(body: bytes, offset: int) -> list[tuple[bytes, bytes]]:
    records = []
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 8)
        digits = body[at:space] if space > 0 else b""
        # 1 MiB, the limit of the whole body, has seven digits.
        if not digits.isdigit() or digits.startswith(b"0"):
            raise TarMalformed(offset, "extended header: record without a length")
        stop = at + int(digits)
        key, equals, value = body[space + 1 : stop - 1].partition(b"=")
        if stop > len(body) or stop - 1 <= space or body[stop - 1] != 0x0A or not equals or not key:
            raise TarMalformed(offset, "extended header: record with a wrong length, no key or no newline")
        records.append((key, value))
        at = stop
    return records


def _check_value(key: bytes, value: bytes, offset: int) -> None:
    if key in _REFUSED_KEYS or key.startswith(_REFUSED_PREFIXES):
        raise TarMalformed(offset, f"extended header holds {key[:100]!r}: a link or a sparse file")
    if key in (b"mtime", b"atime", b"ctime"):
        is_good = _DECIMAL_TIME.fullmatch(value) is not None
    elif key in (b"uid", b"gid"):
        is_good = _SIGNED_DECIMAL.fullmatch(value) is not None
    elif key == b"size":
        is_good = _DECIMAL.fullmatch(value) is not None and int(value) <= _INT64_MAX
    elif key == b"hdrcharset":
        is_good = value in _CHARSETS
    elif key in (b"path", b"uname", b"gname"):
        is_good = b"\0" not in value and (key != b"path" or value != b"")
    else:
        is_good = b"\0" not in key
    if not is_good:
        raise TarMalformed(offset, f"extended header: {key[:100]!r} has a bad value {value[:100]!r}")
