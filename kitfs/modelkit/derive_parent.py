"""What a parent's layers hold, and whether a child's layer is still the same.

Used by derive. A layer is the same when it has the same files with the same modes and bytes, and no directory came or
went. That is told from the parent's table of contents: what the child leaves untouched is not read, what lies on the
disk with the size and mode of the parent's file is hashed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kitfs.archive.tar_toc import MemberKind
from kitfs.digest import Digest, Digester
from kitfs.modelkit.entries import Entry
from kitfs.modelkit.resolve import Kit, KitLayer, clean_path, find_filepath
from kitfs.oci.kitfile import Artifact
from kitfs.oci.manifest import Descriptor
from kitfs.store.records import KIND_FILE, TocMember
from kitfs.store.store import Store

_MODES = 0o777


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


def list_parent_layers(kit: Kit) -> dict[str, ParentLayer]:
    """The layers of a ModelKit by the cleaned paths of their entries; of several under one path the first."""
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

    def __init__(self, store: Store, parent: ParentLayer) -> None:
        """Read the layer's table of contents.

        Raises:
            LayerNotIndexed, RecordCorrupt: when the store has none.
        """
        self._store = store
        self._layer = parent.layer
        self._members = dict(self._iter_members())
        self._above = {above for path in self._members for above in _iter_above(path)}

    def _iter_members(self) -> Iterator[tuple[str, tuple[int, TocMember]]]:
        layer = self._layer
        for index, member in enumerate(self._store.get_toc(layer.digest)):
            if layer.raw_path is not None:
                yield os.fsdecode(layer.raw_path), (index, TocMember(layer.raw_path, KIND_FILE, layer.raw_mode,
                                                                     member.size, 0, member.digest))  # fmt: skip
            elif member.path:
                path = layer.prefix + b"/" + member.path if layer.prefix else member.path
                yield os.fsdecode(path), (index, member)

    def is_same(self, list_entries: Callable[[], Iterable[Entry]], exists: Callable[[str], bool]) -> bool:
        """Whether a layer of these entries holds what the parent's holds.

        Args:
            list_entries: What the child's layer would have; asked twice where bytes must be compared.
            exists: Whether a path is in the child's tree at all.

        Raises:
            PathUnreadable, FileChanged, UpperUnreadable, FileOpenForWriting: when a file can not be compared.
        """
        left = dict(self._members)
        is_doubtful = False
        for entry in list_entries():
            index, member = left.pop(entry.path, (-1, None))
            if member is None:
                if entry.kind is MemberKind.FILE or entry.path not in self._above:
                    return False
                continue
            if not self._has_shape(entry, member):
                return False
            if entry.kind is MemberKind.FILE:
                same = self._is_untouched(entry, index, member)
                if same is False:
                    return False
                is_doubtful |= same is None
        if any(member.kind == KIND_FILE or not exists(path) for path, (_, member) in left.items()):
            return False
        return not is_doubtful or all(map(self._has_bytes, list_entries()))

    def _has_shape(self, entry: Entry, member: TocMember) -> bool:
        if (member.kind == KIND_FILE) is not (entry.kind is MemberKind.FILE):
            return False
        return member.mode & _MODES == entry.mode and (entry.kind is MemberKind.DIRECTORY or entry.size == member.size)

    def _is_untouched(self, entry: Entry, index: int, member: TocMember) -> bool | None:
        """Whether a file's bytes are the member's; None when only reading them can tell."""
        untouched = entry.member
        if untouched is None:
            return None
        if untouched.layer == self._layer.digest:
            return untouched.index == index
        return self._store.get_toc(untouched.layer)[untouched.index].digest == member.digest

    def _has_bytes(self, entry: Entry) -> bool:
        if entry.kind is MemberKind.DIRECTORY or entry.member is not None:
            return True
        _, member = self._members.get(entry.path, (-1, None))
        if member is None or member.digest is None:
            return False
        with entry.open(lambda _size: None) as reading:
            digester = Digester()
            for piece in reading.pieces:
                digester.update(piece)
        return digester.digest() == Digest.from_raw(member.digest)


def _iter_above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path
