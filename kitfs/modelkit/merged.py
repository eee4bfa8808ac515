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
from kitfs.modelkit.changes import Change, FindDigest, iter_changes
from kitfs.modelkit.nodes import InlineContent, Modes, Node, NodeKind, NodeNotFound, Tree, shown_mode
from kitfs.modelkit.tree import META, MODEL
from kitfs.modelkit.upper import UpperEntry, UpperKind, UpperMalformed, join, open_file, read_upper
from kitfs.modelkit.upper_marks import Overlay


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
class Place:
    """A merged directory.

    Attributes:
        upper: What the upper directory has there.
        lower: The parent's directory that shows through.
    """

    upper: UpperEntry | None
    lower: Node | None


Found = tuple[MergedEntry, Place | None]
"""An entry, and what a directory holds."""


class MergedTree:
    """What a child would hold.

    Attributes:
        tree: The parent's.
        root: Its root.
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
        self.tree = tree
        self._upper = upper
        self._shown = shown
        self._overlay = overlay
        root = self._read()
        self.root = Place(root, None if root.opaque else tree.get_node(0))
        self.others: list[tuple[bytes, int]] = []
        self._survey(root)
        self.others.sort()

    def _read(self) -> UpperEntry:
        return read_upper(self._upper, overlay=self._overlay, without=META)

    def is_current(self) -> bool:
        """Whether the upper directory still has the same names, kinds, modes, sizes and ctimes; it is walked again.

        Raises:
            UpperUnreadable, UpperMalformed: as when it was read.
        """
        return self._read() == self.root.upper

    def iter_changes(self, find_digest: FindDigest | None = None) -> Iterator[Change]:
        """What the child would have otherwise than the parent; see ``changes.iter_changes``."""
        return iter_changes(self, find_digest)

    def find(self, path: bytes) -> MergedEntry | None:
        """The entry at a path, or None; the root has none."""
        above, _, name = path.rpartition(b"/")
        place = self._find_place(above)
        found = self.look_up(place, above, name) if place and name else None
        return found[0] if found else None

    def iter_children(self, path: bytes) -> Iterator[MergedEntry]:
        """The entries of a directory, in byte order of their names.

        Raises:
            NodeNotFound: when there is no such directory.
        """
        place = self._find_place(path)
        if place is None:
            raise NodeNotFound(path)
        yield from (entry for entry, _ in self.iter_place(place, path))

    def iter_place(self, place: Place, path: bytes) -> Iterator[Found]:
        """What a merged directory holds, in byte order of names.

        Args:
            place: The directory.
            path: Where it is.
        """
        uppers = place.upper.children if place.upper is not None else {}
        lowers = {node.name: node for node in self._iter_lower(place)}
        for name in sorted(uppers.keys() | lowers.keys()):
            found = self._merge(place, path, name, uppers.get(name), lowers.get(name))
            if found is not None:
                yield found

    def _iter_lower(self, place: Place) -> Iterator[Node]:
        return self.tree.iter_children(place.lower.number) if place.lower is not None else iter(())

    def open_upper(self, entry: MergedEntry) -> AbstractContextManager[tuple[int, os.stat_result]]:
        """The descriptor and status of a file whose bytes are in the upper directory.

        Raises:
            UpperUnreadable: when it can not be opened, or is no regular file any more.
        """
        if entry.upper is None:
            raise NodeNotFound(entry.path)
        return open_file(self._upper, entry.upper)

    def names(self, place: Place) -> list[bytes]:
        """Names that a merged directory may hold, hidden ones among them, in byte order."""
        uppers = place.upper.children if place.upper is not None else {}
        return sorted(uppers.keys() | {node.name for node in self._iter_lower(place)})

    def _find_place(self, path: bytes) -> Place | None:
        place: Place | None = self.root
        above = b""
        for name in path.split(b"/") if path else []:
            found = self.look_up(place, above, name) if place else None
            place = found[1] if found else None
            above = join(above, name)
        return place

    def look_up(self, place: Place, above: bytes, name: bytes) -> Found | None:
        """What a merged directory holds under a name."""
        upper = place.upper.children.get(name) if place.upper is not None else None
        lower = self.tree.find_child(place.lower.number, name) if place.lower is not None else None
        return self._merge(place, above, name, upper, lower)

    def _merge(
        self, place: Place, above: bytes, name: bytes, upper: UpperEntry | None, lower: Node | None
    ) -> Found | None:
        path = join(above, name)
        if path == META:
            return None
        if lower is not None and lower.kind is NodeKind.SYMLINK:
            lower = None
        if upper is None:
            return self._unchanged(path, lower) if lower is not None else None
        if upper.kind is UpperKind.DIRECTORY:
            return self._directory(path, upper, place, lower)
        return (self._file(path, upper, place, lower), None) if upper.kind is UpperKind.FILE else None

    def _unchanged(self, path: bytes, node: Node) -> Found:
        if node.kind is NodeKind.DIRECTORY:
            return MergedEntry(path, MemberKind.DIRECTORY, node.recorded_mode, 0, node), Place(None, node)
        return MergedEntry(path, MemberKind.FILE, node.recorded_mode, node.size, node), None

    def _directory(self, path: bytes, upper: UpperEntry, place: Place, lower: Node | None) -> Found:
        node = lower if lower is not None and lower.kind is NodeKind.DIRECTORY else None
        shows = None if upper.opaque else node
        if upper.redirect is not None and not upper.opaque:
            shows = node = self._follow(path, upper.redirect, place, NodeKind.DIRECTORY)
        entry = MergedEntry(path, MemberKind.DIRECTORY, self._mode(upper, node), 0, node)
        return entry, Place(upper, shows)

    def _file(self, path: bytes, upper: UpperEntry, place: Place, lower: Node | None) -> MergedEntry:
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
        return node.recorded_mode if node is not None and mode == shown_mode(node, self._shown) else mode

    def _follow(self, path: bytes, redirect: bytes, place: Place, kind: NodeKind) -> Node:
        """The parent's node that a redirect names.

        Raises:
            UpperMalformed: when it leads out of the parent, or to nothing of that kind.
        """
        start, names = (place.lower, [redirect])
        if redirect.startswith(b"/"):
            start, names = self.tree.get_node(0), redirect[1:].split(b"/")
        if any(name in (b"", b".", b"..") or b"/" in name for name in names):
            raise UpperMalformed(path, f"a redirect to {redirect!r}, which is no path in the parent")
        node = start
        for name in names:
            node = self.tree.find_child(node.number, name) if node else None
        if node is None or node.kind is not kind:
            raise UpperMalformed(path, f"a redirect to {redirect!r}, which the parent has not")
        return node

    def _survey(self, root: UpperEntry) -> None:
        """Note what a ModelKit can not hold, and check that the parent has what the upper directory refers to.

        An overlay shows each directory of the parent once at most: where it was, or where it was renamed to. Without
        that rule a few marks could make any number of entries.

        Raises:
            UpperMalformed: when the parent has it not, or it would be shown twice.
        """
        showing: dict[int, tuple[bytes, UpperEntry]] = {0: (b"", root)}
        moved: list[tuple[bytes, Node]] = []
        pending = [(b"", self.root)]
        while pending:
            above, place = pending.pop()
            for name, upper in place.upper.children.items() if place.upper else ():
                path = join(above, name)
                if upper.kind is UpperKind.OTHER and not self._is_our_link(path, upper):
                    self.others.append((path, upper.mode))
                if upper.kind is not UpperKind.DIRECTORY and not upper.metacopy:
                    continue
                _, inner = self.look_up(place, above, name) or (None, None)
                if inner is None:
                    continue
                pending.append((path, inner))
                if inner.lower is None:
                    continue
                other, _ = showing.setdefault(inner.lower.number, (path, upper))
                if other != path:
                    raise _shown_twice(path, other)
                if upper.redirect is not None:
                    moved.append((path, inner.lower))
        for path, lower in moved:
            if self._shows_through(lower, showing):
                raise _shown_twice(path, b"where it was")

    def _shows_through(self, node: Node, showing: dict[int, tuple[bytes, UpperEntry]]) -> bool:
        """Whether a directory of the parent is shown inside of its own parent directory, wherever that is shown."""
        while node.parent not in showing:  # the root is in it
            node = self.tree.get_node(node.parent)
        is_hidden = node.name in showing[node.parent][1].children or (node.parent == 0 and node.name == META)
        return not is_hidden

    def _is_our_link(self, path: bytes, entry: UpperEntry) -> bool:
        link = self.tree.find_child(0, MODEL) if path == MODEL and stat.S_ISLNK(entry.mode) else None
        if link is None or link.kind is not NodeKind.SYMLINK:
            return False
        try:
            target = os.fsencode((self._upper / "model").readlink())
        except OSError:
            return False
        return link.content == InlineContent(target)


def _shown_twice(path: bytes, other: bytes) -> UpperMalformed:
    return UpperMalformed(path, f"it shows a directory of the parent that is shown at {os.fsdecode(other)!r} too")
