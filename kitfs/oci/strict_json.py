"""A JSON reader for input that nobody vouches for.

The standard reader accepts NaN, keeps the last of two equal keys, builds strings with lone surrogates, and recurses
as deep as the input says. This one refuses all four, bounds size and depth before it parses, and names the place.
Used for manifests, indexes and configs; the values are plain ``dict``, ``list``, ``str``, ``int``, ``float``,
``bool`` and ``None``. Pure.
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

from kitfs.errors import MalformedError

LIMIT_BYTES = 4 * 1024 * 1024
"""Largest manifest that registries must accept (OCI distribution specification 1.1)."""

DEPTH_MAX = 64
_INTEGER_DIGITS_MAX = 400
# Possessive, and the closing quote may be missing: one pass over any input, `"\\"\\"\\"…` without an end included.
_BRACKET = re.compile(rb"[\[\]{}]")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}|\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class JsonMalformed(MalformedError):
    """Bytes that are not the JSON we accept.

    Attributes:
        reason: What is wrong, place included where it is known.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"malformed JSON: {reason}")
        self.reason = reason


def decode(raw: bytes, *, limit_bytes: int = LIMIT_BYTES, depth: int = DEPTH_MAX) -> object:
    """Read one JSON value.

    Args:
        raw: UTF-8 without a byte order mark.
        limit_bytes: Refuse more bytes than this.
        depth: Refuse arrays and objects nested deeper than this.

    Raises:
        JsonMalformed: with the reason and the line and column or the key where it applies.
    """
    if len(raw) > limit_bytes:
        raise JsonMalformed(f"{len(raw)} bytes, at most {limit_bytes} are read")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonMalformed(f"not UTF-8 at byte {error.start}") from None
    _check_depth(raw, depth)
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_pairs,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        raise JsonMalformed(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    if _SURROGATE_ESCAPE.search(raw):
        _check_strings(value)
    return value


def _check_depth(raw: bytes, limit: int) -> None:
    # Brackets outside strings, before anything recurses; 4 MiB of strings take 20 ms.
    nesting = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", raw)):
        nesting += 1 if bracket.group() in b"[{" else -1
        if nesting > limit:
            raise JsonMalformed(f"nested deeper than {limit}")


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonMalformed(f"duplicate key {key[:100]!r}")
            seen.add(key)
    return value


def _constant(text: str) -> NoReturn:
    raise JsonMalformed(f"{text} is not a JSON number")


def _integer(text: str) -> int | float:
    if len(text) > _INTEGER_DIGITS_MAX:
        raise JsonMalformed(f"a number of {len(text)} digits")
    return -0.0 if text == "-0" else int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonMalformed(f"number {text[:40]} is out of range")
    return value


def _check_strings(value: object) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                raise JsonMalformed(f"lone surrogate in the string {item[:60]!a}") from None
