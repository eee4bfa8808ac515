"""Files that no entry of a Kitfile claims: a commit would drop them, so it stops and lists them.

Used by derive. What ``.kitignore`` names is left out on purpose; the Kitfile and ``.kitignore`` themselves belong to no
layer. Pure, but for the tree that it is given.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator

from kitfs.archive.tar_toc import MemberKind
from kitfs.errors import KitfsError
from kitfs.modelkit.entries import Entry
from kitfs.modelkit.ignore import IgnoreRules, is_within

SHOWN_MAX = 20


class FilesUntracked(KitfsError):
    """Files that would not be in the child.

    Attributes:
        lines: One for each, with its reason where there is a special one.
    """

    hint = "add entries to the Kitfile, or name them in .kitignore, or leave them out with --ignore-untracked"

    def __init__(self, lines: list[str]) -> None:
        shown = [f"  {line}" for line in lines[:SHOWN_MAX]]
        more = [f"  and {len(lines) - SHOWN_MAX} more"] if len(lines) > SHOWN_MAX else []
        what = "a file is" if len(lines) == 1 else f"{len(lines)} files are"
        super().__init__("\n".join([f"{what} under no entry of the Kitfile:", *shown, *more]))
        self.lines = lines


def iter_untracked(
    entries: Iterable[Entry],
    list_others: Callable[[], Iterable[tuple[str, int]]],
    rules: IgnoreRules,
    claimed: frozenset[str],
    borrowed: frozenset[str],
) -> Iterator[str]:
    """What would be dropped, one line each, in the order of the tree; then what no ModelKit can hold.

    Args:
        entries: All files and directories that ``.kitignore`` does not name.
        list_others: Path and ``st_mode`` of links, devices and the like; asked once all entries were seen.
        rules: Those of ``.kitignore``.
        claimed: Cleaned paths of the Kitfile's entries.
        borrowed: Cleaned paths of the entries of a ModelKit that ``model.path`` names.
    """
    for entry in entries:
        if entry.kind is MemberKind.DIRECTORY or _is_within(entry.path, claimed):
            continue
        if not _is_within(entry.path, borrowed):
            yield entry.path
        elif entry.member is None:
            yield f"{entry.path} (changed; its bytes are the ModelKit's that model.path names)"
    ignoring = rules.layer(".")
    for path, mode in list_others():
        if not ignoring.leaves_out(path):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
            yield f"{path} ({what}, which no layer can hold)"


def _is_within(path: str, outer: frozenset[str]) -> bool:
    return any(is_within(path, other) for other in outer)
