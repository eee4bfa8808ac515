"""Which trees, and which paths in them, a command means that was given a reference or a mounted session.

Used by ``kitfs prefetch``. Works from the store and the session's record alone: it never looks at a path below a mount,
which would wait for the worker and read what is only to be named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.modelkit.filters import EVERYTHING, Filter, parse_filters
from kitfs.modelkit.prefetch import PathNotFound
from kitfs.modelkit.resolve import ResolvedTree, reopen, resolve
from kitfs.modelkit.tree import Tree, build_tree

if TYPE_CHECKING:
    from kitfs.modelkit.storeview import Directory, TagKey
    from kitfs.oci.reference import Reference
    from kitfs.store.sessions import SessionRecord
    from kitfs.store.store import Store


@dataclass(slots=True)
class Target:
    """A tree, and paths in it.

    Attributes:
        reference: The ModelKit, as it is shown.
        manifests: Its manifest and those of its parents.
        tree: What it shows.
        paths: Paths relative to its root; none for all of it.
    """

    reference: str
    manifests: tuple[Digest, ...]
    tree: Tree
    paths: list[bytes] = field(default_factory=list)


def of_reference(store: Store, reference: Reference, paths: Sequence[bytes]) -> list[Target]:
    """The ModelKit that a reference means now.

    Raises:
        ModelKitNotFound: when it or a parent is not in the store.
        MalformedError: when a manifest or Kitfile breaks its format.
    """
    return [_target(store, resolve(store, reference), paths)]


def of_session(store: Store, record: SessionRecord, paths: Sequence[bytes]) -> list[Target]:
    """What a mount shows, at paths relative to its root.

    Raises:
        PathNotFound: when a mount of the whole store has no ModelKit at or below a path.
        BlobNotFound: when a manifest is gone.
        MalformedError: when a manifest or Kitfile breaks its format.
    """
    if record.kind == "kit":
        resolved = reopen(store, record.reference, [Digest.parse(text) for text in record.manifests])
        return [_target(store, resolved, paths, parse_filters(record.filter))]
    return _of_store(store, paths or [b""])


def _target(
    store: Store, resolved: ResolvedTree, paths: Sequence[bytes], filters: Sequence[Filter] = EVERYTHING
) -> Target:
    tree = build_tree(resolved, store.open_outline, filters=filters)
    return Target(resolved.reference, resolved.digests, tree, list(paths))


def _of_store(store: Store, paths: Sequence[bytes]) -> list[Target]:
    from kitfs.modelkit.storeview import read_directories
    from kitfs.oci.reference import Reference

    directories = read_directories(store)
    wanted: dict[TagKey, list[bytes]] = {}
    for path in paths:
        for key, inside in _walk(directories, path):
            wanted.setdefault(key, []).append(inside)
    targets = []
    for key, places in wanted.items():
        resolved = resolve(store, Reference(key.repository, key.tag, Digest.parse(key.manifest)))
        targets.append(_target(store, resolved, places))
    return targets


def _walk(directories: dict[str, Directory], path: bytes) -> list[tuple[TagKey, bytes]]:
    """The ModelKits at or below a path of a whole store, with the rest of the path."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    place = ""
    for number, name in enumerate(names):
        entry = directories[place].entries.get(name.decode("utf-8", "surrogateescape"))
        if entry is None:
            raise PathNotFound(path, "the store")
        if not isinstance(entry, str):
            return [(entry, b"/".join(names[number + 1 :]))]
        place = entry
    return [(key, b"") for key in _below(directories, place)]


def _below(directories: dict[str, Directory], place: str) -> list[TagKey]:
    found: list[TagKey] = []
    for entry in directories[place].entries.values():
        found += _below(directories, entry) if isinstance(entry, str) else [entry]
    return found
