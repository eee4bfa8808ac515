"""The Kitfile as a config blob: JSON with each layer's ``digest`` and ``diffId``.

Read as Go reads it into kit's structs: every number becomes a float, ``null`` is nothing, a key that is not known is
passed over (a newer kit may have written it). Written as Go writes them: the bytes are kit's. Pure.
"""

from __future__ import annotations

import math

import msgspec

from kitfs.digest import Digest, DigestMalformed
from kitfs.oci import go_json, strict_json
from kitfs.oci.kitfile_schema import Field, Kitfile, KitfileMalformed, Shape, fields_of

ENTRY_COUNT_MAX = 16_384
"""Entries of one list; a manifest has no more layers."""


def parse_kitfile_json(raw: bytes) -> Kitfile:
    """Read a config blob.

    Raises:
        KitfileMalformed: with all problems, each with its key.
    """
    try:
        value = strict_json.decode(raw)
    except strict_json.JsonMalformed as error:
        raise KitfileMalformed([error.reason]) from None
    problems: list[str] = []
    kitfile = _struct(value, Kitfile, "", problems)
    if problems or not isinstance(kitfile, Kitfile):
        raise KitfileMalformed(problems or ["not a JSON object"])
    return kitfile


def encode_kitfile_json(kitfile: Kitfile) -> bytes:
    """Write a config blob as kit does: compact, empty keys left out, maps in ``parameters`` sorted.

    Raises:
        go_json.JsonUnsupported: when ``parameters`` holds NaN or an infinity.
    """
    return go_json.encode(_encode_struct(kitfile))


def encode_node_json(node: object) -> bytes:
    """Write one node of a Kitfile (``kitfile_select``) in the form that it has in a config blob.

    Raises:
        go_json.JsonUnsupported: when ``parameters`` holds NaN or an infinity.
    """
    if isinstance(node, tuple):
        return go_json.encode([_encode_struct(item) if isinstance(item, msgspec.Struct) else item for item in node])
    return go_json.encode(_encode_struct(node) if isinstance(node, msgspec.Struct) else go_json.sort_keys(node))


def _encode_struct(value: msgspec.Struct) -> dict[str, object]:
    encoded: dict[str, object] = {}
    for field in fields_of(type(value)):
        item = getattr(value, field.attribute)
        if field.shape is Shape.STRUCT or field.shape is Shape.OPTIONAL_STRUCT:
            if item is not None:
                encoded[field.key] = _encode_struct(item)
        elif field.shape is Shape.ANY:
            if item is not None:
                encoded[field.key] = go_json.sort_keys(item)
        elif item or field.always:
            encoded[field.key] = _encode_plain(field, item)
    return encoded


def _encode_plain(field: Field, item: object) -> object:
    if field.shape is Shape.DIGEST:
        return str(item)
    if field.shape is Shape.STRUCTS and isinstance(item, tuple):
        return [_encode_struct(entry) for entry in item]
    return item


def _struct(value: object, struct: type[msgspec.Struct], place: str, problems: list[str]) -> msgspec.Struct | None:
    if not isinstance(value, dict):
        problems.append(f"{place or 'the config'} is not an object")
        return None
    values = {}
    for field in fields_of(struct):
        item = value.get(field.key)
        if item is not None:
            found = _value(item, field, f"{place}.{field.key}".lstrip("."), problems)
            if found is not None:
                values[field.attribute] = found
    return struct(**values)


def _value(item: object, field: Field, place: str, problems: list[str]) -> object:
    if field.struct is not None and field.shape is Shape.STRUCTS:
        entries = _list(item, place, problems)
        found = [_struct(entry, field.struct, f"{place}[{i}]", problems) for i, entry in enumerate(entries)]
        return tuple(found)
    if field.struct is not None:
        return _struct(item, field.struct, place, problems)
    if field.shape is Shape.TEXTS:
        texts = _list(item, place, problems)
        return tuple(_text(text, f"{place}[{i}]", problems) for i, text in enumerate(texts))
    if field.shape is Shape.ANY:
        return _numbers_as_floats(item, place, problems)
    text = _text(item, place, problems)
    return _digest(text, place, problems) if field.shape is Shape.DIGEST else text


def _list(item: object, place: str, problems: list[str]) -> list[object]:
    if not isinstance(item, list):
        problems.append(f"{place} is not a list")
        return []
    if len(item) > ENTRY_COUNT_MAX:
        problems.append(f"{place} has {len(item)} entries, at most {ENTRY_COUNT_MAX}")
        return []
    return item


def _text(item: object, place: str, problems: list[str]) -> str:
    if isinstance(item, str):
        return item
    problems.append(f"{place} is not a string")
    return ""


def _digest(text: str, place: str, problems: list[str]) -> Digest | None:
    if not text:
        return None
    try:
        return Digest.parse(text)
    except DigestMalformed as error:
        problems.append(f"{place} is {error}")
        return None


def _numbers_as_floats(item: object, place: str, problems: list[str]) -> object:
    if isinstance(item, dict):
        return {key: _numbers_as_floats(value, place, problems) for key, value in item.items()}
    if isinstance(item, list):
        return [_numbers_as_floats(value, place, problems) for value in item]
    if isinstance(item, bool) or not isinstance(item, int):
        return item
    try:
        number = float(item)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        problems.append(f"{place} holds a number out of range")
    return number
