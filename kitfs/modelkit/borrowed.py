"""Files of the ModelKits that ``model.path`` leads to, where they lie in a child's tree.

Used by derive. A child has no layer for them: it shows what those ModelKits have, so whatever was done to such a file
would not be in the child. Reads the store, and of the tree those files that only their bytes can tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from kitfs.digest import Digest, Digester
from kitfs.modelkit.entries import Entry
from kitfs.modelkit.nodes import MemberContent, Node, NodeKind, NodeNotFound
from kitfs.modelkit.parentage import Parents
from kitfs.modelkit.resolve import ResolvedTree, open_kit
from kitfs.modelkit.tree import build_tree
from kitfs.store.store import Store

_OWNERS_BITS = 0o700


class Borrowed:
    """Those files.

    Attributes:
        paths: Cleaned paths of the entries that have them.
    """

    def __init__(self, store: Store, parents: Parents, name: str, shown: ResolvedTree | None) -> None:
        """Read the ModelKits.

        Args:
            store: Where they are.
            parents: Which they are.
            name: What ``model.path`` says.
            shown: What the tree lies over, None for any folder.

        Raises:
            BlobNotFound, MalformedError: when one can not be read.
        """
        self.paths = parents.paths
        self._store = store
        self._name = name
        self._shown = shown if shown is not None and shown.digests[1:] == parents.manifests else None
        kits = [open_kit(store, manifest) for manifest in parents.manifests]
        self._trees = [build_tree(ResolvedTree("", (kit,)), store.open_outline, meta=False) for kit in kits]

    def find_problem(self, entry: Entry) -> str | None:
        """What was done to a file that the child will not have; None when it is as it was.

        Raises:
            PathUnreadable, FileChanged, UpperUnreadable, FileOpenForWriting: when it can not be compared.
        """
        node = self._find(os.fsencode(entry.path))
        if node is None:  # what lies there untouched is of the ModelKit that model.path named before
            return f"new, where {self._name} has its files" if entry.member is None else None
        content = node.content
        if entry.member is not None and entry.member != content:
            return None
        if not isinstance(content, MemberContent) or not self._is_same(entry, node, content):
            return f"changed; it belongs to {self._name}, which model.path names"
        return None

    def iter_deleted(self, exists: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
        """Files that were there and are gone, with what to say of it; of any folder nobody knows.

        Args:
            exists: Whether a path is in the child's tree.
        """
        if self._shown is None:
            return
        own = {layer.digest for layer in self._shown.kits[0].layers}
        for raw, node in build_tree(self._shown, self._store.open_outline, meta=False).iter_paths():
            content, path = node.content, os.fsdecode(raw)
            if isinstance(content, MemberContent) and content.layer not in own and not exists(path):
                yield path, f"deleted; it belongs to {self._name}, which model.path names"

    def _find(self, path: bytes) -> Node | None:
        for tree in self._trees:
            try:
                node = tree.get_path(path)
            except NodeNotFound:
                continue
            if node.kind is NodeKind.FILE:
                return node
        return None

    def _is_same(self, entry: Entry, node: Node, content: MemberContent) -> bool:
        if entry.member is not None:
            return entry.mode == node.mode
        lost = node.mode & ~entry.mode  # by the umask of whoever unpacked it
        if entry.size != node.size or entry.mode & ~node.mode or lost & _OWNERS_BITS:
            return False
        digest = self._store.get_toc(content.layer)[content.index].digest
        if digest is None:
            return False
        digester = Digester()
        with entry.open(lambda _size: None) as reading:
            for piece in reading.pieces:
                digester.update(piece)
        return digester.digest() == Digest.from_raw(digest)
