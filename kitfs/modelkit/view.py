"""What a session shows: the FUSE adapter's only partner.

``open_view`` gives a view of one ModelKit, or (``storeview``) of the whole store. A view is addressed by inode
numbers; 1 is the root. Its methods raise errors below ``KitfsError``; the adapter turns them into errno. A view whose
``blocking`` is set may read the store or build a tree in any method and belongs in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kitfs.digest import Digest
from kitfs.layer.policy import Materialise
from kitfs.modelkit import TREE_VERSION
from kitfs.modelkit.filters import parse_filters
from kitfs.modelkit.resolve import reopen
from kitfs.modelkit.served import FOR_EVER_S, Attributes, NativeShare, OpenFile, Owner, ServedKit
from kitfs.modelkit.sessions import SessionUnsupported
from kitfs.modelkit.tree import Modes, build_tree

if TYPE_CHECKING:
    from kitfs.store.backing import Backing
    from kitfs.store.sessions import HeldSession, SessionRecord
    from kitfs.store.store import Store

ROOT = 1
"""The root's inode number (FUSE_ROOT_ID)."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What statfs shows.

    Attributes:
        size: Bytes of all files.
        nodes: Number of nodes.
    """

    size: int
    nodes: int


class View(Protocol):
    """What a session shows, by inode number.

    Attributes:
        blocking: Whether methods may block for longer than a short read of the index.
        negative_timeout_s: For how long "no such entry" may be believed, seconds.
    """

    blocking: bool
    negative_timeout_s: float

    def attributes(self, inode: int) -> Attributes:
        """What stat shows of an inode."""

    def lookup(self, inode: int, name: bytes) -> Attributes:
        """The entry of a directory with a name; ``.`` and ``..`` included."""

    def iter_directory(self, inode: int, after: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """Entries of a directory whose cookie is above ``after``: name, attributes, cookie."""

    def read_link(self, inode: int) -> bytes:
        """A symlink's target."""

    def open(self, inode: int) -> OpenFile:
        """Open a file for reading."""

    def state(self, inode: int) -> str | None:
        """How a file would be read now: ``lazy``, ``partial`` or ``native``; None for what is no file."""

    def find_backing(self, inode: int, *, renew: bool = False) -> Backing | None:
        """The trusted plain file in the store that is the file shown; blocks in any view with ``renew``."""

    def measure_native(self) -> NativeShare:
        """How much of what is shown is plain files in the store; may block in any view."""

    def warm(self) -> None:
        """Read ahead of the first reader what it would wait for; may block in any view."""

    def statistics(self) -> Statistics:
        """Size and number of all that is shown."""


class KitView:
    """One ModelKit, immutable: everything may be believed for ever.

    Attributes:
        blocking: False: the tree is in memory.
        negative_timeout_s: Ten years.
    """

    blocking = False
    negative_timeout_s = FOR_EVER_S

    def __init__(self, kit: ServedKit) -> None:
        self._kit = kit

    def attributes(self, inode: int) -> Attributes:
        """What stat shows of an inode.

        Raises:
            NodeNotFound: when there is no such inode.
        """
        return self._kit.attributes(self._kit.node(inode))

    def lookup(self, inode: int, name: bytes) -> Attributes:
        """The entry of a directory with a name.

        Raises:
            NodeNotFound: when there is none.
            NotADirectory: when the inode is not a directory.
        """
        if name == b".":
            return self.attributes(inode)
        if name == b"..":
            return self.attributes(self._kit.parent(inode))
        return self._kit.lookup(inode, name)

    def iter_directory(self, inode: int, after: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """Entries of a directory whose inode is above ``after``.

        Raises:
            NotADirectory: when the inode is not a directory.
        """
        return self._kit.iter_directory(inode, after)

    def read_link(self, inode: int) -> bytes:
        """A symlink's target.

        Raises:
            NodeNotFound: when there is no such inode.
        """
        return self._kit.read_link(inode)

    def open(self, inode: int) -> OpenFile:
        """Open a file for reading; nothing is decoded yet.

        Raises:
            IsADirectory: when the inode is a directory.
        """
        return self._kit.open(inode)

    def state(self, inode: int) -> str | None:
        """How a file would be read now; None for what is no file.

        Raises:
            NodeNotFound: when there is no such inode.
        """
        return self._kit.state(inode)

    def find_backing(self, inode: int, *, renew: bool = False) -> Backing | None:
        """The trusted plain file in the store that is the file shown; see ``ServedKit.find_backing``.

        Raises:
            NodeNotFound: when there is no such inode.
        """
        return self._kit.find_backing(inode, renew=renew)

    def measure_native(self) -> NativeShare:
        """How much of what is shown is plain files in the store.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        return self._kit.measure_native()

    def warm(self) -> None:
        """Read the tables of the first layers.

        Raises:
            LayerNotIndexed, LayerCorrupt: when a layer can not be read.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        self._kit.warm()

    def statistics(self) -> Statistics:
        """Size and number of all that is shown."""
        return Statistics(self._kit.tree.size, len(self._kit.tree))


def owner_of(record: SessionRecord) -> Owner:
    """Owner and modes that a session shows."""
    return Owner(record.uid, record.gid, Modes(record.options.modes))


def policy_of(record: SessionRecord) -> Materialise:
    """When a session's members get files of their own; a policy of another version of kitfs is ``auto``."""
    policy = record.options.materialise
    return Materialise(policy) if policy in frozenset(Materialise) else Materialise.AUTO


def open_view(store: Store, session: HeldSession) -> View:
    """The view of a session, built from its record alone.

    Raises:
        SessionUnsupported: when another version of kitfs numbered its tree.
        BlobNotFound: when something that it shows is gone from the store.
    """
    record = session.record
    if record.tree_version != TREE_VERSION:
        raise SessionUnsupported(record.id, record.tree_version)
    if record.kind == "all":
        from kitfs.modelkit.storeview import StoreView

        return StoreView(store, session)
    resolved = reopen(store, record.reference, [Digest.parse(text) for text in record.manifests])
    tree = build_tree(resolved, store.open_outline, meta=record.options.meta, filters=parse_filters(record.filter))
    materialise = policy_of(record)
    return KitView(
        ServedKit(store, tree, owner_of(record), first=record.inode_first, root=ROOT, materialise=materialise)
    )
