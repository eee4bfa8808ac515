"""A ModelKit's tree with an overlay's upper directory over it: what a child would hold.

Used by ``kitfs diff`` and by derive. Made of the parent's tree and one walk through the upper directory; the mount is
not touched and no file is opened, so it works while nothing is mounted too. What is shown is what the overlay shows
(``upper`` has the marks), but for three things: ``.kitfs`` and our own link ``model`` are passed over, what is neither
file nor directory is listed in ``others`` instead, and modes are those that the child records. It is a snapshot:
whoever writes on meanwhile is noticed when a file is opened, or not at all. Any thread may use it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from kitfs.archive.tar_toc import MemberKind
from kitfs.modelkit.nodes import InlineContent, Modes, Node, NodeKind, NodeNotFound, Tree, shown_mode
from kitfs.modelkit.tree import META, MODEL
from kitfs.modelkit.upper import Overlay, UpperEntry, UpperKind, UpperMalformed, open_file, read_upper


@dataclass(frozen=True, slots=True)
class MergedEntry:
    """One file or directory.

    Attributes:
        path: Relative to the root.
        kind: File or directory.
        mode: Permission bits that a child records: the parent's for what is unchanged, and for what was copied up and
            still has the mode that the mount shows; else the upper directory's.
        size: Bytes of a file.
        node: The parent's node. Of a file: its bytes are the node's; of a directory: it was there.
        upper: Path below the upper directory of the file with the bytes; None when ``node`` has them.
        replaced: The parent's file at the same place when the bytes are in the upper directory.
    """

    path: bytes
    kind: MemberKind
    mode: int
    size: int
    node: Node | None
    upper: bytes | None = None
    replaced: Node | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """A merged directory: what the upper directory has there, and what of the parent shows through."""

    upper: UpperEntry | None
    lower: Node | None


_Found = tuple[MergedEntry, _Place | None]


class MergedTree:
    """What a child would hold.

    Attributes:
        others: Path and ``st_mode`` of everything in the upper directory that a ModelKit can not hold, sorted.
    """

    def __init__(self, tree: Tree, upper: Path, *, shown: Modes, overlay: Overlay | None = None) -> None:
        """Read the upper directory.

        Args:
            tree: The parent's tree, as it is mounted below.
            upper: The upper directory.
            shown: The modes that the lower mount shows.
            overlay: What wrote the upper directory; None understands the marks of both.

        Raises:
            UpperUnreadable: when something in it can not be read.
            UpperMalformed: when it is none that an overlay over this parent leaves behind.
        """
        self._tree = tree
        self._upper = upper
        self._shown = shown
        self._link = tree.find_child(0, MODEL)
        if self._link is not None and self._link.kind is not NodeKind.SYMLINK:
            self._link = None
        self._overlay = overlay
        root = self._read()
        self._root = _Place(root, tree.get_node(0))
        self.others: list[tuple[bytes, int]] = sorted(self._iter_others())

    def _read(self) -> UpperEntry:
        return read_upper(self._upper, overlay=self._overlay, without=META)

    def is_current(self) -> bool:
        """Whether the upper directory still has the same names, kinds, modes and sizes; it is walked again.

        Raises:
            UpperUnreadable, UpperMalformed: as when it was read.
        """
        return self._read() == self._root.upper

    def find(self, path: bytes) -> MergedEntry | None:
        """The entry at a path, or None; the root has none."""
        above, _, name = path.rpartition(b"/")
        place = self._find_place(above)
        found = self._find(place, above, name) if place and name else None
        return found[0] if found else None

    def iter_children(self, path: bytes) -> Iterator[MergedEntry]:
        """The entries of a directory, in byte order of their names.

        Raises:
            NodeNotFound: when there is no such directory.
        """
        place = self._find_place(path)
        if place is None:
            raise NodeNotFound(path)
        for name in self._names(place):
            found = self._find(place, path, name)
            if found:
                yield found[0]

    def open_upper(self, entry: MergedEntry) -> AbstractContextManager[tuple[int, os.stat_result]]:
        """The descriptor and status of a file whose bytes are in the upper directory.

        Raises:
            UpperUnreadable: when it can not be opened, or is no regular file any more.
        """
        if entry.upper is None:
            raise NodeNotFound(entry.path)
        return open_file(self._upper, entry.upper)

    def _names(self, place: _Place) -> list[bytes]:
        names = set(place.upper.children) if place.upper else set()
        if place.lower is not None:
            names.update(node.name for node in self._tree.iter_children(place.lower.number))
        return sorted(names)

    def _find_place(self, path: bytes) -> _Place | None:
        place: _Place | None = self._root
        above = b""
        for name in path.split(b"/") if path else []:
            found = self._find(place, above, name) if place else None
            place = found[1] if found else None
            above = _join(above, name)
        return place

    def _find(self, place: _Place, above: bytes, name: bytes) -> _Found | None:
        """What a merged directory holds under a name."""
        upper = place.upper.children.get(name) if place.upper else None
        lower = self._tree.find_child(place.lower.number, name) if place.lower else None
        path = _join(above, name)
        if path == META:
            return None
        if lower is not None and lower.kind is NodeKind.SYMLINK:
            lower = None
        if upper is None:
            return self._unchanged(path, lower) if lower else None
        if upper.kind is UpperKind.DIRECTORY:
            return self._directory(path, upper, place, lower)
        return (self._file(path, upper, place, lower), None) if upper.kind is UpperKind.FILE else None

    def _unchanged(self, path: bytes, node: Node) -> _Found:
        if node.kind is NodeKind.DIRECTORY:
            return MergedEntry(path, MemberKind.DIRECTORY, node.mode, 0, node), _Place(None, node)
        return MergedEntry(path, MemberKind.FILE, node.mode, node.size, node), None

    def _directory(self, path: bytes, upper: UpperEntry, place: _Place, lower: Node | None) -> _Found:
        node = lower if lower is not None and lower.kind is NodeKind.DIRECTORY else None
        shows = None if upper.opaque else node
        if upper.redirect is not None and not upper.opaque:
            shows = node = self._follow(path, upper.redirect, place, NodeKind.DIRECTORY)
        entry = MergedEntry(path, MemberKind.DIRECTORY, self._mode(upper, node), 0, node)
        return entry, _Place(upper, shows)

    def _file(self, path: bytes, upper: UpperEntry, place: _Place, lower: Node | None) -> MergedEntry:
        node = lower if lower is not None and lower.kind is NodeKind.FILE else None
        if not upper.metacopy:
            return MergedEntry(path, MemberKind.FILE, self._mode(upper, node), upper.size, None, path, node)
        if upper.redirect is not None:
            node = self._follow(path, upper.redirect, place, NodeKind.FILE)
        if node is None:
            raise UpperMalformed(path, "its bytes should be in the parent, which has no such file")
        return MergedEntry(path, MemberKind.FILE, self._mode(upper, node), node.size, node)

    def _mode(self, upper: UpperEntry, node: Node | None) -> int:
        mode = stat.S_IMODE(upper.mode)
        return node.mode if node is not None and mode == shown_mode(node, self._shown) else mode

    def _follow(self, path: bytes, redirect: bytes, place: _Place, kind: NodeKind) -> Node:
        """The parent's node that a redirect names.

        Raises:
            UpperMalformed: when it leads out of the parent, or to nothing of that kind.
        """
        start, names = (place.lower, [redirect])
        if redirect.startswith(b"/"):
            start, names = self._tree.get_node(0), redirect[1:].split(b"/")
        if any(name in (b"", b".", b"..") or b"/" in name for name in names):
            raise UpperMalformed(path, f"a redirect to {redirect!r}, which is no path in the parent")
        node = start
        for name in names:
            node = self._tree.find_child(node.number, name) if node else None
        if node is None or node.kind is not kind:
            raise UpperMalformed(path, f"a redirect to {redirect!r}, which the parent has not")
        return node

    def _iter_others(self) -> Iterator[tuple[bytes, int]]:
        pending: list[tuple[bytes, UpperEntry]] = [(b"", self._root.upper)] if self._root.upper else []
        while pending:
            above, directory = pending.pop()
            for name, entry in directory.children.items():
                path = _join(above, name)
                if entry.kind is UpperKind.DIRECTORY:
                    pending.append((path, entry))
                elif entry.kind is UpperKind.OTHER and not self._is_our_link(path, entry):
                    yield path, entry.mode

    def _is_our_link(self, path: bytes, entry: UpperEntry) -> bool:
        if path != MODEL or self._link is None or not stat.S_ISLNK(entry.mode):
            return False
        content = self._link.content
        try:
            target = os.fsencode((self._upper / "model").readlink())
        except OSError:
            return False
        return isinstance(content, InlineContent) and target == content.data


def _join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above else name
