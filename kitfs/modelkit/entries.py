"""What of a tree belongs into one layer, in the order of kit's tars, wherever the tree lies.

A tree on a disk (``walk``) and a parent's with the changes of a staging directory (``merged_source``) are walked alike.
The order is that of Go's ``filepath.Walk``: a directory before what it holds, names of a directory in byte order.
Directories above the layer's path come first, then the path itself, then all below it. Used by pack and derive; reads
only what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple, Protocol, TypeVar

from kitfs.archive.tar_toc import MemberKind
from kitfs.errors import KitfsError
from kitfs.layer.known import KnownPart
from kitfs.modelkit.ignore import LayerRules
from kitfs.modelkit.nodes import MemberContent

DEPTH_MAX = 200
"""Directories inside each other; on a disk each keeps one descriptor open while it is walked."""

META_NAME = ".kitfs"
"""The folder that a mount shows at its root; never packed, so no folder gives it."""

Advance = Callable[[int], None]
"""Told how many more bytes of files were read; what it raises ends the stream."""


class PathUnreadable(KitfsError):
    """A file or directory that can not be packed.

    Attributes:
        path: Relative to the packed directory.
        reason: What the system says, or what is wrong.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"can not pack {path!r}: {reason}")
        self.path = path
        self.reason = reason


class Reading(NamedTuple):
    """An open file.

    Attributes:
        mode: Permission bits.
        size: How many bytes ``pieces`` gives, or an error.
        pieces: Its bytes.
        known: The same, when the store knows digest and checksums of them; one of the two is read.
    """

    mode: int
    size: int
    pieces: Iterator[bytes]
    known: KnownPart | None = None


class Entry(Protocol):
    """One file or directory; valid until the walk goes on."""

    @property
    def path(self) -> str:
        """Relative to the top of the tree."""

    @property
    def kind(self) -> MemberKind:
        """File or directory."""

    @property
    def mode(self) -> int:
        """Permission bits."""

    @property
    def size(self) -> int:
        """Bytes of a file."""

    @property
    def member(self) -> MemberContent | None:
        """Where a file's bytes lie when a layer of the parent has them, untouched."""

    def open(self, advance: Advance) -> AbstractContextManager[Reading]:
        """The file's bytes.

        Raises:
            PathUnreadable: when it can not be opened, or is no regular file any more.
        """
        ...


EntryT = TypeVar("EntryT", bound=Entry)


class Folder(Protocol[EntryT]):
    """An open directory of a tree."""

    def get(self, name: str) -> EntryT:
        """One entry.

        Raises:
            PathUnreadable: when there is none.
        """
        ...

    def iter_entries(self) -> Iterator[EntryT]:
        """Its files and directories, names in byte order.

        Raises:
            PathUnreadable: when they can not be read.
        """
        ...

    def enter(self, entry: EntryT) -> AbstractContextManager[Folder[EntryT]]:
        """Open a directory of it.

        Raises:
            PathUnreadable: when it can not be opened.
        """
        ...


def iter_layer(top: Folder[EntryT], layer_path: str, rules: LayerRules) -> Iterator[EntryT]:
    """The files and directories of one layer, in order.

    Args:
        top: The tree's root, open.
        layer_path: Cleaned path of the layer.
        rules: What it leaves out.

    Raises:
        PathUnreadable: when something can not be read, or lies too deep.
    """
    with ExitStack() as stack:
        folder = top
        for name in [] if layer_path == "." else layer_path.split("/"):
            entry = folder.get(name)
            is_directory = entry.kind is MemberKind.DIRECTORY
            if not rules.leaves_out(entry.path):
                yield entry
            elif rules.prunes or not is_directory:
                return
            if not is_directory:
                return
            folder = stack.enter_context(folder.enter(entry))
        yield from _walk(folder, rules)


def _walk(top: Folder[EntryT], rules: LayerRules) -> Iterator[EntryT]:
    with ExitStack() as stack:
        levels = [(top, top.iter_entries(), stack)]
        while levels:
            folder, entries, _ = levels[-1]
            entry = next(entries, None)
            if entry is None:
                levels.pop()[2].close()
                continue
            left_out = rules.leaves_out(entry.path)
            if not left_out:
                yield entry
            if entry.kind is MemberKind.DIRECTORY and not (left_out and rules.prunes):
                if len(levels) >= DEPTH_MAX:
                    raise PathUnreadable(entry.path, f"more than {DEPTH_MAX} directories inside each other")
                level = stack.enter_context(ExitStack())
                inner = level.enter_context(folder.enter(entry))
                levels.append((inner, inner.iter_entries(), level))
