"""Files that no entry of a Kitfile claims: a commit would drop them, so it stops and lists them.

Used by derive. What ``.kitignore`` names is left out on purpose; the Kitfile and ``.kitignore`` themselves belong to no
layer. Pure, but for what it is given.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from kitfs.archive.tar_toc import MemberKind
from kitfs.errors import KitfsError
from kitfs.modelkit.borrowed import Borrowed
from kitfs.modelkit.pack_source import Source

SHOWN_MAX = 20


class Untracked(NamedTuple):
    """What would be dropped, one line each, with its reason where there is a special one.

    Attributes:
        own: Files that no entry claims, in the order of the tree; then what no ModelKit can hold.
        borrowed: What was done to files of the ModelKit that ``model.path`` names.
    """

    own: list[str]
    borrowed: list[str]


class FilesUntracked(KitfsError):
    """Files that would not be in the child.

    Attributes:
        untracked: Which.
    """

    def __init__(self, untracked: Untracked, named: str) -> None:
        """Say which.

        Args:
            untracked: See the class.
            named: What ``model.path`` says.
        """
        lines = [*untracked.own, *untracked.borrowed]
        shown = [f"  {line}" for line in lines[:SHOWN_MAX]]
        more = [f"  and {len(lines) - SHOWN_MAX} more"] if len(lines) > SHOWN_MAX else []
        what = "a file is" if len(lines) == 1 else f"{len(lines)} files are"
        super().__init__("\n".join([f"{what} under no entry of the Kitfile:", *shown, *more]))
        self.untracked = untracked
        hints = ["add entries to the Kitfile", "name them in .kitignore", "leave them out with --ignore-untracked"]
        if untracked.borrowed:
            hints[0] += f", with model.path the folder itself where the model of {named} is to change"
        self.hint = ", or ".join(hints)


def find_untracked(source: Source, claimed: frozenset[str], borrowed: Borrowed | None) -> Untracked:
    """What would be dropped.

    Args:
        source: All files and directories that ``.kitignore`` does not name.
        claimed: Cleaned paths of the Kitfile's entries.
        borrowed: Files of the ModelKit that ``model.path`` names.

    Raises:
        PathUnreadable, FileChanged, UpperUnreadable, FileOpenForWriting: when the tree can not be read.
    """
    found = Untracked([], [])
    foreign = borrowed.paths if borrowed is not None else frozenset()
    for entry in source.iter_entries("."):
        if entry.kind is MemberKind.DIRECTORY:
            continue
        owner = _find_owner(entry.path, claimed | foreign)
        if owner is None:
            found.own.append(entry.path)
        elif borrowed is not None and owner not in claimed:
            problem = borrowed.find_problem(entry)
            if problem is not None:
                found.borrowed.append(f"{entry.path} ({problem})")
    leaves_out = source.rules.layer(".").leaves_out
    for path, mode in source.list_others():
        if not leaves_out(path):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
            found.own.append(f"{path} ({what}, which no layer can hold)")
    for path, problem in borrowed.iter_deleted(source.exists) if borrowed is not None else ():
        if not leaves_out(path):
            found.borrowed.append(f"{path} ({problem})")
    return found


def _find_owner(path: str, entries: frozenset[str]) -> str | None:
    """The most specific of some entries' paths that a file is at or in."""
    return next((above for above in _iter_above(path) if above in entries), None)


def _iter_above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield "."
