"""What a plain YAML scalar means to go-yaml v3, the library that kit reads and writes Kitfiles with.

YAML 1.2's core schema with three additions: integers as Go spells them (``0x1F``, ``0b1``, ``0o17``, ``017``,
``1_000``), dates, and quoting of what YAML 1.1 took for booleans or base 60 numbers. Numbers that do not fit stay
strings. Pure.
"""

from __future__ import annotations

import math
import re

_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_SPECIAL = {
    ".nan": math.nan, ".NaN": math.nan, ".NAN": math.nan,
    ".inf": math.inf, ".Inf": math.inf, ".INF": math.inf,
    "+.inf": math.inf, "+.Inf": math.inf, "+.INF": math.inf,
    "-.inf": -math.inf, "-.Inf": -math.inf, "-.INF": -math.inf,
}  # fmt: skip
_OLD_BOOLEANS = frozenset(
    ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off", "OFF")
)
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_DOT_FLOAT = re.compile(r"\.[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+(?:_[0-9]+)*)?")
_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)"
    r"(?:(?P<t>[Tt ])(\d\d?):(\d\d?):(\d\d?)(?:[.,](\d+))?(?P<zone>Z|[-+]\d\d:\d\d)?)?",
    re.ASCII,
)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DIGITS = {2: re.compile("[01]+"), 8: re.compile("[0-7]+"), 10: re.compile("[0-9]+"), 16: re.compile("[0-9a-fA-F]+")}
_PREFIXES = {"0x": 16, "0X": 16, "0o": 8, "0O": 8, "0b": 2, "0B": 2}


class Timestamp(str):
    """A date that stood unquoted in YAML, as Go prints it (RFC 3339): a string in JSON, unquoted again in YAML."""

    __slots__ = ()


def resolve_scalar(text: str) -> object:
    """The value of a plain scalar: ``None``, ``bool``, ``int``, ``float``, ``Timestamp`` or the text itself."""
    if text in _NULLS:
        return None
    first = text[0]
    if first in "tTfF":
        return _BOOLEANS.get(text, text)
    if text in _SPECIAL:
        return _SPECIAL[text]
    if first == ".":
        return _finite(text) if _DOT_FLOAT.fullmatch(text) else text
    if first in "+-0123456789":
        return _resolve_number(text)
    return text


def must_quote(text: str) -> bool:
    """Whether a string has to be quoted in YAML so that it stays a string for go-yaml and for YAML 1.1 readers."""
    if type(resolve_scalar(text)) is not str:
        return True
    return text in _OLD_BOOLEANS or _BASE_60.fullmatch(text) is not None


def _resolve_number(text: str) -> object:
    date = _parse_timestamp(text)
    if date is not None:
        return date
    plain = text.replace("_", "")
    number = _parse_integer(plain)
    if number is not None:
        return number
    if _FLOAT.fullmatch(plain):
        value = _finite(plain)
        return value if isinstance(value, float) else text
    number = _parse_odd_integer(plain)
    return text if number is None else number


def _finite(text: str) -> float | str:
    value = float(text.replace("_", ""))
    return text if math.isinf(value) else value


def _parse_integer(text: str) -> int | None:
    """As strconv.ParseInt and ParseUint do with base 0: 64 bits, unsigned only without a sign."""
    sign, digits = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    base = _PREFIXES.get(digits[:2])
    if base is not None:
        digits = digits[2:]
    elif len(digits) > 1 and digits[0] == "0":
        base, digits = 8, digits[1:]
    else:
        base = 10
    if len(digits) > 70 or _DIGITS[base].fullmatch(digits) is None:
        return None
    value = int(digits, base) * (-1 if sign == "-" else 1)
    return value if -(2**63) <= value < (2**63 if sign else 2**64) else None


def _parse_odd_integer(text: str) -> int | None:
    """A sign after the prefix (``0b-1``, ``0o+7``), which go-yaml takes too."""
    base = {"0b": 2, "0o": 8}.get(text[:2])
    if base is None or text[2:3] not in ("+", "-") or len(text) > 70:
        return None
    if _DIGITS[base].fullmatch(text[3:]) is None:
        return None
    value = int(text[2:], base)
    return value if -(2**63) <= value < 2**63 else None


def _parse_timestamp(text: str) -> Timestamp | None:
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    year, month, day, separator, hour, minute, second, fraction, zone = match.groups()
    if not _is_date(int(year), int(month), int(day)):
        return None
    date = f"{year}-{int(month):02}-{int(day):02}"
    if separator is None:
        return Timestamp(f"{date}T00:00:00Z")
    if (separator == " ") != (zone is None) or int(hour) > 23 or int(minute) > 59 or int(second) > 59:
        return None
    nanoseconds = (fraction or "")[:9].rstrip("0")
    offset = _parse_zone(zone)
    if offset is None:
        return None
    return Timestamp(
        f"{date}T{int(hour):02}:{int(minute):02}:{int(second):02}{'.' * bool(nanoseconds)}{nanoseconds}{offset}"
    )


def _is_date(year: int, month: int, day: int) -> bool:
    if not 1 <= month <= 12 or not 1 <= day <= _DAYS[month - 1]:
        return False
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return leap or (month, day) != (2, 29)


def _parse_zone(zone: str | None) -> str | None:
    if zone in (None, "Z", "+00:00", "-00:00"):
        return "Z"
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    return zone if hours <= 24 and minutes < 60 else None
