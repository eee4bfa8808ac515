"""kit's local storage as a source, in the two shapes that kit has written.

=============  ==================================================================================================
kit            on disk below ``$KITOPS_HOME/storage``
=============  ==================================================================================================
0.1, 0.2       one OCI layout per repository in ``<host>/<repository>/``; tags as ref.name annotations
0.3 and newer  one layout for all; per repository ``<base64url(host/repository)>-index.json`` (its manifests) and
               ``…-tags.json`` (tag → descriptor), either absent when empty
=============  ==================================================================================================

kit rewrites both files in place and without a lock (kitops ``pkg/lib/repo/local``), so a reader may meet half a
file: that is ``SourceMalformed``, and trying again helps. Where both shapes hold a tag, the newer one counts.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kitfs.oci.manifest import Descriptor, ManifestMalformed, parse_descriptor, parse_index
from kitfs.oci.reference import UNNAMED_REPOSITORY, Reference, ReferenceMalformed, parse_repository, parse_tag
from kitfs.oci.strict_json import decode
from kitfs.transfer.oci_layout import MARKER_SIZE_MAX, check_layout_version, name_entry
from kitfs.transfer.source import (
    ENTRIES_MAX,
    INDEX_SIZE_MAX,
    BlobFolder,
    SourceEntry,
    SourceMalformed,
    find_in_entries,
    placed,
    read_plain,
)

STORAGE = "storage"
"""Name of the folder below kit's home."""

_INDEX_NAME = re.compile(r"([-A-Za-z0-9_]+={0,3})-index\.json")
_NOT_REPOSITORIES = frozenset({"blobs", "ingest", "cache"})

DEPTH_MAX = 32
"""Deepest repository folder of the older shape; kit's registry names allow 255 bytes."""

FOLDERS_MAX = 100_000
"""Most folders that are looked at for repositories of the older shape."""


class KitStorage:
    """kit's ``storage`` folder, or one repository's folder of the older shape in it.

    Args:
        path: The ``storage`` folder.
        only: Show this repository alone; a full name.
    """

    origin = "kit"

    def __init__(self, path: Path, *, only: str | None = None) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._only = only
        self._shared = BlobFolder(path)
        self._folders: dict[str, BlobFolder] = {}

    def iter_entries(self) -> Iterator[SourceEntry]:
        """All manifests, by repository; see ``Source``.

        Raises:
            SourceMalformed: when a file of the storage breaks its format.
        """
        count = 0
        for repository in self._repositories():
            for entry in self._iter_repository(repository):
                count += 1
                if count > ENTRIES_MAX:
                    raise SourceMalformed(self.path, f"more than {ENTRIES_MAX} ModelKits")
                yield entry

    def find_entry(self, reference: Reference) -> SourceEntry | None:
        """The entry for a reference; reads no other repository's files where the reference names one."""
        if reference.repository == UNNAMED_REPOSITORY:
            return find_in_entries(self.iter_entries(), reference)
        if self._only not in (None, reference.repository):
            return None
        return find_in_entries(self._iter_repository(reference.repository), reference)

    def close(self) -> None:
        """Close descriptors; may be called again."""
        for folder in (self._shared, *self._folders.values()):
            folder.close()

    def _repositories(self) -> list[str]:
        if self._only is not None:
            return [self._only]
        return sorted({*self._shared_repositories(), *self._folder_repositories()})

    def _shared_repositories(self) -> Iterator[str]:
        for path in self.path.iterdir():
            match = _INDEX_NAME.fullmatch(path.name)
            if match is None:
                continue
            try:
                yield decode_repository(match.group(1))
            except (ValueError, ReferenceMalformed) as error:
                self.warnings.append(f"{path} does not name a repository ({error}): passed over")

    def _folder_repositories(self) -> Iterator[str]:
        for folder in iter_layout_folders(self.path):
            name = folder.relative_to(self.path).as_posix()
            try:
                yield parse_repository(name)
            except ReferenceMalformed as error:
                self.warnings.append(f"{folder} is not named like a repository ({error}): passed over")

    def _iter_repository(self, repository: str) -> Iterator[SourceEntry]:
        tagged: set[str | None] = {None}
        for entry in (*self._iter_shared(repository), *self._iter_folder(repository)):
            if entry.tag is None or entry.tag not in tagged:
                tagged.add(entry.tag)
                yield entry

    def _iter_shared(self, repository: str) -> Iterator[SourceEntry]:
        name = base64.urlsafe_b64encode(repository.encode()).decode()
        repository_shown = None if repository == UNNAMED_REPOSITORY else repository
        tags = self._read_tags(f"{name}-tags.json")
        tagged = {descriptor.digest for descriptor in tags.values()}
        for tag, descriptor in tags.items():
            yield SourceEntry(repository_shown, tag, descriptor, self._shared)
        for descriptor in self._read_index(self.path, f"{name}-index.json"):
            if descriptor.digest not in tagged:
                yield name_entry(descriptor, self._shared, repository_shown)

    def _iter_folder(self, repository: str) -> Iterator[SourceEntry]:
        folder = self.path / repository
        if repository == UNNAMED_REPOSITORY or not _is_layout(self.path, repository):
            return
        check_layout_version(read_plain(folder, "oci-layout", limit=MARKER_SIZE_MAX), folder / "oci-layout")
        blobs = self._folders.setdefault(repository, BlobFolder(folder))
        for descriptor in self._read_index(folder, "index.json"):
            yield name_entry(descriptor, blobs, repository)

    def _read_index(self, folder: Path, name: str) -> tuple[Descriptor, ...]:
        try:
            raw = read_plain(folder, name)
        except FileNotFoundError:
            return ()
        return placed(parse_index, raw, folder / name)

    def _read_tags(self, name: str) -> dict[str, Descriptor]:
        try:
            raw = read_plain(self.path, name)
        except FileNotFoundError:
            return {}
        tags = {}
        for tag, descriptor in placed(parse_tags, raw, self.path / name).items():
            try:
                tags[parse_tag(tag)] = descriptor
            except ReferenceMalformed as error:
                self.warnings.append(f"{self.path / name}: {error}: passed over")
        return tags


def parse_tags(raw: bytes) -> dict[str, Descriptor]:
    """The descriptors of a ``…-tags.json``, by tag; tags are not checked.

    Raises:
        MalformedError: when it is not an object of descriptors.
    """
    value = decode(raw, limit_bytes=INDEX_SIZE_MAX)
    if not isinstance(value, dict):
        raise ManifestMalformed("not an object of tags")
    return {tag: parse_descriptor(item, f"[{tag[:100]!r}]") for tag, item in value.items()}


def decode_repository(name: str) -> str:
    """The repository that a file name of the newer shape stands for (base64 with - and _, padded).

    Raises:
        ValueError: when it is not the base64 of UTF-8 that kit would write.
        ReferenceMalformed: when what it holds is not a repository's name.
    """
    try:
        text = base64.b64decode(name, altchars=b"-_", validate=True).decode()
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if base64.urlsafe_b64encode(text.encode()).decode() != name:
        raise ValueError("not as kit encodes names")
    if parse_repository(text) != text:
        raise ValueError("a name without its host")
    return text


def _is_layout(root: Path, name: str) -> bool:
    folder = root
    for part in name.split("/"):
        folder = folder / part
        if folder.is_symlink() or not folder.is_dir():
            return False
    return (folder / "index.json").is_file() and (folder / "oci-layout").is_file()


def iter_layout_folders(root: Path) -> Iterator[Path]:
    """Folders with a layout at ``<host>/<repository>``, in order of their names, links passed over."""
    waiting = [folder for folder in _folders(root) if folder.name == "localhost" or {".", ":"} & set(folder.name)]
    seen = 0
    while waiting:
        folder = waiting.pop()
        seen += 1
        if seen > FOLDERS_MAX:
            raise SourceMalformed(root, f"more than {FOLDERS_MAX} folders")
        if (folder / "index.json").is_file() and (folder / "oci-layout").is_file():
            yield folder
        if len(folder.relative_to(root).parts) < DEPTH_MAX:
            waiting += _folders(folder)


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as items:
        names = [item.name for item in items if item.is_dir(follow_symlinks=False)]
    return [folder / name for name in sorted(names, reverse=True) if name not in _NOT_REPOSITORIES]


def holds_repositories(folder: Path) -> bool:
    """Whether a folder looks like kit's storage: a repository's index, or layouts in folders below it."""
    if any(_INDEX_NAME.fullmatch(path.name) for path in folder.iterdir()):
        return True
    return next(iter_layout_folders(folder), None) is not None


def storage_folder(kitops_home: Path) -> Path | None:
    """kit's ``storage`` folder below its home, or None when kit has stored nothing there."""
    folder = kitops_home / STORAGE
    return folder if folder.is_dir() else None
