"""Files that no entry of a Kitfile claims: a commit would drop them, so it stops and lists them.

Used by derive. What ``.kitignore`` names is left out on purpose; the Kitfile and ``.kitignore`` themselves belong to no
layer. So do the files of a ModelKit that ``model.path`` names, as long as they are what that one has. Reads what it
must compare, changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator

from kitfs.archive.tar_toc import MemberKind
from kitfs.errors import KitfsError
from kitfs.modelkit.borrowed import Borrowed
from kitfs.modelkit.entries import Entry
from kitfs.modelkit.ignore import iter_entry_paths
from kitfs.modelkit.pack_source import Source
from kitfs.modelkit.parentage import PathTaken
from kitfs.oci.kitfile import Kitfile, clean_path

SHOWN_MAX = 20

_HINTS = ("add entries to the Kitfile", "name them in .kitignore", "leave them out with --ignore-untracked")


class FilesUntracked(KitfsError):
    """Files that would not be in the child.

    Attributes:
        lines: One for each, with its reason where there is a special one.
    """

    def __init__(self, lines: list[str], named: str = "") -> None:
        """Say which.

        Args:
            lines: See the class.
            named: What ``model.path`` says, where files of that ModelKit are among them.
        """
        shown = [f"  {line}" for line in lines[:SHOWN_MAX]]
        more = [f"  and {len(lines) - SHOWN_MAX} more"] if len(lines) > SHOWN_MAX else []
        what = "a file is" if len(lines) == 1 else f"{len(lines)} files are"
        super().__init__("\n".join([f"{what} under no entry of the Kitfile:", *shown, *more]))
        self.lines = lines
        first = f"{_HINTS[0]}, and make model.path the folder itself where the model of {named} is to change"
        self.hint = ", or ".join((first, *_HINTS[1:]) if named else _HINTS)


def find_untracked(
    source: Source, kitfile: Kitfile, borrowed: Borrowed, warn: Callable[[str], None]
) -> FilesUntracked | None:
    """What would be dropped, in the order of the tree; then what no ModelKit can hold. None for nothing.

    Args:
        source: The tree.
        kitfile: As it is now.
        borrowed: What ``model.path`` leads to.
        warn: Told of files in the place of a dataset whose bytes lie elsewhere.

    Raises:
        PathTaken: when an entry claims a file of a ModelKit that ``model.path`` names.
        PathUnreadable, UpperUnreadable, FileChanged, FileOpenForWriting: when the tree can not be read.
    """
    search = _Search(source, kitfile, borrowed)
    lines = list(search.iter_lines(warn))
    return FilesUntracked(lines, search.reference if search.is_borrowed_changed else "") if lines else None


class _Search:
    def __init__(self, source: Source, kitfile: Kitfile, borrowed: Borrowed) -> None:
        self._tree = source.unclaimed()
        self._claimed = frozenset(iter_entry_paths(kitfile))
        self._remote = {clean_path(one.path): one.remote_path for one in kitfile.datasets if one.remote_path}
        self._borrowed = borrowed
        self.reference = kitfile.model.path if kitfile.model is not None else ""
        self.is_borrowed_changed = False

    def iter_lines(self, warn: Callable[[str], None]) -> Iterator[str]:
        elsewhere: Counter[str] = Counter()
        seen = set()
        for entry in self._tree.iter_entries("."):
            if entry.kind is MemberKind.DIRECTORY:
                continue
            seen.add(entry.path)
            owner = self._find_owner(entry.path)
            if owner not in self._claimed:
                yield from self._judge(entry)
            elif self._borrowed.has_file(entry.path):
                raise PathTaken(entry.path, self.reference)
            elif owner in self._remote:
                elsewhere[owner] += 1
        ignoring = self._tree.rules.layer(".")
        for path in self._borrowed.list_missing(seen):
            if not ignoring.leaves_out(path):
                yield self._describe(path, "deleted")
        for path, mode in self._tree.list_others():
            if not ignoring.leaves_out(path):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
                yield f"{show_path(path)} ({what}, which no layer can hold)"
        for owner, count in elsewhere.items():
            what = "a file is" if count == 1 else f"{count} files are"
            warn(f"{what} left out below {show_path(owner)}: the dataset lies at {self._remote[owner]}")

    def _judge(self, entry: Entry) -> Iterator[str]:
        match self._borrowed.is_same(entry):
            case None:
                yield show_path(entry.path)
            case False:
                yield self._describe(entry.path, "changed")

    def _describe(self, path: str, what: str) -> str:
        self.is_borrowed_changed = True
        return f"{show_path(path)} ({what}; it belongs to {self.reference}, which model.path names)"

    def _find_owner(self, path: str) -> str:
        """The most specific entry that has a path, the Kitfile's own or one of a ModelKit that it names."""
        while path:
            if path in self._claimed or path in self._borrowed.paths:
                return path
            path = path.rpartition("/")[0]
        return "."


def show_path(path: str) -> str:
    """A path for people: what can not be printed is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
