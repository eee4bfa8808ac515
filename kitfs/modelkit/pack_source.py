"""The directory that is packed: which of its files belong into a layer, and what a person should know about them.

Used by pack. Nothing is followed through a symbolic link, nothing is changed. Several threads may walk it at once.
"""

from __future__ import annotations

import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kitfs.archive.tar_toc import MemberKind
from kitfs.errors import UsageError
from kitfs.modelkit import walk
from kitfs.modelkit.entries import Advance, Entry, PathUnreadable, Reading
from kitfs.modelkit.ignore import IGNORE_NAME, IGNORE_SIZE_MAX, IgnoreRules, parse_ignore


class PackUnusable(UsageError):
    """A request to pack that makes no sense: no directory, a tag that is a digest, a form that a layer can not have."""


class Source(ABC):
    """A tree that layers are made of; several threads may walk it at once."""

    def __init__(self, rules: IgnoreRules, warn: Callable[[str], None]) -> None:
        """Begin.

        Args:
            rules: What belongs into which layer.
            warn: Told what a person should know.
        """
        self.rules = rules
        self._warn = warn

    @abstractmethod
    def iter_entries(self, path: str) -> Iterator[Entry]:
        """The files and directories of the layer at a cleaned path, in order.

        Raises:
            PathUnreadable: while iterating.
        """

    @abstractmethod
    def has_directory(self, path: str) -> bool:
        """Whether there is a directory at a cleaned path."""

    @abstractmethod
    def list_others(self) -> list[tuple[str, int]]:
        """Path and ``st_mode`` of what no layer can hold, as far as it was walked."""

    @abstractmethod
    def unclaimed(self) -> Source:
        """The same tree with all that ``.kitignore`` does not name in its layer ``.``; nobody is told of anything."""

    @contextmanager
    def open_file(self, path: str, advance: Advance) -> Iterator[Reading]:
        """The one file of a layer.

        Raises:
            PathsUnpackable: when the path is no file, or is left out.
            PathUnreadable: when it can not be read.
        """
        entries = self.iter_entries(path)  # an entry is good while its walk is
        for entry in entries:
            if entry.path == path and entry.kind is MemberKind.FILE:
                with entry.open(advance) as opened:
                    yield opened
                    return
        raise walk.PathsUnpackable([f"{path} is no file any more"])

    def measure(self, path: str, what: str) -> tuple[int, int]:
        """Bytes of all files of a layer, and its files and directories; warns of what would surprise.

        Raises:
            PathUnreadable: when the directory can not be read.
        """
        size = file_count = entry_count = 0
        for entry in self.iter_entries(path):
            entry_count += 1
            if entry.kind is MemberKind.FILE:
                size += entry.size
                file_count += 1
            if ".." in entry.path:
                self._warn(f"{entry.path} holds '..' in its name; kit leaves such files out and does not unpack them")
        if not file_count:
            self._warn(f"no files in the {what} layer with path {path}")
        return size, entry_count

    def find_raw_problem(self, path: str) -> str | None:
        """Why a layer can not be the bytes of one file, or None when it can."""
        if any(entry.path == path and entry.kind is MemberKind.FILE for entry in self.iter_entries(path)):
            return None
        return f"{path} is no file, or is left out by {IGNORE_NAME}; a raw layer is the bytes of one file"


class DirectorySource(Source):
    """A directory on the disk, with what ``.kitignore`` and the Kitfile say of it; get it from ``open_source``."""

    def __init__(
        self, fd: int, rules: IgnoreRules, model_link: str, warn: Callable[[str], None], check: walk.Check
    ) -> None:
        super().__init__(rules, warn)
        self._fd = fd
        self._model_link = model_link
        self._check = check
        self._skipped: dict[str, int] = {}
        self._lock = threading.Lock()

    def iter_entries(self, path: str) -> Iterator[walk.DiskEntry]:
        """See ``walk.iter_entries``."""
        return walk.iter_entries(self._fd, path, self.rules.layer(path), self._note_skipped, self._check)

    def has_directory(self, path: str) -> bool:
        """Whether there is a directory at a cleaned path."""
        return walk.has_directory(self._fd, path)

    def list_others(self) -> list[tuple[str, int]]:
        """Path and ``st_mode`` of links, devices and the like that were met; not of the link that a mount shows."""
        with self._lock:
            return sorted(self._skipped.items())

    def unclaimed(self) -> DirectorySource:
        """The same directory, no entry claiming anything of it."""
        return DirectorySource(
            self._fd, self.rules.without_entries(), self._model_link, lambda _text: None, self._check
        )

    def _note_skipped(self, path: str, mode: int) -> None:
        """Warn once of a symbolic link or device; the link that a mount shows at ``model`` is our own."""
        if stat.S_ISLNK(mode) and path == "model" and self._model_link:
            with walk.naming(path):
                if os.readlink("model", dir_fd=self._fd) == self._model_link:
                    return
        with self._lock:
            if path in self._skipped:
                return
            self._skipped[path] = mode
        what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
        self._warn(f"{path} is {what} and is not packed")


@contextmanager
def open_source(
    context: Path,
    entry_paths: Iterable[str],
    model_link: str,
    warn: Callable[[str], None],
    *,
    check: walk.Check = lambda _fd, _path: None,
) -> Iterator[DirectorySource]:
    """A directory for the time of the block.

    Args:
        context: The directory.
        entry_paths: Cleaned paths that belong to some layer, of parents too; the most specific one has a file.
        model_link: Where a link at ``model`` leads that is not worth a warning.
        warn: Told what a person should know.
        check: Refuses a file once it is open.

    Raises:
        PackUnusable: when it is no directory.
        IgnoreMalformed, PathUnreadable: when ``.kitignore`` can not be used.
    """
    try:
        fd = os.open(context, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PackUnusable(f"{context} can not be packed: {error.strerror}") from error
    try:
        rules = IgnoreRules(parse_ignore(_read_ignore(fd)), list(entry_paths))
        yield DirectorySource(fd, rules, model_link, warn, check)
    finally:
        os.close(fd)


def _read_ignore(context_fd: int) -> bytes:
    try:
        fd = os.open(IGNORE_NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=context_fd)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise PathUnreadable(IGNORE_NAME, error.strerror or type(error).__name__) from error
    with walk.naming(IGNORE_NAME), open(fd, "rb") as file:
        return file.read(IGNORE_SIZE_MAX + 1)
