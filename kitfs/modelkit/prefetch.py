"""Materialising ahead: members of a ModelKit become files before anybody reads them.

Used by ``kitfs prefetch``. ``plan`` says which members some paths of a tree need, ``Prefetch`` makes them one after the
other and tells how far it is. What it made and what was there is held by a lease until the end, so making room for one
never takes another of the same command; nothing that somebody has open goes either. An interrupt leaves whole members
or none: what is under way is given up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kitfs.digest import Digest
from kitfs.errors import KitfsError, NotFoundError
from kitfs.layer.reader import LayerReader
from kitfs.modelkit.tree import MemberContent, Node, NodeNotFound, Tree
from kitfs.progress import Progress, Step
from kitfs.store.errors import BlobNotFound
from kitfs.store.store import Store

_ATTEMPTS = 2
_STEPS_MAX = 24  # files of a layer, each with a line of its own


class PathNotFound(NotFoundError):
    """A path that the ModelKit does not have.

    Attributes:
        path: The path.
        reference: The ModelKit.
    """

    def __init__(self, path: bytes, reference: str) -> None:
        super().__init__(f"{path.decode('utf-8', 'backslashreplace')!r} is not in {reference}")
        self.path = path
        self.reference = reference


class QuotaExceeded(KitfsError):
    """Members that do not fit beside what is open, held or pinned.

    Attributes:
        count: How many.
        size: Bytes of them.
        used: Bytes that members take now.
        limit: Bytes that they may take.
    """

    def __init__(self, count: int, size: int, used: int, limit: int) -> None:
        super().__init__(
            f"{count} {'file' if count == 1 else 'files'} of {size} bytes did not fit: "
            f"materialised members take {used} of the {max(limit, 0)} bytes that they may, and what is in use stays"
        )
        self.hint = "raise cache.size_max, free space on the disk, or name fewer paths"
        self.count, self.size, self.used, self.limit = count, size, used, limit


@dataclass(frozen=True, slots=True)
class Wanted:
    """A member that is to be a file.

    Attributes:
        path: Where the ModelKit shows it (first).
        layer: Its layer.
        index: Its place in the layer's table of contents.
        size: Bytes.
    """

    path: bytes
    layer: Digest
    index: int
    size: int


@dataclass(slots=True)
class PrefetchReport:
    """What became of each member.

    Attributes:
        made: Materialised now.
        present: There before.
        unfit: Not materialised, for want of room.
        in_place: Not materialised, because they are read from a layer that is not compressed.
    """

    made: list[Wanted] = field(default_factory=list)
    present: list[Wanted] = field(default_factory=list)
    unfit: list[Wanted] = field(default_factory=list)
    in_place: list[Wanted] = field(default_factory=list)


def plan(tree: Tree, paths: Sequence[bytes], reference: str) -> list[Wanted]:
    """The members that paths of a tree need, each once, in order of the tree.

    Args:
        tree: What the ModelKit shows.
        paths: Files and directories relative to its root, whose links are followed; none: everything.
        reference: The ModelKit, for the error.

    Raises:
        PathNotFound: when it has no such path.
    """
    wanted_nodes = {_find(tree, path, reference).number for path in paths} or {0}
    found: dict[tuple[Digest, int], Wanted] = {}
    for path, node in tree.iter_paths():
        if node.parent in wanted_nodes and (node.number not in wanted_nodes):
            wanted_nodes.add(node.number)
        if node.number in wanted_nodes and isinstance(node.content, MemberContent):
            content = node.content
            found.setdefault((content.layer, content.index), Wanted(path, content.layer, content.index, node.size))
    return list(found.values())


def _find(tree: Tree, path: bytes, reference: str) -> Node:
    cleaned = b"/".join(name for name in path.split(b"/") if name not in (b"", b"."))
    try:
        return tree.follow_path(cleaned)
    except NodeNotFound:
        raise PathNotFound(path, reference) from None


class Prefetch:
    """Materialises members; a context manager that gives up what is under way when it is left."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self.report = PrefetchReport()
        self._store = store
        self._progress = progress
        self._stack = contextlib.ExitStack()
        self._lease = self._stack.enter_context(store.lease("prefetch"))

    def hold(self, manifests: Iterable[Digest]) -> None:
        """Keep ModelKits until the end.

        Raises:
            BlobNotFound: when one is not there any more.
            StoreWriteFailed: when it can not be held.
        """
        for manifest in manifests:
            self._lease.hold(manifest)

    def run(self, wanted: Iterable[Wanted]) -> None:
        """Materialise members, layer by layer; those that do not fit are passed over and noted.

        On disk when this returns: every member that the report calls made or present, verified, until it is evicted.

        Raises:
            LayerCorrupt: when a layer does not give a member's bytes.
            KitfsError, OSError: when the store or the disk fails.
        """
        by_layer: dict[Digest, list[Wanted]] = {}
        for member in wanted:
            by_layer.setdefault(member.layer, []).append(member)
        for layer, members in by_layer.items():
            with LayerReader(self._store, layer) as reader:
                self._run_layer(reader, sorted(members, key=lambda member: reader.toc[member.index].offset))

    def _run_layer(self, reader: LayerReader, members: list[Wanted]) -> None:
        missing = [member for member in members if not self._is_settled(reader, member)]
        if missing and reader.is_decoded_whole and not self._store.make_room(_missing_size(self._store, reader)):
            self.report.unfit += missing
            return
        if len(missing) <= _STEPS_MAX:
            for member in missing:
                step = self._progress.begin(_shown(member.path), member.size)
                if self._make(reader, member, step):
                    step.finish()
            return
        step = self._progress.begin(_name_all(missing), sum(member.size for member in missing))
        for member in missing:
            self._make(reader, member, step)
        step.finish()

    def _is_settled(self, reader: LayerReader, member: Wanted) -> bool:
        """Whether nothing is to be made: the member is there, and held now, or is read in place."""
        if member.size == 0:
            self.report.present.append(member)
            return True
        if self._is_held(reader, member):
            self.report.present.append(member)
            return True
        if not reader.is_materialisable:
            self.report.in_place.append(member)
            return True
        return False

    def _is_held(self, reader: LayerReader, member: Wanted) -> bool:
        """Whether the member is a file that can be believed, and that this command keeps from now on."""
        digest = _digest_of(reader, member)
        if not self._lease.holds(digest):
            file = reader.open_member(member.index)  # nobody evicts it while it is open
            if file.state != "native":
                return False
            with contextlib.suppress(BlobNotFound):
                self._lease.hold(digest)
        return self._lease.holds(digest)

    def _make(self, reader: LayerReader, member: Wanted, step: Step) -> bool:
        """Make a member a file and note it; False when there is no room, or it is evicted as fast as it is made."""
        is_made = self._is_held(reader, member)
        if is_made:  # made along with another
            step.advance(member.size)
        for _ in range(_ATTEMPTS):
            if is_made:
                break
            reader.materialise_member(member.index, step.advance)
            is_made = self._is_held(reader, member)
        (self.report.made if is_made else self.report.unfit).append(member)
        return is_made

    def check(self) -> None:
        """Say what did not fit.

        Raises:
            QuotaExceeded: when something did not.
        """
        if self.report.unfit:
            used, limit = self._store.measure_members()
            raise QuotaExceeded(len(self.report.unfit), sum(member.size for member in self.report.unfit), used, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _name_all(members: list[Wanted]) -> str:
    folder = os.path.commonpath([member.path.rpartition(b"/")[0] for member in members])
    return f"{_shown(folder) or '.'} ({len(members)} files)"


def _digest_of(reader: LayerReader, member: Wanted) -> Digest:
    raw = reader.toc[member.index].digest
    assert raw is not None  # files have one
    return Digest.from_raw(raw)


def _missing_size(store: Store, reader: LayerReader) -> int:
    """Bytes that decoding a whole layer adds to the members of the store."""
    sizes = {member.digest: member.size for member in reader.toc if member.digest is not None}
    return sum(size for digest, size in sizes.items() if store.find_member(Digest.from_raw(digest)) is None)
