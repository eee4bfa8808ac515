"""Which parts of a ModelKit are wanted: kit's grammar for ``--filter``, the only one that kitfs has.

``types[:names]``: types and names are comma lists, a type is a field of the Kitfile, a name is an entry's name or its
path exactly as the Kitfile has it. An entry is wanted when any of several filters wants it; no filters want everything.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kitfs.errors import UsageError
from kitfs.oci.kitfile_schema import Artifact
from kitfs.oci.mediatype import LayerKind

KITFILE = "kitfile"
MODEL = "model"
PROMPTS = "prompts"

TYPES = (KITFILE, MODEL, "datasets", "code", "docs", PROMPTS, "mcpservers")
"""What may stand before the colon."""

_TYPE_OF = {
    LayerKind.MODEL: MODEL,
    LayerKind.MODELPART: MODEL,
    LayerKind.DATASET: "datasets",
    LayerKind.CODE: "code",
    LayerKind.DOCS: "docs",
    LayerKind.MCPB: "mcpservers",
}


class FilterMalformed(UsageError):
    """Filters that break the grammar.

    Attributes:
        problems: One line for each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        lines = problems if len(problems) == 1 else ["invalid filters:", *(f"  * {line}" for line in problems)]
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter.

    Attributes:
        types: Fields of the Kitfile, of ``TYPES``.
        names: Names and paths; None for all.
    """

    types: frozenset[str]
    names: frozenset[str] | None = None

    @property
    def wants_kitfile(self) -> bool:
        """Whether the Kitfile itself is wanted; names do not matter to it, as in kit."""
        return KITFILE in self.types

    def wants(self, artifact: Artifact) -> bool:
        """Whether an entry of the Kitfile, and so its layer, is wanted."""
        kind = PROMPTS if artifact.subtype == "prompt" else _TYPE_OF[artifact.kind]
        return kind in self.types and (self.names is None or not self.names.isdisjoint((artifact.name, artifact.path)))


EVERYTHING: tuple[Filter, ...] = ()
"""The filters of who gave none."""


def parse_filter(text: str) -> Filter:
    """One filter as it is written.

    Raises:
        FilterMalformed: when it breaks the grammar, with all that is wrong with it.
    """
    types, *names = text.split(":")
    problems = [
        f"invalid filter type {kind} (must be one of {', '.join(map(repr, TYPES[:-1]))}, or {TYPES[-1]!r})"
        for kind in types.split(",")
        if kind not in TYPES
    ]
    if len(names) > 1:
        problems = ["invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]"]
    if problems:
        raise FilterMalformed(problems)
    return Filter(frozenset(types.split(",")), frozenset(names[0].split(",")) if names else None)


def parse_filters(texts: Iterable[str]) -> tuple[Filter, ...]:
    """Several filters.

    Raises:
        FilterMalformed: when some break the grammar, with all that is wrong with all of them.
    """
    filters: list[Filter] = []
    problems: list[str] = []
    for text in texts:
        try:
            filters.append(parse_filter(text))
        except FilterMalformed as error:
            problems += error.problems
    if problems:
        raise FilterMalformed(problems)
    return tuple(filters)


def of_types(types: Iterable[str]) -> tuple[Filter, ...]:
    """The one filter that wants some types, or none when there are no types."""
    wanted = frozenset(types)
    return (Filter(wanted),) if wanted else EVERYTHING


def for_parents(filters: Sequence[Filter]) -> tuple[Filter, ...] | None:
    """What a ModelKit with these filters wants of its parents: at most models. None when it wants nothing of them."""
    if not filters:
        return of_types([MODEL])
    kept = tuple(replace(one, types=frozenset({MODEL})) for one in filters if MODEL in one.types)
    return kept or None


def wants_kitfile(filters: Sequence[Filter]) -> bool:
    """Whether any of some filters wants the Kitfile."""
    return not filters or any(one.wants_kitfile for one in filters)


def wants_any(filters: Sequence[Filter], artifacts: Iterable[Artifact]) -> bool:
    """Whether any of some filters wants any of the entries that a layer has in the Kitfile."""
    return not filters or any(one.wants(artifact) for artifact in artifacts for one in filters)
