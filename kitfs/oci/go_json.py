r"""JSON exactly as Go's ``encoding/json`` writes it, which is how kit's manifests and configs get their digests.

Compact; ``<``, ``>``, ``&``, U+2028 and U+2029 escaped; control characters as ``\u00xx`` except ``\b \f \n \r \t``
(Go 1.22 and newer); floats shortest, with an exponent below 1e-6 and from 1e21 on. The order of a ``dict`` is
kept: who needs Go's sorted maps sorts (``sort_keys``). Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from kitfs.errors import MalformedError

_ESCAPED = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class JsonUnsupported(MalformedError):
    """A value that JSON can not hold: NaN, an infinity, a key that is not a string."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} can not be written as JSON")
        self.what = what


def encode(value: object) -> bytes:
    """Write one value as Go does.

    Raises:
        JsonUnsupported: for NaN, infinities, keys that are not strings, and types that JSON does not have.
    """
    pieces: list[str] = []
    _write(value, pieces.append)
    return "".join(pieces).encode()


def sort_keys(value: object) -> object:
    """A copy with the keys of every ``dict`` sorted, as Go writes maps (byte order, which is code point order)."""
    if isinstance(value, dict):
        return {key: sort_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [sort_keys(item) for item in value]
    return value


def format_float(value: float) -> str:
    """A float as ``encoding/json`` writes it: shortest digits, ``1e-7``, ``1e+21``, no ``.0``.

    Raises:
        JsonUnsupported: for NaN and infinities.
    """
    if not math.isfinite(value):
        raise JsonUnsupported(str(value))
    sign, digits, exponent = decompose(value)
    if value != 0 and (abs(value) < 1e-6 or abs(value) >= 1e21):
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{sign}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent)}"
    return sign + place_point(digits, exponent)


def decompose(value: float) -> tuple[str, str, int]:
    """Sign, shortest digits without trailing zeros, and decimal exponent: 0.0012 is ``("", "12", -3)``."""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    leading = len(whole + fraction) - len(digits)
    position = len(whole) - leading - 1 + int(exponent or 0)
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    digits = digits.rstrip("0")
    return (sign, digits, position) if digits else (sign, "0", 0)


def place_point(digits: str, exponent: int) -> str:
    """Digits with the point where the decimal exponent says, without an exponent: ``("12", -3)`` is ``0.0012``."""
    if exponent < 0:
        return "0." + "0" * (-exponent - 1) + digits
    if len(digits) <= exponent + 1:
        return digits + "0" * (exponent + 1 - len(digits))
    return f"{digits[: exponent + 1]}.{digits[exponent + 1 :]}"


def _write(value: object, put: Callable[[str], None]) -> None:
    if isinstance(value, str):
        put(_quote(value))
    elif value is None:
        put("null")
    elif isinstance(value, bool):
        put("true" if value else "false")
    elif isinstance(value, int):
        put(int.__repr__(value))
    elif isinstance(value, float):
        put(format_float(value))
    elif isinstance(value, dict):
        _write_object(value, put)
    elif isinstance(value, list | tuple):
        _write_array(value, put)
    else:
        raise JsonUnsupported(f"a value of type {type(value).__name__}")


def _write_object(value: dict[object, object], put: Callable[[str], None]) -> None:
    separator = "{"
    for key, item in value.items():
        if not isinstance(key, str):
            raise JsonUnsupported(f"the key {key!r}")
        put(separator)
        put(_quote(key))
        put(":")
        _write(item, put)
        separator = ","
    put("}" if separator == "," else "{}")


def _write_array(value: list[object] | tuple[object, ...], put: Callable[[str], None]) -> None:
    separator = "["
    for item in value:
        put(separator)
        _write(item, put)
        separator = ","
    put("]" if separator == "," else "[]")


def _quote(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return _SHORT.get(character) or f"\\u{ord(character):04x}"
