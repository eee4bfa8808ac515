"""Block YAML exactly as go-yaml v3 writes it with an indent of 2, which is what kit regenerates a Kitfile with.

The rules that decide bytes:

- Lines are never folded. Sequences inside mappings are indented; a mapping or sequence inside a sequence starts on
  the dash's line. Empty ones are ``{}`` and ``[]``.
- A string with a line feed is a literal block (``|``, with ``2`` when it starts with a space or a break, ``-`` or
  ``+`` by its end), unless a space stands at its end or before a break, or a character can not be printed: then it
  is double-quoted. As a key, or in flow style, it is double-quoted.
- Another string is plain where that reads back as the same string; double-quoted when plain would be another type
  (``"1.0"``, ``"true"``, ``"yes"``); single-quoted when characters forbid plain (``'a: b'``); double-quoted when
  they forbid single quotes too (tabs, control characters, anything above U+FFFF).
- Keys of free-form maps are in natural order: letters after other characters, runs of digits by value.
- A key that is longer than 128 bytes or has a line break is written as ``? key`` and ``: value``.

Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cmp_to_key

from kitfs.oci.go_json import decompose, place_point
from kitfs.oci.yaml_scalar import Timestamp, must_quote

_INDENT = 2
_SIMPLE_KEY_LENGTH_MAX = 128
_BREAKS = "\n\r\x85\u2028\u2029"
_BREAK = re.compile(f"[{_BREAKS}]")
_BREAK_SPACE = re.compile(f"[{_BREAKS}] ")
_SPACE_BREAK = re.compile(f" [{_BREAKS}]")
_EDGE_SPACE = re.compile(r"\A | \Z")
# What is refused is listed and not what is allowed: a class with large ranges takes 12 ms to compile.
_UNSHOWN = "\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff\U00010000-\U0010ffff"
_UNPRINTABLE = re.compile(f"[\0-\x08\x0b-\x1f{_UNSHOWN}]")
_ESCAPED = re.compile(f'[\0-\x1f{_UNSHOWN}"\\\\{_BREAKS}]')
_BLOCK_INDICATOR = re.compile(r"\A(?:---|\.\.\.|[#,\[\]{}&*!|>'\"%@`]|[?-](?:[ \t]|\Z))|:(?:[ \t]|\Z)|[ \t\0]#")
_FLOW_INDICATOR = re.compile(r"[,?\[\]{}:]")
_ESCAPES = {
    0x00: "0", 0x07: "a", 0x08: "b", 0x09: "t", 0x0A: "n", 0x0B: "v", 0x0C: "f", 0x0D: "r", 0x1B: "e",
    0x22: '"', 0x5C: "\\", 0x85: "N", 0xA0: "_", 0x2028: "L", 0x2029: "P",
}  # fmt: skip


class Fields(dict[str, object]):
    """A mapping whose keys keep their order (a struct); any other mapping is sorted."""


class FlowList(list[object]):
    """A sequence written in flow style, ``[a, b]``."""


def encode(value: object) -> bytes:
    """Write one document.

    Args:
        value: ``Fields``, mappings, sequences, ``str``, ``Timestamp``, ``int``, ``float``, ``bool`` and ``None``;
            their depth is the caller's to bound.
    """
    writer = _Writer()
    writer.node(value, -_INDENT)
    writer.indent_to(0)
    return "".join(writer.pieces).encode()


class _Scalar:
    """What the characters of a string allow."""

    __slots__ = ("block", "multiline", "plain", "plain_in_flow", "single")

    def __init__(self, text: str) -> None:
        odd = _UNPRINTABLE.search(text) is not None or _SPACE_BREAK.search(text) is not None
        self.multiline = _BREAK.search(text) is not None
        self.single = not (odd or "\t" in text or _BREAK_SPACE.search(text))
        self.block = not (odd or text.endswith(" "))
        self.plain = self.single and not (self.multiline or _EDGE_SPACE.search(text) or _BLOCK_INDICATOR.search(text))
        self.plain_in_flow = self.plain and _FLOW_INDICATOR.search(text) is None


class _Writer:
    """The text so far and the three facts about its last line that decide where white space goes.

    Attributes:
        column: Characters on the last line.
        after_space: White space or an indicator that ends with it was written last.
        at_indent: Only indentation and dashes stand on the last line.
    """

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.column = 0
        self.after_space = True
        self.at_indent = True

    def node(self, value: object, indent: int, *, in_flow: bool = False, is_key: bool = False) -> None:
        """Write one value inside a collection whose items stand at ``indent``."""
        if isinstance(value, str) and not isinstance(value, Timestamp):
            self._string(value, indent + _INDENT, in_flow=in_flow, is_key=is_key)
        elif isinstance(value, Mapping):
            self._mapping(value, indent + _INDENT)
        elif isinstance(value, FlowList) or (isinstance(value, Sequence) and not isinstance(value, str) and not value):
            self._flow_sequence(value, indent + _INDENT)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            self._sequence(value, indent + _INDENT)
        else:
            self._plain(_format_plain(value))

    def indent_to(self, indent: int) -> None:
        """Go to the column ``indent``, on a line of its own unless only indentation stands there."""
        if not self.at_indent or self.column > indent or (self.column == indent and not self.after_space):
            self._break()
        self.pieces.append(" " * (indent - self.column))
        self.column = max(self.column, indent)
        self.after_space = True

    def _mapping(self, value: Mapping[object, object], indent: int) -> None:
        if not value:
            self._indicator("{}", need_space=True)
            return
        for key in value if isinstance(value, Fields) else sorted(map(str, value), key=cmp_to_key(_compare_keys)):
            self.indent_to(indent)
            if _is_simple_key(str(key)):
                self.node(key, indent, is_key=True)
                self._indicator(":", need_space=False)
            else:
                self._indicator("?", need_space=True, keeps_indent=True)
                self.node(key, indent)
                self.indent_to(indent)
                self._indicator(":", need_space=True, keeps_indent=True)
            self.node(value[key], indent)

    def _sequence(self, value: Sequence[object], indent: int) -> None:
        for item in value:
            self.indent_to(indent)
            self._indicator("-", need_space=True, keeps_indent=True)
            self.node(item, indent)

    def _flow_sequence(self, value: Sequence[object], indent: int) -> None:
        self._indicator("[", need_space=True)
        self.after_space = True
        for number, item in enumerate(value):
            if number:
                self._indicator(",", need_space=False)
            if self.column == 0:
                self.indent_to(indent)
            self.node(item, indent, in_flow=True)
        if self.column == 0:
            self.indent_to(indent - _INDENT)
        self._indicator("]", need_space=False)

    def _string(self, text: str, indent: int, *, in_flow: bool, is_key: bool) -> None:
        allowed = _Scalar(text)
        if "\n" in text and allowed.block and not in_flow and not is_key:
            self._literal(text, indent)
        elif "\n" in text or must_quote(text) or (is_key and allowed.multiline):
            self._double_quoted(text)
        elif allowed.plain_in_flow if in_flow else allowed.plain:
            self._plain(text)
        elif allowed.single:
            self._single_quoted(text, indent)
        else:
            self._double_quoted(text)

    def _plain(self, text: str) -> None:
        self._indicator(text, need_space=True)

    def _double_quoted(self, text: str) -> None:
        if text.startswith("\ufeff"):  # go-yaml looks for the mark at the string's start only, and then everywhere
            quoted = "".join(map(_escape, text))
        else:
            quoted = _ESCAPED.sub(lambda match: _escape(match.group()), text)
        self._indicator(f'"{quoted}"', need_space=True)

    def _single_quoted(self, text: str, indent: int) -> None:
        self._indicator("'", need_space=True)
        self._lines(text.replace("'", "''"), indent, after_break=False)
        self._indicator("'", need_space=False)

    def _literal(self, text: str, indent: int) -> None:
        hint = str(_INDENT) if text[0] == " " or text[0] in _BREAKS else ""
        self._indicator("|", need_space=True)
        self._indicator(hint + _chomp(text), need_space=False)
        self.after_space = True
        self._lines(text, indent, after_break=True)

    def _lines(self, text: str, indent: int, *, after_break: bool) -> None:
        for character in text:
            if character == "\n":
                self._break()
                after_break = True
            elif character in _BREAKS:
                self.pieces.append(character)
                self.column = 0
                self.at_indent = after_break = True
            else:
                if after_break:
                    self.indent_to(indent)
                self.pieces.append(character)
                self.column += 1
                self.at_indent = after_break = False

    def _indicator(self, text: str, *, need_space: bool, keeps_indent: bool = False) -> None:
        if need_space and not self.after_space:
            self.pieces.append(" ")
            self.column += 1
        self.pieces.append(text)
        self.column += len(text)
        self.after_space = False
        self.at_indent = self.at_indent and keeps_indent

    def _break(self) -> None:
        self.pieces.append("\n")
        self.column = 0
        self.at_indent = True


def _is_simple_key(key: str) -> bool:
    return len(key.encode()) <= _SIMPLE_KEY_LENGTH_MAX and _BREAK.search(key) is None


def _escape(character: str) -> str:
    code = ord(character)
    if code in _ESCAPES:
        return "\\" + _ESCAPES[code]
    if code <= 0xFF:
        return f"\\x{code:02X}"
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def _chomp(text: str) -> str:
    if text[-1] not in _BREAKS:
        return "-"
    return "+" if len(text) == 1 or text[-2] in _BREAKS else ""


def _format_plain(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return format_float(value) if isinstance(value, float) else str(value)


def format_float(value: float) -> str:
    """A float as go-yaml writes it: shortest digits, an exponent of two digits below 1e-4 and from 1e6 on."""
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    sign, digits, exponent = decompose(value)
    if -4 <= exponent < 6:
        return sign + place_point(digits, exponent)
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{sign}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02}"


def _compare_keys(first: str, second: str) -> int:
    """Go-yaml's order of keys, below, at or above zero."""
    digits_before = False
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a == b:
            digits_before = a.isdecimal()
            continue
        if a.isalpha() or b.isalpha():
            return _compare_letters(a, b, digits_before=digits_before)
        return _compare_numbers(first, second, number)
    return len(first) - len(second)


def _compare_letters(a: str, b: str, *, digits_before: bool) -> int:
    if a.isalpha() and b.isalpha():
        return -1 if a < b else 1
    return -1 if (a.isalpha() if digits_before else b.isalpha()) else 1


def _compare_numbers(first: str, second: str, start: int) -> int:
    a, b = _digits_from(first, start), _digits_from(second, start)
    values = [_digits_value(a), _digits_value(b)]
    if "0" in (first[start], second[start]) and _follows_number(first, start):
        values = [_digits_value("1" + a), _digits_value("1" + b)]
    if values[0] != values[1]:
        return -1 if values[0] < values[1] else 1
    if len(a) != len(b):
        return -1 if len(a) < len(b) else 1
    return -1 if first[start] < second[start] else 1


def _digits_from(text: str, start: int) -> str:
    stop = start
    while stop < len(text) and text[stop].isdecimal():
        stop += 1
    return text[start:stop]


def _digits_value(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 10 + ord(digit) - ord("0")
    return (value + 2**63) % 2**64 - 2**63  # Go's int64 wraps


def _follows_number(text: str, start: int) -> bool:
    """Whether digits other than zeros stand right before ``start``."""
    before = text[:start]
    return bool(before[len(before.rstrip("0123456789")) :].strip("0"))
