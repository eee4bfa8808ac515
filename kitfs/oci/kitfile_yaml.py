"""Reads the Kitfile as people write it: YAML.

Read as kit reads it (go-yaml v3 into structs with ``KnownFields``): unknown and duplicate keys are errors, text keys
take any scalar as it is written (``version: 1.10`` is ``"1.10"``), merge keys (``<<``) work, ``null`` is nothing,
``parameters`` takes what JSON can hold. Imports the YAML library: import it only where a person's Kitfile is read.
Pure.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from kitfs.oci.kitfile_schema import Field, Kitfile, Shape, fields_of
from kitfs.oci.kitfile_source import KitfileSource
from kitfs.oci.yaml_nodes import Node, NodeBudget, YamlMalformed, scan_yaml
from kitfs.oci.yaml_scalar import Timestamp, resolve_scalar

_KIND_NAMES = {"scalar": "a single value", "sequence": "a list", "mapping": "a mapping"}
_TYPES = {"int": int, "float": float, "bool": bool, "null": type(None), "timestamp": Timestamp}


def read_kitfile_source(raw: bytes) -> KitfileSource:
    """Read a Kitfile as far as it can be read; never raises for what is in it."""
    scan = scan_yaml(raw)
    reader = _Reader()
    kitfile, complete = Kitfile(), scan.complete
    problems = list(scan.problems)
    try:
        if scan.root is not None:
            kitfile = reader.root(scan.root)
        elif scan.complete:
            problems.append(YamlMalformed("it is empty"))
    except YamlMalformed as error:
        problems.append(error)
        complete = False
    found = (*((error.line, error.reason) for error in problems), *reader.problems)
    return KitfileSource(kitfile, reader.lines, frozenset(reader.unknown), found, complete)


class _Reader:
    """Walks nodes along the schema, collecting problems.

    Attributes:
        problems: Line and text.
        lines: Of keys and entries.
        unknown: Keys whose value is not known.
    """

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self.lines: dict[str, int] = {}
        self.unknown: set[str] = set()
        self._budget = NodeBudget()

    def root(self, node: Node) -> Kitfile:
        """Read the whole; a document that says nothing is an empty Kitfile, as to kit."""
        kitfile: Kitfile = Kitfile() if self._is_null(node) else self.struct(node, Kitfile, "", 0)
        return kitfile

    def struct(self, node: Node, struct: type[msgspec.Struct], place: str, depth: int) -> Any:
        """Read a mapping into a struct; unknown keys are problems."""
        self._budget.spend(node, depth)
        self.lines[place] = node.line
        values: dict[str, object] = {}
        if node.broken or node.kind != "mapping":
            if not node.broken:
                self._wrong(node, place or "the Kitfile", "a mapping")
            self.unknown.add(place)
            return struct()
        fields = {field.key: field for field in fields_of(struct) if field.shape is not Shape.DIGEST}
        pairs = self._pairs(node, place, depth)
        for key, value in pairs:
            field = fields.get(key)
            if field is None:
                self._problem(value, f"unknown key {_join(place, key)[:200]!r}")
                self.unknown.update(_join(place, name) for name in fields.keys() - dict(pairs).keys())
            else:
                values[field.attribute] = self._key(value, field, _join(place, key), depth + 1)
        return struct(**{name: value for name, value in values.items() if value is not None})

    def _key(self, node: Node, field: Field, place: str, depth: int) -> object:
        self.lines[place] = node.line
        before = len(self.problems)
        value = None if node.broken else self._value(node, field, place, depth)
        if node.broken or (len(self.problems) > before and (value is None or field.struct is None)):
            self.unknown.add(place)
        return value

    def _value(self, node: Node, field: Field, place: str, depth: int) -> object:
        if field.shape is Shape.ANY:
            return self._any(node, place, depth)
        if self._is_null(node):
            return None
        if field.shape is Shape.TEXT:
            return self._text(node, place)
        if field.struct is not None and field.shape is not Shape.STRUCTS:
            return self.struct(node, field.struct, place, depth)
        if node.kind != "sequence":
            self._wrong(node, place, "a list")
            return None
        filled = [item for item in node.items if not self._is_null(item)]
        items = [(item, f"{place}[{number}]") for number, item in enumerate(filled)]
        if field.struct is None:
            return tuple(self._text(item, name) for item, name in items)
        return tuple(self.struct(item, field.struct, name, depth + 1) for item, name in items)

    def _any(self, node: Node, place: str, depth: int) -> object:
        self._budget.spend(node, depth)
        if node.broken:
            return None
        if node.kind == "sequence":
            return [self._any(item, place, depth + 1) for item in node.items]
        if node.kind == "mapping":
            return {key: self._any(value, place, depth + 1) for key, value in self._pairs(node, place, depth)}
        value = self._scalar(node)
        if isinstance(value, float) and not math.isfinite(value):
            self._problem(node, f"{place}: JSON has no {node.text}")
        return value

    def _text(self, node: Node, place: str) -> str:
        self._budget.spend(node, 0)
        if node.broken:
            return ""
        if node.kind != "scalar":
            self._wrong(node, place, "text")
            return ""
        self._scalar(node)
        return node.text

    def _pairs(self, node: Node, place: str, depth: int) -> list[tuple[str, Node]]:
        """The keys and values of a mapping, merged ones included; explicit keys win, then earlier merges."""
        found: dict[str, Node] = {}
        lines: dict[str, int] = {}
        merges: list[Node] = []
        for key, value in node.pairs:
            if key.kind == "scalar" and key.text == "<<" and not key.quoted and key.tag in ("", "merge"):
                merges.append(value)
            elif key.broken:
                continue
            elif key.kind != "scalar" or not isinstance(self._scalar(key), str):
                self._problem(key, f"{place or 'the Kitfile'}: a key is not text")
            elif key.text in found:
                self._problem(key, f"duplicate key {_join(place, key.text)[:200]!r}, first at line {lines[key.text]}")
            else:
                found[key.text] = value
                lines[key.text] = key.line
        if len(merges) > 1:
            self._problem(merges[1], "duplicate key '<<'")
        for merge in merges:
            self._merge(merge, found, place, depth + 1)
        return list(found.items())

    def _merge(self, node: Node, found: dict[str, Node], place: str, depth: int) -> None:
        for source in node.items if node.kind == "sequence" else [node]:
            self._budget.spend(source, depth)
            if source.broken:
                continue
            if source.kind != "mapping":
                self._wrong(source, f"{place or 'the Kitfile'}: <<", "a mapping")
                continue
            for key, value in self._pairs(source, place, depth):
                self._budget.spend(value, depth)
                found.setdefault(key, value)

    def _scalar(self, node: Node) -> object:
        if node.tag == "str" or (node.quoted and not node.tag):
            return node.text
        value = resolve_scalar(node.text)
        wanted = _TYPES.get(node.tag)
        if not node.tag or type(value) is wanted:
            return value
        if node.tag == "float" and type(value) is int:
            return float(value)
        self._problem(node, f"{node.text[:60]!r} is not {node.tag}")
        return None

    def _is_null(self, node: Node) -> bool:
        if node.broken or node.kind != "scalar" or node.tag not in ("", "null") or (node.quoted and not node.tag):
            return False
        return resolve_scalar(node.text) is None

    def _wrong(self, node: Node, place: str, wanted: str) -> None:
        if node.kind == "scalar" and not node.quoted and not node.text:
            self._problem(node, f"{place}: expected {wanted}, found nothing")
        else:
            self._problem(node, f"{place}: expected {wanted}, found {_KIND_NAMES[node.kind]}")

    def _problem(self, node: Node, text: str) -> None:
        self.problems.append((node.line, text))


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
