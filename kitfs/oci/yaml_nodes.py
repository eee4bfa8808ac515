"""YAML text into a bounded tree of nodes with line numbers, the only place that touches the YAML library.

The library's scanner makes events; nothing of it constructs values, so tags make nothing happen. Size, nesting, the
number of nodes and of aliases are bounded while the events arrive, before anything walks the tree. An alias is the
node it names, not a copy: who walks the tree counts (``NodeBudget``). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

LIMIT_BYTES = 512 * 1024
"""Of text; the scanner takes 2 s for so much of a usual Kitfile (7 500 entries)."""

DEPTH_MAX = 64
NODE_COUNT_MAX = 50_000
_CORE_TAGS = frozenset({"str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge"})
# The scanner takes 30 s for a tag of 1 MiB.
_LONG_TAG = re.compile(r"(?<!\S)!\S{200}")
_TAG_PREFIX = "tag:yaml.org,2002:"


class YamlMalformed(Exception):
    """Text that is not the YAML we accept; turned into the caller's error.

    Attributes:
        line: Counted from 1; 0 when the place is not known.
    """

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line


@dataclass(slots=True)
class Node:
    """A scalar, a sequence or a mapping.

    Attributes:
        kind: ``scalar``, ``sequence`` or ``mapping``.
        tag: One of the core schema's without ``!!``, or empty when the text has none.
        text: Of a scalar.
        quoted: Whether a scalar was written in quotes or as a block, which makes it a string.
        items: Of a sequence.
        pairs: Of a mapping, in the order of the text.
        broken: Whether the scan found a problem with it; what it means is not known.
    """

    kind: str
    line: int
    tag: str = ""
    text: str = ""
    quoted: bool = False
    items: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, Node]] = field(default_factory=list)
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Scan:
    """What was read of a text.

    Attributes:
        root: Of the one document; None when there is none. Without the end of the text where that is not YAML.
        problems: In the order of the text.
        complete: Whether all of the text is in ``root``.
    """

    root: Node | None
    problems: tuple[YamlMalformed, ...]
    complete: bool


class NodeBudget:
    """Counts nodes while a tree is walked, aliased ones each time: the guard against alias bombs."""

    __slots__ = ("_left",)

    def __init__(self, count: int = NODE_COUNT_MAX) -> None:
        self._left = count

    def spend(self, node: Node, depth: int) -> None:
        """Count one node.

        Raises:
            YamlMalformed: when the budget is used up or the walk is too deep.
        """
        self._left -= 1
        if self._left < 0:
            raise YamlMalformed(f"more than {NODE_COUNT_MAX} values, aliases included", node.line)
        if depth > DEPTH_MAX:
            raise YamlMalformed(f"nested deeper than {DEPTH_MAX}", node.line)


def scan_yaml(raw: bytes) -> Scan:
    """Read one document as far as it goes; never raises for what is in it."""
    builder = _TreeBuilder()
    try:
        _scan(raw, builder)
    except YamlMalformed as error:
        return Scan(builder.root, (*builder.problems, error), complete=False)
    return Scan(builder.root, tuple(builder.problems), complete=True)


def _scan(raw: bytes, builder: _TreeBuilder) -> None:
    if len(raw) > LIMIT_BYTES:
        raise YamlMalformed(f"{len(raw)} bytes, at most {LIMIT_BYTES} are read")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlMalformed("not UTF-8", raw.count(b"\n", 0, error.start) + 1) from None
    if long_tag := _LONG_TAG.search(text):
        raise YamlMalformed("a tag of more than 200 characters", text.count("\n", 0, long_tag.start()) + 1)
    _check_directives(text)
    reader = YAML(typ="safe", pure=True)
    try:
        builder.build(reader.parse(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlMalformed(error.problem or error.context or "malformed", mark.line + 1 if mark else 0) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        raise YamlMalformed("a character that YAML does not allow", line) from None
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        # The scanner leaks these on broken input: `%YAML x`, `"\UFFFFFFFF"`, an unfinished escape at the end.
        raise YamlMalformed(f"not YAML ({type(error).__name__})") from None
    except NotImplementedError:
        raise YamlMalformed("not YAML") from None


def _check_directives(text: str) -> None:
    """Refuse directives that kit does not know, as kit does; YAML's own standard would pass over them."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("%"):
            if line[1:].split(maxsplit=1)[:1] not in (["YAML"], ["TAG"]):
                raise YamlMalformed(f"directive {line[:60]!r} is not supported", number)
        elif line.strip() and not line.lstrip().startswith("#"):
            return


class _TreeBuilder:
    def __init__(self) -> None:
        self.root: Node | None = None
        self.problems: list[YamlMalformed] = []
        self._anchors: dict[str, Node] = {}
        self._open: list[Node] = []
        self._keys: list[Node | None] = []
        self._documents = 0
        self._count = 0

    def build(self, events: Iterator[Any]) -> None:
        for event in events:
            name = type(event).__name__
            if name == "DocumentStartEvent":
                self._documents += 1
                if self._documents > 1:
                    raise YamlMalformed("more than one document", event.start_mark.line + 1)
            elif name == "AliasEvent":
                self._add(self._alias(event))
            elif name == "ScalarEvent":
                self._add(self._scalar(event))
            elif name in ("SequenceStartEvent", "MappingStartEvent"):
                self._start(event, "sequence" if name == "SequenceStartEvent" else "mapping")
            elif name in ("SequenceEndEvent", "MappingEndEvent"):
                self._open.pop()
                self._keys.pop()

    def _alias(self, event: Any) -> Node:
        node = self._anchors.get(event.anchor)
        line = event.start_mark.line + 1
        if node is None:
            return self._broken(f"alias {str(event.anchor)[:60]!r} of nothing", line)
        if any(node is parent for parent in self._open):
            return self._broken(f"alias {event.anchor[:60]!r} lies inside itself", line)
        return node

    def _broken(self, reason: str, line: int) -> Node:
        self.problems.append(YamlMalformed(reason, line))
        return Node("scalar", line, broken=True)

    def _scalar(self, event: Any) -> Node:
        quoted = event.style in ("'", '"', "|", ">")
        node = Node("scalar", event.start_mark.line + 1, "", event.value, quoted)
        self._tag(event, node)
        self._name(event, node)
        return node

    def _start(self, event: Any, kind: str) -> None:
        node = Node(kind, event.start_mark.line + 1)
        self._tag(event, node)
        self._add(node)
        self._name(event, node)
        self._open.append(node)
        self._keys.append(None)
        if len(self._open) > DEPTH_MAX:
            raise YamlMalformed(f"nested deeper than {DEPTH_MAX}", node.line)

    def _name(self, event: Any, node: Node) -> None:
        if event.anchor is not None:
            self._anchors[event.anchor] = node

    def _add(self, node: Node) -> None:
        self._count += 1
        if self._count > NODE_COUNT_MAX:
            raise YamlMalformed(f"more than {NODE_COUNT_MAX} values", node.line)
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if parent.kind == "sequence":
            parent.items.append(node)
        elif self._keys[-1] is None:
            self._keys[-1] = node
        else:
            parent.pairs.append((self._keys[-1], node))
            self._keys[-1] = None

    def _tag(self, event: Any, node: Node) -> None:
        tag = getattr(event, "tag", None)
        if tag is None or tag == "!":
            return
        name = str(tag).removeprefix(_TAG_PREFIX)
        if name == str(tag) or name not in _CORE_TAGS:
            shown = str(tag).replace(_TAG_PREFIX, "!!")[:60]
            self.problems.append(YamlMalformed(f"tag {shown!r} is not supported", node.line))
            node.broken = True
        else:
            node.tag = name
