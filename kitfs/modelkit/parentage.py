"""The parents of a ModelKit that is about to be packed: the chain that its ``model.path`` begins.

A derived ModelKit has no layer for its model; it shows its parent's. So the parent must be in the store, the paths
of the whole chain are kept out of the child's layers, and a tag that the chain itself uses must not be moved onto the
child. Used by pack; reads the store, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kitfs.digest import Digest
from kitfs.errors import UsageError
from kitfs.modelkit.ignore import iter_entry_paths
from kitfs.modelkit.resolve import PARENTS_MAX, ParentChainMalformed, ResolvedTree, resolve
from kitfs.oci.kitfile import Kitfile, clean_path, iter_artifacts
from kitfs.oci.mediatype import LayerKind
from kitfs.oci.reference import Reference, looks_like_reference, parse_reference
from kitfs.store.store import Store


class PathTaken(UsageError):
    """A path of the child at which its parent's model or a part of it lies.

    Attributes:
        path: The path.
        parent: The parent's reference.
    """

    def __init__(self, path: str, parent: str) -> None:
        super().__init__(f"path {path} is taken: the model of {parent} lies there")
        self.path = path
        self.parent = parent


@dataclass(frozen=True, slots=True)
class Parents:
    """A chain of parents.

    Attributes:
        manifests: Their ModelKitIDs, nearest first.
        paths: Cleaned paths of all their entries.
    """

    manifests: tuple[Digest, ...] = ()
    paths: frozenset[str] = frozenset()


NO_PARENTS = Parents()


def find_parents(
    store: Store, kitfile: Kitfile, references: Sequence[Reference], *, known: ResolvedTree | None = None
) -> Parents:
    """Follow ``model.path`` where it is a reference.

    Args:
        store: Where the parents are looked for.
        kitfile: The child's.
        references: Tags that the child will get.
        known: What the reference leads to, where that was found out before.

    Raises:
        ModelKitNotFound: when a parent is not in the store.
        ParentChainMalformed: when the chain is too long, comes back to itself or uses a tag that the child gets.
        PathTaken: when an entry of the child lies where the parent's model does.
        MalformedError: when a parent's manifest or Kitfile breaks its format.
    """
    path = kitfile.model.path if kitfile.model is not None else ""
    if not path or not looks_like_reference(path):
        return NO_PARENTS
    parent = parse_reference(path)
    resolved = known or resolve(store, parent)
    chain = [parent, *_iter_references(resolved)]
    for reference in references:
        if reference in chain:
            shown = [reference.display, *(link.display for link in chain[: chain.index(reference) + 1])]
            raise ParentChainMalformed(shown, "parents come back to themselves")
    if len(resolved.kits) > PARENTS_MAX:
        raise ParentChainMalformed([link.display for link in chain], f"more than {PARENTS_MAX} parents")
    _check_free(kitfile, resolved)
    paths = frozenset(path for kit in resolved.kits if kit.kitfile for path in iter_entry_paths(kit.kitfile))
    return Parents(resolved.digests, paths)


def _iter_references(resolved: ResolvedTree) -> Iterator[Reference]:
    for kit in resolved.kits:
        if kit.parent is not None:
            yield parse_reference(kit.parent)


def _check_free(kitfile: Kitfile, resolved: ResolvedTree) -> None:
    own = {clean_path(artifact.path) for artifact in iter_artifacts(kitfile)}
    for kit in resolved.kits:
        for artifact in iter_artifacts(kit.kitfile) if kit.kitfile else ():
            path = clean_path(artifact.path)
            if artifact.kind in (LayerKind.MODEL, LayerKind.MODELPART) and path in own and path != ".":
                raise PathTaken(path, resolved.reference)
