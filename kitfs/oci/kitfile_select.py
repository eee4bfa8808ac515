"""One node of a Kitfile by a selector, as ``kit info --filter`` takes it: ``.model.name``, ``datasets[0].path``.

::

    selector := ["."] step *("." step)
    step     := name *("[" number "]")
    name     := letters, digits, "_" and "-"

Names are the keys of the Kitfile, whatever their case (kit wants Go's spelling, ``dataSets``). kit has no ``[n]`` and
does not look into ``parameters``. What the Kitfile leaves out is what kit makes of it: an empty string, an empty list,
``null``. Pure.
"""

from __future__ import annotations

import re

import msgspec

from kitfs.errors import NotFoundError, UsageError
from kitfs.oci.kitfile_schema import Field, Kitfile, Shape, fields_of

_STEP = re.compile(r"(?P<name>[a-zA-Z0-9_-]+)(?P<places>(?:\[\d{1,9}\])*)")


class SelectorMalformed(UsageError):
    """Text that is not a selector."""

    hint = "a selector is dotted keys of the Kitfile with [n] for items of lists: .model.parts[0].path"

    def __init__(self, text: str) -> None:
        super().__init__(f"invalid filter: {text[:200]}")
        self.text = text


class SelectedNotFound(NotFoundError):
    """A selector that leads nowhere in this Kitfile."""

    def __init__(self, text: str, place: str) -> None:
        super().__init__(f"error filtering output: cannot find required node: {text[:200]} ends at {place[:200]}")
        self.text = text
        self.place = place


def select(kitfile: Kitfile, text: str) -> object:
    """The node that a selector names: a struct, a tuple of structs or texts, a text, or a value of ``parameters``.

    Raises:
        SelectorMalformed: when the text is no selector.
        SelectedNotFound: when a key or item is not there.
    """
    node: object = kitfile
    place = ""
    for step in _parse(text):
        place += f"[{step}]" if isinstance(step, int) else f".{step}"
        found, node = _descend(node, step)
        if not found:
            raise SelectedNotFound(text, place)
    return node


def _parse(text: str) -> list[str | int]:
    steps: list[str | int] = []
    for part in text.removeprefix(".").split("."):
        match = _STEP.fullmatch(part)
        if match is None:
            raise SelectorMalformed(text)
        steps.append(match["name"])
        steps += [int(number) for number in re.findall(r"\d+", match["places"])]
    return steps


def _descend(node: object, step: str | int) -> tuple[bool, object]:
    if isinstance(step, int):
        return (True, node[step]) if isinstance(node, tuple | list) and step < len(node) else (False, None)
    if isinstance(node, dict):
        return (True, node[step]) if step in node else (False, None)
    if isinstance(node, msgspec.Struct):
        for field in fields_of(type(node)):
            if field.key.lower() == step.lower():
                return True, _value(node, field)
    return False, None


def _value(node: msgspec.Struct, field: Field) -> object:
    value = getattr(node, field.attribute)
    return str(value or "") if field.shape is Shape.DIGEST else value
