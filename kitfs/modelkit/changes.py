"""What a child would have otherwise than its parent: A, M and D lines, as ``docker diff`` has them.

Used by ``kitfs diff`` and by derive, through ``merged.MergedTree``. Only what the upper directory touches is looked at.
Files that are unchanged are never read, nor is the parent's content: a file that was written to, and has the size and
the mode that it had, is read and compared by its digest with the parent's record of it.

A directory is M when its own mode changes, not for what happens inside. One that is removed is one line; what lay below
it is counted there. One that is added, or renamed, is listed with all that it holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from kitfs.archive.tar_toc import MemberKind
from kitfs.digest import Digest, Digester
from kitfs.modelkit.nodes import InlineContent, MemberContent, Node, NodeKind, Tree
from kitfs.modelkit.tree import META
from kitfs.modelkit.upper import join, naming

if TYPE_CHECKING:
    from kitfs.modelkit.merged import MergedEntry, MergedTree, Place
    from kitfs.store.reads import StoreReads
    from kitfs.store.toc import Toc

FindDigest = Callable[[Node], Digest | None]
"""The digest of a file of the parent whose bytes are in a layer, or None when nobody knows."""

_PIECE_SIZE = 1 << 20


class Change(NamedTuple):
    """One difference.

    Attributes:
        kind: Added, modified or deleted.
        path: Where.
        is_directory: Whether it is, or was, a directory.
        size_before: Bytes of the parent's file; of a deleted directory, of all files below it. None for what is added.
        size_after: Bytes of the child's file, 0 for a directory; None for what is deleted.
    """

    kind: Literal["A", "M", "D"]
    path: bytes
    is_directory: bool
    size_before: int | None
    size_after: int | None


class Digests:
    """Finds the digests of files in layers: one table of contents is opened for each layer, and read where needed."""

    def __init__(self, store: StoreReads) -> None:
        self._store = store
        self._tables: dict[Digest, Toc] = {}

    def __call__(self, node: Node) -> Digest | None:
        """The digest of a file of the parent, or None when it is in no layer.

        Raises:
            LayerNotIndexed, RecordCorrupt, IndexFailed, IndexCorrupt: when the table can not be read.
        """
        content = node.content
        if not isinstance(content, MemberContent):
            return None
        if content.layer not in self._tables:
            self._tables[content.layer] = self._store.open_toc(content.layer)
        raw = self._tables[content.layer][content.index].digest
        return Digest.from_raw(raw) if raw is not None else None


class _Pair(NamedTuple):
    """A directory of the child, and the parent's at the same path."""

    path: bytes
    place: Place
    before: Node | None


def iter_changes(merged: MergedTree, find_digest: FindDigest | None = None) -> Iterator[Change]:
    """The differences in the order of their paths, a directory before what it holds.

    A directory that becomes a file, or a file that becomes a directory, is a D and an A.

    Args:
        merged: What the child would hold.
        find_digest: Knows digests of the parent's files; without it a file that was written to, and is as long as it
            was, is M whatever it holds now.

    Raises:
        UpperUnreadable: when a file that has to be compared can not be read.
    """
    levels = [_iter_level(merged, find_digest, _Pair(b"", merged.root, merged.tree.get_node(0)))]
    while levels:
        item = next(levels[-1], None)
        if item is None:
            levels.pop()
        elif isinstance(item, Change):
            yield item
        else:
            levels.append(_iter_level(merged, find_digest, item))


def _iter_level(merged: MergedTree, find_digest: FindDigest | None, pair: _Pair) -> Iterator[Change | _Pair]:
    """The changes of a directory's entries, and the directories below that have to be looked into, in order."""
    path, place, before = pair
    for name in _names(merged, place, before):
        child = join(path, name)
        if child == META:
            continue
        found = merged.look_up(place, path, name)
        old = merged.tree.find_child(before.number, name) if before else None
        if old is not None and old.kind is NodeKind.SYMLINK:
            old = None
        entry, inner = found or (None, None)
        if old is not None and (entry is None or _is_directory(entry) != (old.kind is NodeKind.DIRECTORY)):
            is_directory = old.kind is NodeKind.DIRECTORY
            yield Change("D", child, is_directory, measure(merged.tree, old) if is_directory else old.size, None)
            old = None
        if entry is None:
            continue
        if old is None:
            yield Change("A", child, _is_directory(entry), None, entry.size)
        elif entry.mode != old.recorded_mode or not (_is_directory(entry) or _is_same(merged, entry, old, find_digest)):
            yield Change("M", child, _is_directory(entry), old.size, entry.size)
        if inner is not None and not _is_untouched(inner, old):
            yield _Pair(child, inner, old)


def _names(merged: MergedTree, place: Place, before: Node | None) -> list[bytes]:
    """The names in which a directory may differ, in byte order."""
    if place.lower is not None and before is not None and place.lower.number == before.number:
        return sorted(place.upper.children) if place.upper else []
    names = set(merged.names(place))
    if before is not None:
        names.update(node.name for node in merged.tree.iter_children(before.number))
    return sorted(names)


def _is_directory(entry: MergedEntry) -> bool:
    return entry.kind is MemberKind.DIRECTORY


def _is_untouched(place: Place, before: Node | None) -> bool:
    return (
        place.upper is None and place.lower is not None and before is not None and place.lower.number == before.number
    )


def _is_same(merged: MergedTree, entry: MergedEntry, before: Node, find_digest: FindDigest | None) -> bool:
    """Whether a file has the bytes of the parent's."""
    if entry.node is not None:
        if entry.node.number == before.number:
            return True
        wanted, digest = (_find_digest(node, find_digest) for node in (before, entry.node))
        return wanted is not None and wanted == digest
    return has_bytes_of(merged, entry, before, find_digest)


def has_bytes_of(merged: MergedTree, entry: MergedEntry, node: Node, find_digest: FindDigest | None) -> bool:
    """Whether a file of the upper directory has the bytes of a file of the parent; reads it when it is as long.

    Raises:
        UpperUnreadable: when it can not be read.
    """
    if entry.size != node.size:
        return False
    wanted = _find_digest(node, find_digest)
    if wanted is None:
        return False
    digester = Digester()
    with merged.open_upper(entry) as (fd, _), naming(entry.path):
        while piece := os.read(fd, _PIECE_SIZE):
            digester.update(piece)
    return digester.digest() == wanted


def _find_digest(node: Node, find_digest: FindDigest | None) -> Digest | None:
    if isinstance(node.content, InlineContent):
        return Digest.of(node.content.data)
    return find_digest(node) if find_digest else None


def measure(tree: Tree, directory: Node) -> int:
    """Bytes of all files below a directory."""
    size = 0
    pending = [directory]
    while pending:
        for node in tree.iter_children(pending.pop().number):
            if node.kind is NodeKind.DIRECTORY:
                pending.append(node)
            else:
                size += node.size
    return size
