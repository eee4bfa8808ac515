"""The tree that a ModelKit shows as a file system: architecture in ``docs/architecture.md``, "The tree".

Pure: built from what ``resolve`` found and the layers' TOCs, with no mount, no open file and no clock, so the same
input gives the same node numbers in every process (of one ``TREE_VERSION``). A tree holds at most ``NODES_MAX`` nodes.

Node numbers start at 0 (the root) and are dense; a session adds its first inode number to them.
"""

from __future__ import annotations

import enum
import posixpath
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kitfs.digest import Digest
from kitfs.errors import MalformedError, NotFoundError
from kitfs.modelkit import NODES_MAX
from kitfs.modelkit.resolve import Kit, KitLayer, ResolvedTree, clean_path, find_filepath, is_model
from kitfs.oci.kitfile_regenerate import encode_kitfile_yaml
from kitfs.oci.mediatype import LayerKind
from kitfs.store.records import TocMember

META = b".kitfs"
KITFILE = b"Kitfile"
MODEL = b"model"


class NodeKind(enum.Enum):
    """The three kinds of node; a ModelKit holds no others."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()
    SYMLINK = enum.auto()


class Modes(enum.Enum):
    """Which permission bits are shown.

    KIT: 0444, or 0555 if any x bit, directories 0555: a file that was packed 0600 can be read by the server.
    TAR: those of the layer, without setuid, setgid and sticky.
    """

    KIT = "kit"
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
        content: Where a file's bytes are; None for a directory.
        children: Of a directory: name to number, numbers ascending.
    """

    number: int
    parent: int
    name: bytes
    kind: NodeKind
    mode: int
    size: int = 0
    content: Content = None
    children: dict[bytes, int] = field(default_factory=dict)


class Tree:
    """Nodes of one ModelKit, immutable once built.

    Attributes:
        nodes: All nodes by number.
        mtime_s: Seconds since the epoch for every node: when the manifest was created, or 0.
        size: Bytes of all files.
        model: The model's path, empty for the root, None without a model.
    """

    def __init__(self, mtime_s: int) -> None:
        self.nodes: list[Node] = [Node(0, 0, b"", NodeKind.DIRECTORY, 0o755)]
        self.mtime_s = mtime_s
        self.size = 0
        self.model: bytes | None = None
        self._listings: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.nodes)

    def get_node(self, number: int) -> Node:
        """The node with a number.

        Raises:
            NodeNotFound: when the tree has no such number.
        """
        if 0 <= number < len(self.nodes):
            return self.nodes[number]
        raise NodeNotFound(number)

    def get_child(self, number: int, name: bytes) -> Node:
        """The entry of a directory with a name.

        Raises:
            NodeNotFound: when there is none.
        """
        child = self.get_node(number).children.get(name)
        if child is None:
            raise NodeNotFound(name)
        return self.nodes[child]

    def iter_children(self, number: int, after: int = 0) -> Iterator[Node]:
        """A directory's entries with numbers above ``after``, ascending.

        The tree must be complete: a directory of a million entries is read in 5000 parts, so its list is kept.

        Raises:
            NodeNotFound: when the tree has no such directory.
        """
        numbers = self._listings.get(number)
        if numbers is None:
            numbers = self._listings[number] = list(self.get_node(number).children.values())
        for place in range(bisect_right(numbers, after), len(numbers)):
            yield self.nodes[numbers[place]]

    def get_path(self, path: bytes) -> Node:
        """The node at a path relative to the root, no symlink followed.

        Raises:
            NodeNotFound: when there is none.
        """
        node = self.nodes[0]
        for name in path.split(b"/") if path else []:
            node = self.get_child(node.number, name)
        return node

    def iter_paths(self) -> Iterator[tuple[bytes, Node]]:
        """Every node but the root with its path, in order of numbers."""
        paths = {0: b""}
        for node in self.nodes[1:]:
            path = paths[node.parent] + b"/" + node.name if node.parent else node.name
            if node.kind is NodeKind.DIRECTORY:
                paths[node.number] = path
            yield path, node

    def add(self, path: bytes, kind: NodeKind, mode: int, size: int = 0, content: Content = None) -> Node:
        """Add an entry and the directories above it; a directory that is there already stays as it is.

        Raises:
            TreeConflict: when something else is there, or a file stands where a directory is needed.
        """
        parent, _, name = path.rpartition(b"/")
        above = self._add_parents(parent, path)
        existing = above.children.get(name)
        if existing is not None:
            node = self.nodes[existing]
            if kind is NodeKind.DIRECTORY and node.kind is NodeKind.DIRECTORY:
                return node
            raise TreeConflict(path, "is in the ModelKit twice")
        if len(self.nodes) >= NODES_MAX:
            raise TreeConflict(path, f"the ModelKit has more than {NODES_MAX} entries")
        node = Node(len(self.nodes), above.number, name, kind, mode & 0o777, size, content)
        self.nodes.append(node)
        above.children[name] = node.number
        self.size += size if kind is NodeKind.FILE else 0
        return node

    def _add_parents(self, path: bytes, wanted_by: bytes) -> Node:
        node = self.nodes[0]
        done = b""
        for name in path.split(b"/") if path else []:
            done = done + b"/" + name if done else name
            child = node.children.get(name)
            node = self.nodes[child] if child is not None else self.add(done, NodeKind.DIRECTORY, 0o755)
            if node.kind is not NodeKind.DIRECTORY:
                raise TreeConflict(wanted_by, f"{done.decode('utf-8', 'backslashreplace')!r} is a file")
        return node


def build_tree(resolved: ResolvedTree, get_toc: Callable[[Digest], Sequence[TocMember]], *, meta: bool = True) -> Tree:
    """The tree of a ModelKit and its parents.

    Args:
        resolved: The ModelKit, then its parents.
        get_toc: The TOC of a layer.
        meta: Whether ``.kitfs/`` is shown.

    Raises:
        TreeConflict: when two layers claim one path, or one claims ``Kitfile`` or ``.kitfs``.
    """
    kit = resolved.kits[0]
    tree = Tree(kit.manifest.created_s)
    _add_reserved(tree, resolved, meta)
    for distance, source in reversed(list(enumerate(resolved.kits))):
        for layer in source.layers:
            if distance == 0 or is_model(layer):
                _add_layer(tree, layer, get_toc(layer.digest))
    tree.model = _model_path(resolved.kits)
    _add_model_link(tree)
    return tree


def _add_reserved(tree: Tree, resolved: ResolvedTree, meta: bool) -> None:
    kit = resolved.kits[0]
    files: list[tuple[bytes, bytes]] = []
    if kit.kitfile is not None:
        files.append((KITFILE, encode_kitfile_yaml(kit.kitfile)))
    if meta:
        files += [
            (META + b"/manifest.json", kit.manifest.raw),
            (META + b"/config.json", kit.config),
            (META + b"/id", f"{kit.manifest.digest}\n".encode()),
            (META + b"/reference", f"{resolved.reference}\n".encode()),
        ]
    for path, data in files:
        tree.add(path, NodeKind.FILE, 0o644, len(data), InlineContent(data))


def _add_layer(tree: Tree, layer: KitLayer, toc: Sequence[TocMember]) -> None:
    if layer.raw_path is not None:
        _refuse_reserved(layer.raw_path)
        content = MemberContent(layer.digest, 0)
        tree.add(layer.raw_path, NodeKind.FILE, layer.raw_mode, toc[0].size, content)
        return
    for index, member in enumerate(toc):
        path = layer.prefix + b"/" + member.path if layer.prefix else member.path
        _refuse_reserved(path)
        if member.kind == 1:
            tree.add(path, NodeKind.DIRECTORY, member.mode)
        else:
            tree.add(path, NodeKind.FILE, member.mode, member.size, MemberContent(layer.digest, index))


def _refuse_reserved(path: bytes) -> None:
    if path == META or path.startswith(META + b"/"):
        raise TreeConflict(path, "the name .kitfs is reserved")


def _model_path(kits: Sequence[Kit]) -> bytes | None:
    for kit in kits:
        if kit.kitfile is None:
            return _weights_path(kit)
        model = kit.kitfile.model
        if kit.parent is None:
            has_model = any(layer.type.kind is LayerKind.MODEL for layer in kit.layers)
            return clean_path(model.path) if model and has_model else None
    return None


def _weights_path(kit: Kit) -> bytes | None:
    """Where a ModelPack without a Kitfile keeps its weights: the one file, or the directory of several."""
    weights = {layer.digest for layer in kit.layers if layer.type.kind is LayerKind.MODEL}
    paths = [clean_path(find_filepath(layer) or ".") for layer in kit.manifest.layers if layer.digest in weights]
    if not paths:
        return None
    if len(paths) == 1:
        return paths[0]
    return posixpath.commonpath([posixpath.dirname(path) for path in paths])


def _add_model_link(tree: Tree) -> None:
    if tree.model is None or MODEL in tree.nodes[0].children:
        return
    if tree.model:
        try:
            tree.get_path(tree.model)
        except NodeNotFound:
            return
    target = tree.model or b"."
    tree.add(MODEL, NodeKind.SYMLINK, 0o777, len(target), InlineContent(target))


def shown_mode(node: Node, modes: Modes) -> int:
    """The permission bits to show for a node."""
    if node.kind is NodeKind.SYMLINK:
        return 0o777
    if modes is Modes.TAR:
        return node.mode
    return 0o555 if node.kind is NodeKind.DIRECTORY or node.mode & 0o111 else 0o444
