"""An open ModelKit: what it says of itself, and its files.

``open_modelkit`` (``kitfs.open``) resolves the reference once, with its parents; from then on tags may move. A lease
keeps all of it until ``close``, so neither ``kitfs remove`` nor ``kitfs gc`` takes anything away meanwhile. Reading
writes nothing to the store, but the members of a layer that can not be read by ranges. Methods may be called by any
thread. An open ModelKit must not cross a fork.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kitfs.api.errors import ModelKitClosed, ModelKitForked
from kitfs.api.path import KitPath
from kitfs.home import default_home
from kitfs.layer.policy import Materialise
from kitfs.modelkit.lineage import Lineage, read_lineage
from kitfs.modelkit.nodes import Modes, Node, Tree
from kitfs.modelkit.resolve import ResolvedTree, resolve
from kitfs.modelkit.served import OpenFile, Owner, ServedKit
from kitfs.modelkit.tree import build_tree
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store

if TYPE_CHECKING:
    from kitfs.oci.kitfile_schema import Kitfile

_OWNER = Owner(0, 0, Modes.TAR)


def open_modelkit(reference: str, *, home: str | os.PathLike[str] | None = None) -> ModelKit:
    """Open a ModelKit that is in the store; a context manager.

    Args:
        reference: As on the command line: ``myllm:3.1.4``, ``repository@sha256:…`` or a ModelKitID.
        home: The store's folder; ``$KITFS_HOME``, else where the commands have it.

    Raises:
        ReferenceMalformed: when it is no reference.
        StoreNotFound: when there is no store.
        ModelKitNotFound: when the store does not hold it, or a parent of it.
        KitfsError: when it, or the store, can not be read.
    """
    parsed = parse_reference(reference)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store.open(Path(home) if home is not None else default_home(), create=False))
        lease = stack.enter_context(store.lease("open from Python"))
        resolved = resolve(store, parsed)
        for digest in resolved.digests:
            lease.hold(digest)
        tree = build_tree(resolved, store.open_outline, meta=False)
        served = ServedKit(store, tree, _OWNER, first=1, root=0, materialise=Materialise.NEVER)
        stack.callback(served.close)
        return ModelKit(resolved, served, stack.pop_all())


class ModelKit:
    """An open ModelKit; a context manager. One that nobody refers to any more is closed, as is every one at exit.

    Attributes:
        reference: As it was asked for, in full.
        tree: What it shows; for ``KitPath``.
    """

    def __init__(self, resolved: ResolvedTree, served: ServedKit, stack: contextlib.ExitStack) -> None:
        """Take over what has been opened; ``stack`` closes it."""
        kit = resolved.kits[0]
        self._served = served
        self._kit = kit
        self._pid = os.getpid()
        self._idle = threading.Condition()
        self._users = 0
        self._finalizer = weakref.finalize(self, _close, stack, self._pid)
        self.reference = resolved.reference
        self.tree: Tree = served.tree

    @property
    def id(self) -> str:
        """The ModelKitID: ``sha256:…``."""
        return str(self._kit.manifest.digest)

    @property
    def kitfile(self) -> Kitfile | None:
        """Its Kitfile; None for a ModelPack artifact without one."""
        return self._kit.kitfile

    @property
    def manifest(self) -> bytes:
        """The manifest as published; its digest is the ModelKitID."""
        return self._kit.manifest.raw

    @property
    def config(self) -> bytes:
        """The config as published."""
        return self._kit.config

    @property
    def created(self) -> datetime | None:
        """When it was made, in UTC; None when it does not say so."""
        seconds = self._kit.manifest.created_s
        return datetime.fromtimestamp(seconds, UTC) if seconds else None

    @property
    def parent(self) -> str | None:
        """The ModelKitID of the ModelKit that it was committed over, which may be gone; None when there was none.

        Raises:
            LineageMalformed: when its annotation is no ModelKitID.
        """
        parent = self._lineage.parent
        return None if parent is None else str(parent)

    @property
    def parent_reference(self) -> str | None:
        """What its parent was called then.

        Raises:
            LineageMalformed: when the annotation that names the parent is no ModelKitID.
        """
        return self._lineage.parent_reference or None

    @property
    def message(self) -> str:
        """What was said about the change when it was committed.

        Raises:
            LineageMalformed: when the annotation that names the parent is no ModelKitID.
        """
        return self._lineage.message

    def files(self) -> KitPath:
        """The root of its files, as ``kitfs unpack`` would write them."""
        return KitPath(self)

    def __truediv__(self, child: str | os.PathLike[str]) -> KitPath:
        return self.files() / child

    @property
    def model(self) -> KitPath | None:
        """Its model, a file or a directory, wherever the Kitfile has it; None when it has none."""
        return None if self.tree.model is None else KitPath(self, self.tree.model)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Give everything back; waits for reads that are under way in other threads. Harmless when closed."""
        if os.getpid() != self._pid:
            return
        with self._idle:
            while self._users:
                self._idle.wait()
            self._finalizer()

    def open_node(self, node: Node) -> OpenFile:
        """Open a file of the tree; for ``KitPath``.

        Raises:
            KitfsError: when the store can not give it.
        """
        return self._served.open(node.number)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Keep it open for the length of a block; for its paths and files.

        Raises:
            ModelKitClosed: when it is closed.
            ModelKitForked: when it was opened by another process.
        """
        if os.getpid() != self._pid:
            raise ModelKitForked(self.reference)
        with self._idle:
            if self.closed:
                raise ModelKitClosed(self.reference)
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                if not self._users:
                    self._idle.notify_all()

    @property
    def _lineage(self) -> Lineage:
        return read_lineage(self._kit.manifest)

    def __repr__(self) -> str:
        return f"<kitfs.ModelKit {self.reference}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(stack: contextlib.ExitStack, pid: int) -> None:
    """Close what a ModelKit holds; not in a forked child, where all of it is the parent's."""
    if os.getpid() == pid:
        stack.close()
