"""One ModelKit as a session serves it: inode numbers, attributes, open files.

Joins a ``Tree`` (what is shown) with the layers' readers (its bytes). Used by ``view``, which adds what lies above.
Thread-safe: nothing changes after it is built, but readers that are opened once and kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kitfs.errors import KitfsError
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader, PendingRead
from kitfs.modelkit.tree import InlineContent, MemberContent, Modes, Node, NodeKind, Tree, shown_mode

if TYPE_CHECKING:
    from kitfs.digest import Digest
    from kitfs.store.backing import Backing
    from kitfs.store.store import Store

MEASURED_MAX = 4096
"""Files looked at to tell how much of a ModelKit is native: 40 ms, and more than all the bytes that matter."""

WARMED_MAX = 16
"""Layers whose tables are read before somebody opens a file."""

LOOKED_AT_MAX = 65_536
"""Nodes among which they are looked for, once: 0.2 s."""

FOR_EVER_S = 10 * 365 * 86400.0
"""Validity of what can not change, in seconds: ten years."""


class NotADirectory(KitfsError):
    """A file was used as a directory."""


class IsADirectory(KitfsError):
    """A directory was used as a file."""


class Attributes(NamedTuple):
    """What stat shows of one inode.

    Attributes:
        inode: Its number in the mount.
        kind: File, directory or symlink.
        mode: Permission bits.
        size: Bytes.
        mtime_ns: Time of every kind, nanoseconds since the epoch.
        uid: Owner.
        gid: Group.
        nlink: Number of links.
        timeout_s: For how long name and attributes may be believed, seconds.
    """

    inode: int
    kind: NodeKind
    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    nlink: int = 1
    timeout_s: float = FOR_EVER_S


class NativeShare(NamedTuple):
    """How much of what is shown is plain files in the store.

    Attributes:
        native: Bytes of those files.
        size: Bytes of all files.
        is_begun: Whether any file is native or partial.
    """

    native: int
    size: int
    is_begun: bool


class OpenFile(Protocol):
    """A file's bytes.

    Attributes:
        size: Bytes of the whole file.
        state: ``lazy`` (bytes are in the layer only), ``partial`` or ``native`` (a plain file).
    """

    @property
    def size(self) -> int:
        """Bytes of the whole file."""

    @property
    def state(self) -> str:
        """``lazy``, ``partial`` or ``native``."""

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when they are at hand, verified; None when that would block."""

    def begin_read(self, start: int, stop: int) -> PendingRead | None:
        """Begin what ``read`` does, without blocking; None for a file that can only be read by ``read``."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``, verified; may block."""


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A small file whose bytes are in memory."""

    data: bytes
    state: str = "native"

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.data)

    def read_ready(self, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)``."""
        return self.data[start:stop]

    def begin_read(self, start: int, stop: int) -> None:
        """Nothing: ``read_ready`` has all."""

    def read(self, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)``."""
        return self.data[start:stop]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns what is shown, and with which permission bits.

    Attributes:
        uid: The user who mounted.
        gid: That user's group.
        modes: Which permission bits are shown.
    """

    uid: int
    gid: int
    modes: Modes


class ServedKit:
    """One ModelKit with its inode numbers.

    Attributes:
        tree: What is shown.
        first: Inode of node 1; the root's inode is ``root``.
        root: Inode of the root: 1 for a mount of one ModelKit.
    """

    def __init__(
        self, store: Store, tree: Tree, owner: Owner, *, first: int, root: int, materialise: Materialise
    ) -> None:
        self._store = store
        self._materialise = materialise
        self._readers: dict[Digest, LayerReader] = {}
        self._owner = owner
        self._measured: list[tuple[int, int]] | None = None  # sizes and inodes
        self.tree = tree
        self.first = first
        self.root = root

    def node(self, inode: int) -> Node:
        """The node behind an inode.

        Raises:
            NodeNotFound: when the inode is not one of this ModelKit's.
        """
        return self.tree.get_node(0 if inode == self.root else inode - self.first + 1)

    def inode(self, node: Node) -> int:
        """The inode of a node."""
        return self.root if node.number == 0 else self.first + node.number - 1

    def parent(self, inode: int) -> int:
        """The inode of the directory that holds an inode; the root's is its own."""
        return self.inode(self.tree.get_node(self.node(inode).parent))

    def attributes(self, node: Node) -> Attributes:
        """What stat shows of a node."""
        return Attributes(
            inode=self.inode(node),
            kind=node.kind,
            mode=shown_mode(node, self._owner.modes),
            size=node.size,
            mtime_ns=self.tree.mtime_s * 1_000_000_000,
            uid=self._owner.uid,
            gid=self._owner.gid,
            nlink=2 if node.kind is NodeKind.DIRECTORY else 1,
        )

    def lookup(self, inode: int, name: bytes) -> Attributes:
        """The entry of a directory with a name.

        Raises:
            NodeNotFound: when there is none.
            NotADirectory: when the inode is not a directory.
        """
        return self.attributes(self.tree.get_child(self.directory(inode).number, name))

    def iter_directory(self, inode: int, after: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """Entries of a directory whose inode is above ``after``, each with its inode as cookie.

        Raises:
            NotADirectory: when the inode is not a directory.
        """
        number = max(after - self.first + 1, 0)
        for node in self.tree.iter_children(self.directory(inode).number, number):
            attributes = self.attributes(node)
            yield node.name, attributes, attributes.inode

    def directory(self, inode: int) -> Node:
        """The directory behind an inode.

        Raises:
            NotADirectory: when it is none.
        """
        node = self.node(inode)
        if node.kind is not NodeKind.DIRECTORY:
            raise NotADirectory(f"inode {inode} is not a directory")
        return node

    def read_link(self, inode: int) -> bytes:
        """A symlink's target.

        Raises:
            IsADirectory: when the inode is not a symlink.
        """
        node = self.node(inode)
        if node.kind is NodeKind.SYMLINK and isinstance(node.content, InlineContent):
            return node.content.data
        raise IsADirectory(f"inode {inode} is not a symlink")

    def open(self, inode: int) -> OpenFile:
        """Open a file for reading; nothing is decoded yet.

        Raises:
            IsADirectory: when the inode is a directory.
            BlobNotFound: when the layer is gone from the store.
        """
        node = self.node(inode)
        match node.content:
            case InlineContent(data) if node.kind is NodeKind.FILE:
                return InlineFile(data)
            case MemberContent(layer, index):
                return self._reader(layer).open_member(index)
        raise IsADirectory(f"inode {inode} is not a file")

    def state(self, inode: int) -> str | None:
        """``lazy``, ``partial`` or ``native``: how a file would be read now. None for what is no file.

        Raises:
            NodeNotFound: when the inode is not one of this ModelKit's.
            LayerNotIndexed: when the layer is gone from the store.
        """
        node = self.node(inode)
        if node.kind is not NodeKind.FILE:
            return None
        if isinstance(node.content, MemberContent):
            return self._reader(node.content.layer).find_state(node.content.index)
        return "native"

    def find_backing(self, inode: int, *, renew: bool = False) -> Backing | None:
        """The plain file in the store that is the file shown, as long as it is trusted; None for what has none.

        Args:
            inode: Which.
            renew: Whether one that was changed since is hashed, and trusted again when its bytes are right.

        Raises:
            NodeNotFound: when the inode is not one of this ModelKit's.
            LayerNotIndexed: when the layer is gone from the store.
        """
        node = self.node(inode)
        if node.kind is not NodeKind.FILE or not isinstance(node.content, MemberContent):
            return None
        found = self._reader(node.content.layer).find_backing(node.content.index, renew=renew)
        return found if found is None or found.stamp.size == node.size else None

    def measure_native(self) -> NativeShare:
        """How much is plain files in the store, of the ``MEASURED_MAX`` largest of the first files; may block.

        Raises:
            LayerNotIndexed: when a layer is gone from the store.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        native = size = 0
        is_begun = False
        if self._measured is None:
            nodes = (node for _, node in islice(self.tree.iter_paths(), LOOKED_AT_MAX))
            sizes = ((node.size, self.inode(node)) for node in nodes if isinstance(node.content, MemberContent))
            self._measured = heapq.nlargest(MEASURED_MAX, sizes)
        for member_size, inode in self._measured:
            state = self.state(inode)
            size += member_size
            native += member_size if state == "native" else 0
            is_begun = is_begun or state != "lazy"
        return NativeShare(native, size, is_begun)

    def warm(self) -> None:
        """Read what opening a file of the first layers needs from the index; may block, at no time twice.

        Raises:
            LayerNotIndexed, LayerCorrupt: when a layer can not be read.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        for layer in islice(self.tree.iter_layers(), WARMED_MAX):
            self._reader(layer).warm()

    def close(self) -> None:
        """Stop decoding what nobody else waits for; files that are open can still be read, as ``LayerReader.close``."""
        for reader in self._readers.values():
            reader.close()

    def _reader(self, layer: Digest) -> LayerReader:
        reader = self._readers.get(layer)
        if reader is None:
            reader = self._readers.setdefault(layer, LayerReader(self._store, layer, materialise=self._materialise))
        return reader
