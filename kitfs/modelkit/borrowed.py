"""Files of the ModelKits that ``model.path`` leads to: a child shows them and does not hold them.

Used by derive, to find out which of them were changed in a tree: that can not be committed, and is said. Reads only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kitfs.modelkit.derive_parent import Parent, has_digest
from kitfs.modelkit.entries import Entry
from kitfs.modelkit.nodes import MemberContent
from kitfs.modelkit.resolve import Kit, is_model
from kitfs.store.records import KIND_FILE


class _File(NamedTuple):
    """One file of theirs."""

    mode: int
    size: int
    digest: bytes | None
    content: MemberContent


class Borrowed:
    """What they show.

    Attributes:
        paths: Cleaned paths of their entries.
    """

    def __init__(
        self, parent: Parent, kits: Sequence[Kit], paths: frozenset[str], *, former: Sequence[Kit], is_staged: bool
    ) -> None:
        """Read their tables of contents.

        Args:
            parent: Knows members' digests.
            kits: The ModelKits that ``model.path`` leads to.
            paths: Cleaned paths of their entries.
            former: Those that the parent's leads to.
            is_staged: Whether the tree is a staging directory, which shows what the parent does; else it may hold
                these files or not.
        """
        self.paths = paths
        self._parent = parent
        self._is_staged = is_staged
        self._files = dict(_iter_files(parent, kits))
        ids = [[kit.manifest.digest for kit in chain] for chain in (kits, former)]
        self._former = {} if ids[0] == ids[1] else dict(_iter_files(parent, former))

    def is_same(self, entry: Entry) -> bool | None:
        """Whether a file is what they have at its path; None when they have none there.

        Raises:
            PathUnreadable, UpperUnreadable, FileChanged, FileOpenForWriting: when it can not be compared.
        """
        former = self._former.get(entry.path)
        if former is not None and (former.content, former.mode) == (entry.member, entry.mode):
            return True  # it goes with the Kitfile's former model.path, untouched
        file = self._files.get(entry.path)
        if file is None:
            return None
        if entry.member is None:
            is_mode = entry.mode == file.mode if self._is_staged else _may_be_umask(entry.mode, file.mode)
            return is_mode and entry.size == file.size and has_digest(entry, file.digest)
        if entry.mode != file.mode:
            return False
        digest = self._parent.find_digest(entry.member)
        return entry.member == file.content or (digest is not None and digest == file.digest)

    def has_file(self, path: str) -> bool:
        """Whether they show a file at a path."""
        return path in self._files

    def list_missing(self, seen: set[str]) -> list[str]:
        """Those that a staging directory over them does not show any more.

        Args:
            seen: Files of the tree.
        """
        if not self._is_staged or self._former:
            return []
        return [path for path in self._files if path not in seen]


def _may_be_umask(mode: int, recorded: int) -> bool:
    """Whether a file with a recorded mode may have got this one when it was unpacked."""
    return not mode & ~recorded and not recorded & ~mode & 0o700


def _iter_files(parent: Parent, kits: Sequence[Kit]) -> Iterator[tuple[str, _File]]:
    for kit in kits:
        for layer in filter(is_model, kit.layers):
            for index, member in enumerate(parent.open_toc(layer.digest)):
                if layer.raw_path is not None:
                    path, mode = layer.raw_path, layer.raw_mode
                elif member.kind == KIND_FILE:
                    path = layer.prefix + b"/" + member.path if layer.prefix else member.path
                    mode = member.mode
                else:
                    continue
                content = MemberContent(layer.digest, index)
                yield os.fsdecode(path), _File(mode, member.size, member.digest, content)
