"""A staging directory as a tree that layers are made of: the parent's bytes from the store, changed ones from the disk.

Used by derive. The mount is not touched: what is unchanged is read from the parent's layers, verified, and only when a
layer that holds it is written anew. A file that somebody has open for writing is refused, since it is about to change.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kitfs.archive.tar_toc import MemberKind
from kitfs.digest import Digest
from kitfs.layer.known import KnownPart
from kitfs.layer.policy import Materialise
from kitfs.modelkit.entries import Advance, PathUnreadable, Reading, iter_layer
from kitfs.modelkit.ignore import IgnoreRules
from kitfs.modelkit.merged import MergedEntry, MergedTree, Place
from kitfs.modelkit.nodes import InlineContent, MemberContent
from kitfs.modelkit.pack_source import Source
from kitfs.modelkit.upper import UpperKind, join
from kitfs.modelkit.walk import iter_file, refuse_writers
from kitfs.store.store import Store

if TYPE_CHECKING:
    from kitfs.layer.known_layer import KnownLayer
    from kitfs.layer.reader import LayerReader

_PIECE_SIZE = 1 << 20


@dataclass(slots=True)
class Readers:
    """Readers of the parent's layers, opened once each; closed at the end of a ``with``. Thread-safe.

    Reading makes no files of members: a layer is read through once.
    """

    store: Store
    _open: dict[Digest, tuple[LayerReader, KnownLayer]] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def iter_member(self, content: MemberContent, size: int, advance: Advance) -> Iterator[bytes]:
        """A member's bytes, verified.

        Raises:
            LayerCorrupt, BlobNotFound: when the store does not have them.
        """
        member = self._layer(content.layer)[0].open_member(content.index)
        for start in range(0, size, _PIECE_SIZE):
            data = member.read(start, min(start + _PIECE_SIZE, size))
            advance(len(data))
            yield bytes(data)

    def find_known(self, content: MemberContent, advance: Advance) -> KnownPart | None:
        """A member of which the store knows what a new layer needs; None when it does not.

        Raises:
            LayerCorrupt, BlobNotFound: when the store does not have it.
        """
        found = self._layer(content.layer)[1].find(content.index)
        return KnownPart(found.member, _tell(found.pieces, advance)) if found is not None else None

    def _layer(self, layer: Digest) -> tuple[LayerReader, KnownLayer]:
        with self._lock:
            known = self._open.get(layer)
        if known is not None:
            return known
        from kitfs.layer.known_layer import KnownLayer
        from kitfs.layer.reader import LayerReader  # 20 ms that a child of changed files alone does not need

        reader = LayerReader(self.store, layer, materialise=Materialise.NEVER)
        opened = reader, KnownLayer(self.store, reader)
        with self._lock:
            kept = self._open.setdefault(layer, opened)
            if kept is opened:
                self._stack.callback(reader.close)
        if kept is not opened:
            reader.close()
        return kept

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _tell(pieces: Iterator[bytes | memoryview], advance: Advance) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        advance(len(piece))
        yield piece


@dataclass(frozen=True, slots=True)
class StagedEntry:
    """One file or directory of a staging directory over its parent.

    Attributes:
        merged: What it is.
        place: What a directory holds.
        tree: Where that comes from.
        readers: Of the parent's layers.
    """

    merged: MergedEntry
    place: Place | None
    tree: MergedTree
    readers: Readers

    @property
    def path(self) -> str:
        """Relative to the root."""
        return os.fsdecode(self.merged.path)

    @property
    def kind(self) -> MemberKind:
        """File or directory."""
        return self.merged.kind

    @property
    def mode(self) -> int:
        """Permission bits that a child records."""
        return self.merged.mode

    @property
    def size(self) -> int:
        """Bytes of a file."""
        return self.merged.size

    @property
    def member(self) -> MemberContent | None:
        """Where the bytes lie in a layer of the parent, when they are untouched."""
        content = self.merged.node.content if self.merged.node is not None else None
        return content if isinstance(content, MemberContent) else None

    @contextmanager
    def open(self, advance: Advance) -> Iterator[Reading]:
        """The file's bytes.

        Raises:
            UpperUnreadable: when it can not be opened, or is no regular file any more.
            FileOpenForWriting: when somebody has it open for writing.
        """
        member = self.member
        if member is not None:
            pieces = self.readers.iter_member(member, self.size, advance)
            yield Reading(self.mode, self.size, pieces, self.readers.find_known(member, advance))
        elif self.merged.node is not None:
            content = self.merged.node.content
            assert isinstance(content, InlineContent)  # a file is a member's or ours
            advance(self.size)
            yield Reading(self.mode, self.size, iter([content.data]))
        else:
            with self.tree.open_upper(self.merged) as (fd, status):
                refuse_writers(fd, self.path)
                yield Reading(self.mode, status.st_size, iter_file(fd, status, self.path, advance))


class MergedFolder:
    """A directory of a staging directory over its parent."""

    def __init__(self, tree: MergedTree, readers: Readers, path: bytes = b"", place: Place | None = None) -> None:
        """Begin.

        Args:
            tree: The whole.
            readers: Of the parent's layers.
            path: The directory's.
            place: What it holds; the root's when left out.
        """
        self._tree = tree
        self._readers = readers
        self._path = path
        self._place = place or tree.root

    def get(self, name: str) -> StagedEntry:
        """One entry.

        Raises:
            PathUnreadable: when there is none.
        """
        raw = os.fsencode(name)
        found = self._tree.look_up(self._place, self._path, raw)
        if found is None:
            raise PathUnreadable(os.fsdecode(join(self._path, raw)), os.strerror(errno.ENOENT))
        return StagedEntry(found[0], found[1], self._tree, self._readers)

    def iter_entries(self) -> Iterator[StagedEntry]:
        """Its files and directories, names in byte order."""
        for entry, place in self._tree.iter_place(self._place, self._path):
            yield StagedEntry(entry, place, self._tree, self._readers)

    def enter(self, entry: StagedEntry) -> nullcontext[MergedFolder]:
        """A directory of it."""
        return nullcontext(MergedFolder(self._tree, self._readers, entry.merged.path, entry.place))


class MergedSource(Source):
    """A staging directory over its parent, with what ``.kitignore`` and the Kitfile say of it."""

    def __init__(self, tree: MergedTree, readers: Readers, rules: IgnoreRules, warn: Callable[[str], None]) -> None:
        super().__init__(rules, warn)
        self._tree = tree
        self._readers = readers

    def iter_entries(self, path: str) -> Iterator[StagedEntry]:
        """See ``entries.iter_layer``."""
        if find_mode(self._tree, path) is None:  # of a layer without files, that the parent has too
            return iter(())
        return iter_layer(MergedFolder(self._tree, self._readers), path, self.rules.layer(path))

    def has_directory(self, path: str) -> bool:
        """Whether there is a directory at a cleaned path."""
        return stat.S_ISDIR(find_mode(self._tree, path) or 0)

    def has_file(self, path: str) -> bool:
        """Whether there is a file at a cleaned path."""
        return stat.S_ISREG(find_mode(self._tree, path) or 0)

    def iter_written(self) -> Iterator[str]:
        """Paths of all files in the upper directory."""
        pending = [(b"", self._tree.root.upper)]
        while pending:
            above, directory = pending.pop()
            for name, entry in directory.children.items() if directory is not None else ():
                if entry.kind is UpperKind.DIRECTORY:
                    pending.append((join(above, name), entry))
                elif entry.kind is UpperKind.FILE:
                    yield os.fsdecode(join(above, name))

    def list_others(self) -> list[tuple[str, int]]:
        """Path and ``st_mode`` of links, devices and the like in the upper directory."""
        return [(os.fsdecode(path), mode) for path, mode in self._tree.others]

    def unclaimed(self) -> MergedSource:
        """The same tree, no entry claiming anything of it."""
        return MergedSource(self._tree, self._readers, self.rules.without_entries(), lambda _text: None)


def find_mode(tree: MergedTree, path: str) -> int | None:
    """The ``st_mode`` of what is at a cleaned path, links and devices too; None for nothing."""
    raw = os.fsencode(path)
    found = tree.find(raw) if path != "." else None
    if found is not None or path == ".":
        is_directory = found is None or found.kind is MemberKind.DIRECTORY
        return stat.S_IFDIR if is_directory else stat.S_IFREG
    return next((mode for other, mode in tree.others if other == raw), None)
