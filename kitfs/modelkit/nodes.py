"""Nodes of a tree and the parts that it is put together from: what `kitfs.modelkit.tree` builds and a mount shows.

A tree is its *parts*, one after another. A part's entries keep the order of their outline, so nothing is made for a
node before somebody looks at it; when a part is added, only directories that several parts have are compared. Node
numbers start at 0 (the root); a session adds its first inode number to them. Where two parts have the same directory,
the later one's number is not used. Pure, but for what outlines read; a tree that is built may be used by any thread.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kitfs.digest import Digest
from kitfs.errors import MalformedError, NotFoundError
from kitfs.modelkit import NODES_MAX
from kitfs.store.outline import IMPLIED, Entry, Outline

_FEW = 8
"""Names are looked up one by one in a directory that has so many times as many entries, else all are compared."""


class NodeKind(enum.Enum):
    """The three kinds of node; a ModelKit holds no others."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()
    SYMLINK = enum.auto()


class Modes(enum.Enum):
    """Which permission bits are shown.

    KIT: 0444, or 0555 if any x bit, directories 0555: a file that was packed 0600 can be read by the server.
    WRITABLE: 0644, or 0755 if any x bit, directories 0755: below an overlay, so that the owner can write.
    TAR: those of the layer, without setuid, setgid and sticky.
    """

    KIT = "kit"
    WRITABLE = "writable"
    TAR = "tar"


class NodeNotFound(NotFoundError):
    """No node of that name or number."""

    def __init__(self, what: bytes | int) -> None:
        super().__init__(f"no entry {what!r}")
        self.what = what


class TreeConflict(MalformedError):
    """Two layers that can not be shown together, or a layer that claims a reserved name."""

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"{path.decode('utf-8', 'backslashreplace')!r}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class MemberContent:
    """A file's bytes are a member of a layer.

    Attributes:
        layer: The layer's digest.
        index: The member's place in the layer's TOC.
    """

    layer: Digest
    index: int


@dataclass(frozen=True, slots=True)
class InlineContent:
    """A file's bytes, or a symlink's target, are here."""

    data: bytes


Content = MemberContent | InlineContent | None


@dataclass(frozen=True, slots=True)
class Part:
    """What one layer, or kitfs itself, adds to a tree.

    Attributes:
        outline: Its entries.
        first: The node number of its entry 1.
        root: The node that its entry 0 is.
        layer: Where its files' bytes are, or None.
        inline: Or the bytes of its members.
        is_link: Whether its only entry is a symlink, to ``inline``.
    """

    outline: Outline
    first: int
    root: int
    layer: Digest | None
    inline: Sequence[bytes] = ()
    is_link: bool = False


@dataclass(slots=True)
class Node:
    """One place in a tree.

    Attributes:
        number: Its number, 0 for the root.
        parent: Its directory's number; the root is its own.
        name: Last component of its path; empty for the root.
        kind: File, directory or symlink.
        mode: Permission bits as recorded, 0o777 at most.
        size: Bytes of a file or of a symlink's target; 0 for a directory.
        part: What it comes from; None for the root.
        member: Its place among the members of that.
        special: Its setuid, setgid and sticky bits as recorded, which no mount shows.
    """

    number: int
    parent: int
    name: bytes
    kind: NodeKind
    mode: int
    size: int = 0
    part: Part | None = None
    member: int = IMPLIED
    special: int = 0

    @property
    def recorded_mode(self) -> int:
        """Permission bits as the layer has them."""
        return self.mode | self.special

    @property
    def content(self) -> Content:
        """Where a file's bytes are; None for a directory."""
        if self.part is None or self.kind is NodeKind.DIRECTORY:
            return None
        if self.part.layer is None:
            return InlineContent(self.part.inline[self.member])
        return MemberContent(self.part.layer, self.member)


_ROOT = Node(0, 0, b"", NodeKind.DIRECTORY, 0o755)
_Place = tuple[Part, int]
"""A part and a directory's number in its outline."""


class Tree:
    """Nodes of one ModelKit, immutable once built.

    Attributes:
        mtime_s: Seconds since the epoch for every node: when the manifest was created, or 0.
        size: Bytes of all files.
        stop: All node numbers are below it.
        model: The model's path, empty for the root, None without a model.
    """

    def __init__(self, mtime_s: int) -> None:
        self.mtime_s = mtime_s
        self.size = 0
        self.stop = 1
        self.model: bytes | None = None
        self._parts: list[Part] = []
        self._firsts: list[int] = []
        self._shared: dict[int, list[_Place]] = {0: []}  # directories that several parts have, and the root
        self._twins: dict[int, int] = {}  # number of such a directory in a later part, to the one that it has

    def iter_layers(self) -> Iterator[Digest]:
        """The layers that files of the tree are in."""
        return (part.layer for part in self._parts if part.layer is not None)

    def __len__(self) -> int:
        return self.stop - len(self._twins)

    def get_node(self, number: int) -> Node:
        """The node with a number.

        Raises:
            NodeNotFound: when the tree has no such number.
        """
        if number == 0:
            return _ROOT
        if not 0 < number < self.stop or number in self._twins:
            raise NodeNotFound(number)
        part = self._parts[bisect_right(self._firsts, number) - 1]
        return self._node(part, part.outline.get(number - part.first + 1))

    def find_child(self, number: int, name: bytes) -> Node | None:
        """The entry of a directory with a name, or None."""
        for part, directory in self._places(number):
            entry = part.outline.find(directory, name)
            if entry is not None:
                return self._node(part, entry)
        return None

    def get_child(self, number: int, name: bytes) -> Node:
        """The entry of a directory with a name.

        Raises:
            NodeNotFound: when there is none.
        """
        child = self.find_child(number, name)
        if child is None:
            raise NodeNotFound(name)
        return child

    def iter_children(self, number: int, after: int = 0) -> Iterator[Node]:
        """A directory's entries with numbers above ``after``, ascending.

        Raises:
            NodeNotFound: when the tree has no such directory.
        """
        for part, directory in self._places(number):
            start, stop = part.outline.children(directory)
            for entry in part.outline.iter(max(start, after - part.first + 2), stop):
                if part.first + entry.number - 1 not in self._twins:
                    yield self._node(part, entry)

    def get_path(self, path: bytes) -> Node:
        """The node at a path relative to the root, no symlink followed.

        Raises:
            NodeNotFound: when there is none.
        """
        node = _ROOT
        for name in path.split(b"/") if path else []:
            node = self.get_child(node.number, name)
        return node

    def follow_path(self, path: bytes) -> Node:
        """The node at a path relative to the root; the link ``model``, the only one that a tree may have, is followed.

        Raises:
            NodeNotFound: when there is none.
        """
        first, _, rest = path.partition(b"/")
        child = self.find_child(0, first) if self.model is not None and first else None
        if child is not None and child.kind is NodeKind.SYMLINK:
            path = b"/".join(name for name in (self.model, rest) if name)
        return self.get_path(path)

    def iter_paths(self) -> Iterator[tuple[bytes, Node]]:
        """Every node but the root with its path, in order of numbers."""
        paths = {0: b""}
        for number in range(1, self.stop):
            if number in self._twins:
                continue
            node = self.get_node(number)
            path = paths[node.parent] + b"/" + node.name if node.parent else node.name
            if node.kind is NodeKind.DIRECTORY:
                paths[node.number] = path
            yield path, node

    def add(
        self,
        outline: Outline,
        layer: Digest | None,
        *,
        at: bytes = b"",
        inline: Sequence[bytes] = (),
        is_link: bool = False,
    ) -> None:
        """Add a part; directories that are there already stay as they are.

        Args:
            outline: Its entries.
            layer: Where its files' bytes are, or None.
            at: Directory that they lie in, which is there.
            inline: The bytes of its members, when they are in no layer.
            is_link: Whether its only entry is a symlink.

        Raises:
            TreeConflict: when a path is something else already, or a file where a directory is needed.
        """
        part = Part(outline, self.stop, self.get_path(at).number, layer, inline, is_link)
        if self.stop + outline.count - 1 > NODES_MAX:
            raise TreeConflict(at, f"the ModelKit has more than {NODES_MAX} entries")
        shared = [(part.root, 0, at)]
        while shared:
            number, directory, path = shared.pop()
            places = list(self._places(number))
            for entry in _shared_names(places, (part, directory)):
                child = path + b"/" + entry.name if path else entry.name
                known = self.get_child(number, entry.name)
                _refuse_file(part, entry, child, known)
                self._twins[part.first + entry.number - 1] = known.number
                shared.append((known.number, entry.number, child))
            self._shared[number] = [*places, (part, directory)]
        self._parts.append(part)
        self._firsts.append(part.first)
        self.stop += outline.count - 1
        self.size += 0 if is_link else outline.size

    def _places(self, number: int) -> list[_Place]:
        """Where a directory's entries are, in ascending order of their numbers."""
        places = self._shared.get(number)
        if places is not None:
            return places
        if not 0 < number < self.stop or number in self._twins:
            raise NodeNotFound(number)
        part = self._parts[bisect_right(self._firsts, number) - 1]
        return [(part, number - part.first + 1)]

    def _node(self, part: Part, entry: Entry) -> Node:
        number = part.first + entry.number - 1
        parent = part.root
        if entry.parent:
            parent = part.first + entry.parent - 1
            parent = self._twins.get(parent, parent)
        kind = NodeKind.DIRECTORY if entry.is_directory else NodeKind.SYMLINK if part.is_link else NodeKind.FILE
        mode, special = entry.mode & 0o777, entry.mode & 0o7000
        return Node(number, parent, entry.name, kind, mode, entry.size, part, entry.member, special)


def _shared_names(places: Sequence[_Place], new: _Place) -> list[Entry]:
    """Entries of a directory of a new part that the directory has already, in order."""
    found: dict[int, Entry] = {}
    for known in places:
        if _count(known) * _FEW < _count(new):
            for name in [entry.name for entry in _iter_entries(known)]:
                entry = new[0].outline.find(new[1], name)
                if entry is not None:
                    found[entry.number] = entry
        elif _count(new) * _FEW < _count(known):
            outline, directory = known[0].outline, known[1]
            found |= {entry.number: entry for entry in _iter_entries(new) if outline.find(directory, entry.name)}
        else:
            names = {entry.name for entry in _iter_entries(known)}
            found |= {entry.number: entry for entry in _iter_entries(new) if entry.name in names}
    return [found[number] for number in sorted(found)]


def _iter_entries(place: _Place) -> Iterator[Entry]:
    return place[0].outline.iter(*place[0].outline.children(place[1]))


def _count(place: _Place) -> int:
    start, stop = place[0].outline.children(place[1])
    return stop - start


def _refuse_file(part: Part, entry: Entry, path: bytes, known: Node) -> None:
    """Refuse what is not a directory in both; what a layer has at a path only by what lies below it is named by that.

    Raises:
        TreeConflict: when there is a file at a path in one of them.
    """
    if known.kind is NodeKind.DIRECTORY and entry.is_directory:
        return
    if entry.member == IMPLIED:
        raise TreeConflict(explicit_path(part, entry, path), f"{path.decode('utf-8', 'backslashreplace')!r} is a file")
    raise TreeConflict(path, "is in the ModelKit twice")


def explicit_path(part: Part, entry: Entry, path: bytes) -> bytes:
    """The path of the first member at or below an entry."""
    while entry.member == IMPLIED:
        entry = part.outline.get(part.outline.children(entry.number)[0])
        path += b"/" + entry.name
    return path


def shown_mode(node: Node, modes: Modes) -> int:
    """The permission bits to show for a node."""
    if node.kind is NodeKind.SYMLINK:
        return 0o777
    if modes is Modes.TAR:
        return node.mode
    shown = 0o555 if node.kind is NodeKind.DIRECTORY or node.mode & 0o111 else 0o444
    return shown | 0o200 if modes is Modes.WRITABLE else shown
