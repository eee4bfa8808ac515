"""What a parent's layers hold, and whether a child's layer is still the same.

Used by derive. A layer is the same when it has the same files with the same modes and bytes, and no directory came,
went or changed its mode. That is told from the parent's table of contents: what the child leaves untouched is not
read, what lies on the disk with the size and mode of the parent's file is hashed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from kitfs.archive.tar_toc import MemberKind
from kitfs.digest import Digest, Digester
from kitfs.modelkit.entries import Entry
from kitfs.modelkit.nodes import MemberContent, NodeKind, NodeNotFound, Tree, TreeConflict
from kitfs.modelkit.resolve import Kit, KitLayer, ResolvedTree, clean_path, find_filepath
from kitfs.modelkit.tree import build_tree
from kitfs.oci.kitfile import Artifact
from kitfs.oci.manifest import Descriptor
from kitfs.store.records import KIND_FILE, TocMember
from kitfs.store.store import Store
from kitfs.store.toc import Toc


@dataclass(frozen=True, slots=True)
class ParentLayer:
    """A layer of the parent, under one of its entries in the Kitfile.

    Attributes:
        path: The entry's cleaned path.
        artifact: The entry.
        layer: The layer.
        descriptor: As the parent's manifest has it.
    """

    path: str
    artifact: Artifact
    layer: KitLayer
    descriptor: Descriptor


class Parent:
    """What a child may share with its parent; without one, nothing.

    Attributes:
        layers: The parent's layers by the cleaned paths of their entries; of several under one path the first.
        carried: Layers that no entry names, of media types that kitfs does not know among them: they go along.
    """

    def __init__(self, store: Store, resolved: ResolvedTree | None, tree: Tree | None = None) -> None:
        """Begin.

        Args:
            store: Where it is.
            resolved: The parent; None for none.
            tree: The tree that it shows, where that was built already.
        """
        self._store = store
        self._resolved = resolved
        self._built = tree
        self._tocs: dict[Digest, Toc] = {}
        kit = resolved.kits[0] if resolved is not None else None
        self.layers = _list_layers(kit) if kit is not None else {}
        named = {layer.digest for layer in kit.layers} if kit is not None else set()
        self.carried = [layer for layer in kit.manifest.layers if layer.digest not in named] if kit is not None else []

    def open_toc(self, layer: Digest) -> Toc:
        """A layer's table of contents, opened once.

        Raises:
            LayerNotIndexed: when the store has none.
        """
        if layer not in self._tocs:
            self._tocs[layer] = self._store.open_toc(layer)
        return self._tocs[layer]

    def find_digest(self, content: MemberContent) -> bytes | None:
        """The digest of a member, or None when nobody knows.

        Raises:
            LayerNotIndexed, RecordCorrupt: when the store can not tell.
        """
        return self.open_toc(content.layer)[content.index].digest

    def find_directory_mode(self, path: str) -> int | None:
        """The mode of a directory in the parent's tree: of several layers that have it, the first one's."""
        if self._tree is None:
            return None
        try:
            node = self._tree.get_path(os.fsencode(path))
        except NodeNotFound:
            return None
        return node.recorded_mode if node.kind is NodeKind.DIRECTORY else None

    @cached_property
    def _tree(self) -> Tree | None:
        """The parent's tree; None without a parent, and for one whose layers can only be unpacked over each other."""
        if self._built is not None or self._resolved is None:
            return self._built
        try:
            return build_tree(self._resolved, self._store.open_outline)
        except TreeConflict:
            return None


def _list_layers(kit: Kit) -> dict[str, ParentLayer]:
    found: dict[str, ParentLayer] = {}
    for layer in kit.layers:
        for artifact in layer.artifacts:
            path = _shown(clean_path(artifact.path))
            descriptor = _find_descriptor(kit, layer, path)
            found.setdefault(path, ParentLayer(path, artifact, layer, descriptor))
    return found


def _find_descriptor(kit: Kit, layer: KitLayer, path: str) -> Descriptor:
    """The layer's descriptor, the one with the path where several have the same bytes."""
    same = [descriptor for descriptor in kit.manifest.layers if descriptor.digest == layer.digest]
    named = (one for one in same if _shown(clean_path(find_filepath(one) or "")) == path)
    return next(named, same[0])


def _shown(path: bytes) -> str:
    return os.fsdecode(path) or "."


class Comparison:
    """One layer of the parent, to be compared with what a child would have in its place."""

    def __init__(self, parent: Parent, layer: ParentLayer) -> None:
        """Read the layer's table of contents.

        Raises:
            LayerNotIndexed, RecordCorrupt: when the store has none.
        """
        self._parent = parent
        self._layer = layer.layer
        self._members = dict(self._iter_members())
        self._above = {above for path in self._members for above in _iter_above(path)}
        prefix = os.fsdecode(self._layer.prefix)
        self._unnamed = {prefix, *_iter_above(prefix)} - {""}  # the tar can not have them

    def _iter_members(self) -> Iterator[tuple[str, tuple[int, TocMember]]]:
        layer = self._layer
        for index, member in enumerate(self._parent.open_toc(layer.digest)):
            if layer.raw_path is not None:
                yield os.fsdecode(layer.raw_path), (index, TocMember(layer.raw_path, KIND_FILE, layer.raw_mode,
                                                                     member.size, 0, member.digest))  # fmt: skip
            elif member.path:
                path = layer.prefix + b"/" + member.path if layer.prefix else member.path
                yield os.fsdecode(path), (index, member)

    def is_same(self, list_entries: Callable[[], Iterable[Entry]], has_directory: Callable[[str], bool]) -> bool:
        """Whether a layer of these entries holds what the parent's holds.

        Args:
            list_entries: What the child's layer would have; asked twice where bytes must be compared.
            has_directory: Whether a path is a directory of the child's tree at all.

        Raises:
            PathUnreadable, FileChanged, UpperUnreadable, FileOpenForWriting: when a file can not be compared.
        """
        left = dict(self._members)
        is_doubtful = False
        for entry in list_entries():
            index, member = left.pop(entry.path, (-1, None))
            if entry.kind is MemberKind.DIRECTORY:
                if not self._is_same_directory(entry, member):
                    return False
                continue
            if member is None or not self._has_shape(entry, member):
                return False
            same = self._is_untouched(entry, index, member)
            if same is False:
                return False
            is_doubtful |= same is None
        if any(member.kind == KIND_FILE or not has_directory(path) for path, (_, member) in left.items()):
            return False
        return not is_doubtful or all(map(self._has_bytes, list_entries()))

    def _is_same_directory(self, entry: Entry, member: TocMember | None) -> bool:
        """Whether a directory is in the layer, by what lies below it at least, and its mode is what was shown."""
        if member is not None:
            if member.kind == KIND_FILE:
                return False
            if member.mode == entry.mode:
                return True
        elif entry.path not in self._above:
            return False
        elif self._layer.raw_path is not None or entry.path in self._unnamed:
            return True
        return self._parent.find_directory_mode(entry.path) == entry.mode

    def _has_shape(self, entry: Entry, member: TocMember) -> bool:
        return member.kind == KIND_FILE and (member.mode, member.size) == (entry.mode, entry.size)

    def _is_untouched(self, entry: Entry, index: int, member: TocMember) -> bool | None:
        """Whether a file's bytes are the member's; None when only reading them can tell."""
        untouched = entry.member
        if untouched is None:
            return None
        if untouched.layer == self._layer.digest and untouched.index == index:
            return True
        digest = self._parent.find_digest(untouched)
        return digest is not None and digest == member.digest

    def _has_bytes(self, entry: Entry) -> bool:
        if entry.kind is MemberKind.DIRECTORY or entry.member is not None:
            return True
        _, member = self._members.get(entry.path, (-1, None))
        return member is not None and has_digest(entry, member.digest)


def has_digest(entry: Entry, digest: bytes | None) -> bool:
    """Whether a file's bytes have a digest; it is read.

    Raises:
        PathUnreadable, FileChanged, UpperUnreadable, FileOpenForWriting: when it can not be read.
    """
    if digest is None:
        return False
    digester = Digester()
    with entry.open(lambda _size: None) as reading:
        for piece in reading.pieces:
            digester.update(piece)
    return digester.digest() == Digest.from_raw(digest)


def _iter_above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path
