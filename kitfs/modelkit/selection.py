"""What filters want of a ModelKit and its parents: the same for a mount and for what is unpacked. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kitfs.modelkit.filters import Filter, for_parents, wants_any, wants_kitfile
from kitfs.modelkit.resolve import Kit, KitLayer, ResolvedTree


@dataclass(frozen=True, slots=True)
class Selected:
    """What is wanted of one ModelKit.

    Attributes:
        kit: The ModelKit.
        name: As who refers to it does.
        layers: Its layers, in order.
        has_kitfile: Whether its Kitfile is wanted; of a parent it never is.
    """

    kit: Kit
    name: str
    layers: tuple[KitLayer, ...]
    has_kitfile: bool


def select(resolved: ResolvedTree, filters: Sequence[Filter]) -> list[Selected]:
    """What some filters want, the farthest parent first; parents of which nothing is wanted are left out."""
    selected: list[Selected] = []
    restricted: Sequence[Filter] | None = filters
    name = resolved.reference
    for kit in resolved.kits:
        if restricted is None:
            break
        layers = tuple(layer for layer in kit.layers if wants_any(restricted, layer.artifacts))
        selected.append(Selected(kit, name, layers, wants_kitfile(restricted)))
        restricted, name = for_parents(restricted), kit.parent or ""
    return selected[::-1]
