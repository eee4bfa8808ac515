"""A place in a ModelKit, in the shape of ``importlib.resources.abc.Traversable`` and of what ``pathlib`` calls things.

Not an ``os.PathLike``: the file has no path on disk, and a program that took one for it would open another file.
``importlib.resources.as_file`` gives a real file for libraries that insist on one.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, overload

from kitfs.api.errors import ModelKitReadOnly, PathIsDirectory, PathIsFile, PathMissing
from kitfs.api.file import KitFile
from kitfs.modelkit.nodes import Node, NodeKind, NodeNotFound

if TYPE_CHECKING:
    from kitfs.api.kit import ModelKit

BUFFER_SIZE = 128 << 10
"""Bytes that a small read takes along: a span of a plain layer, which is verified as a whole anyhow."""

LISTED_MAX = 4096
"""Entries of a directory that are looked at in one go, a batch of an outline."""


class KitPath:
    """A place in a ModelKit, whether or not something is there; immutable and cheap to make.

    Names are text as ``os.fsdecode`` gives it. The link ``model``, where a mount of the ModelKit has one, is followed,
    and is not among the entries that ``iterdir`` gives.
    """

    __slots__ = ("_kit", "_path")

    def __init__(self, kit: ModelKit, path: bytes = b"") -> None:
        self._kit = kit
        self._path = path

    @property
    def name(self) -> str:
        """The last component; empty for the root."""
        return os.fsdecode(self._path.rpartition(b"/")[2])

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on, as ``pathlib`` has it."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> KitPath:
        """The directory that holds it; the root's is its own."""
        return KitPath(self._kit, self._path.rpartition(b"/")[0])

    def joinpath(self, *descendants: str | os.PathLike[str]) -> KitPath:
        """A place below this one. ``.`` and ``..`` are taken as text; nothing leads out of the ModelKit."""
        names = self._path.split(b"/") if self._path else []
        for name in b"/".join(map(os.fsencode, descendants)).split(b"/"):
            if name == b"..":
                del names[-1:]
            elif name not in (b"", b"."):
                names.append(name)
        return KitPath(self._kit, b"/".join(names))

    def __truediv__(self, child: str | os.PathLike[str]) -> KitPath:
        return self.joinpath(child)

    def exists(self) -> bool:
        """Whether something is there."""
        return self._find() is not None

    def is_file(self) -> bool:
        """Whether a file is there."""
        node = self._find()
        return node is not None and node.kind is NodeKind.FILE

    def is_dir(self) -> bool:
        """Whether a directory is there."""
        node = self._find()
        return node is not None and node.kind is NodeKind.DIRECTORY

    @property
    def size(self) -> int:
        """Bytes of the file; 0 for a directory.

        Raises:
            PathMissing: when nothing is there.
        """
        return self._get().size

    @property
    def mode(self) -> int:
        """Permission bits as they were packed, without setuid, setgid and sticky.

        Raises:
            PathMissing: when nothing is there.
        """
        return self._get().mode

    def iterdir(self) -> Iterator[KitPath]:
        """The entries of the directory, in the order in which their bytes lie in the layers.

        Raises:
            PathMissing: when nothing is there.
            PathIsFile: when it is a file.
        """
        node = self._get()
        if node.kind is not NodeKind.DIRECTORY:
            raise PathIsFile(str(self))
        after = 0
        while children := self._list(node.number, after):
            for child in children:
                if child.kind is not NodeKind.SYMLINK:
                    yield KitPath(self._kit, self._path + b"/" + child.name if self._path else child.name)
            after = children[-1].number

    def iter_files(self) -> Iterator[KitPath]:
        """All files below the directory, at any depth.

        Raises:
            PathMissing: when nothing is there.
            PathIsFile: when it is a file.
        """
        for entry in self.iterdir():
            if entry.is_dir():
                yield from entry.iter_files()
            else:
                yield entry

    @overload
    def open(
        self,
        mode: Literal["r", "rt"] = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...
    @overload
    def open(self, mode: Literal["rb"], *, buffering: Literal[0]) -> KitFile: ...
    @overload
    def open(self, mode: Literal["rb"], *, buffering: Literal[-1, 1] = -1) -> io.BufferedReader: ...
    @overload
    def open(self, mode: Literal["rb"], *, buffering: int) -> io.BufferedReader | KitFile: ...
    def open(
        self,
        mode: str = "r",
        *,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper | io.BufferedReader | KitFile:
        """Open the file for reading: ``rb`` for bytes, ``r`` for text, UTF-8 unless ``encoding`` says otherwise.

        Nothing is read yet. With ``rb`` and ``buffering=0`` the result is a ``KitFile``, which has ``read_range`` too.

        Raises:
            PathMissing: when nothing is there.
            PathIsDirectory: when it is a directory.
            ModelKitReadOnly: when it was to be written.
            ValueError: when it is no mode, or the ModelKit is closed.
            KitfsError: when the store can not give it.
        """
        if mode not in ("r", "rt", "rb"):
            if set(mode) & set("wax+"):
                raise ModelKitReadOnly(str(self))
            raise ValueError(f"invalid mode: {mode!r}")
        raw = self._open()
        if mode == "rb" and buffering == 0:
            return raw
        buffered: io.BufferedReader = io.BufferedReader(raw, buffering if buffering > 1 else BUFFER_SIZE)
        if mode == "rb":
            return buffered
        return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        """All bytes of the file.

        Raises:
            KitfsError, OSError, ValueError: as ``open`` and ``read_range``.
        """
        with self._open() as file:
            return file.read()

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """All text of the file, UTF-8 unless ``encoding`` says otherwise.

        Raises:
            KitfsError, OSError, ValueError: as ``open`` and ``read_range``.
        """
        with self.open("r", encoding=encoding, errors=errors) as file:
            return file.read()

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)`` of the file; no others are read, but what verifying them needs.

        Raises:
            KitfsError, OSError, ValueError: as ``open`` and ``KitFile.read_range``.
        """
        with self._open() as file:
            return file.read_range(start, stop)

    def __str__(self) -> str:
        return os.fsdecode(self._path) or "."

    def __repr__(self) -> str:
        return f"<kitfs.KitPath {str(self)!r} of {self._kit.reference}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KitPath) and self._kit is other._kit and self._path == other._path

    def __hash__(self) -> int:
        return hash((id(self._kit), self._path))

    def __lt__(self, other: KitPath) -> bool:
        return self._path.split(b"/") < other._path.split(b"/")

    def _list(self, number: int, after: int) -> list[Node]:
        """So many entries of a directory at a time as may be held: between them the ModelKit may be closed."""
        with self._kit.using():
            return list(islice(self._kit.tree.iter_children(number, after), LISTED_MAX))

    def _find(self) -> Node | None:
        with self._kit.using():
            try:
                return self._kit.tree.follow_path(self._path)
            except NodeNotFound:
                return None

    def _get(self) -> Node:
        node = self._find()
        if node is None:
            raise PathMissing(str(self), self._kit.reference)
        return node

    def _open(self) -> KitFile:
        node = self._get()
        if node.kind is not NodeKind.FILE:
            raise PathIsDirectory(str(self))
        with self._kit.using():
            return KitFile(self._kit, str(self), self._kit.open_node(node))
