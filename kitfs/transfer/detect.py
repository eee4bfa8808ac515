"""Find out what kind of source a path is, by what lies in it and not by its name.

==============================================================  ==============================================
what lies there                                                 what it is
==============================================================  ==============================================
a file                                                          tar archive of an OCI layout
a folder with a ``storage`` folder and no ``oci-layout``        kit's home
a folder with ``…-index.json`` of a repository                  kit's storage, 0.3 and newer
``oci-layout``, below a ``storage`` folder that is kit's        one repository of kit's storage, 0.1 and 0.2
``oci-layout``                                                  OCI layout
a folder with layouts at ``<host>/<repository>``                kit's storage, 0.1 and 0.2
==============================================================  ==============================================
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kitfs.errors import UsageError
from kitfs.oci.reference import ReferenceMalformed, parse_repository
from kitfs.transfer.kit_storage import STORAGE, KitStorage, holds_repositories, storage_folder
from kitfs.transfer.oci_archive import LayoutArchive
from kitfs.transfer.oci_layout import LayoutFolder
from kitfs.transfer.source import Source, SourceNotFound, SourceNotRecognised

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class RepositoryNotNeeded(UsageError):
    """``--as`` was given for kit's storage, where every ModelKit has its repository."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"--as names the repository of bare tags; those in {path} have theirs")
        self.path = path


def open_source(path: Path, *, repository: str | None = None) -> Source:
    """Open what lies at a path for import; the caller closes it.

    Args:
        path: A folder or an archive.
        repository: What bare tags of a layout belong to; by default ``localhost/<name of the layout>``.

    Raises:
        SourceNotFound: when nothing is there.
        SourceNotRecognised: when it is none of the kinds above.
        RepositoryNotNeeded: when a repository was given for kit's storage.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFound(path) from None
    if stat.S_ISREG(mode):
        return _open_archive(path, repository)
    if not stat.S_ISDIR(mode):
        raise SourceNotRecognised(path, "neither a file nor a folder")
    source = _open_folder(path, repository)
    if repository is not None and isinstance(source, KitStorage):
        raise RepositoryNotNeeded(path)
    return source


def _open_archive(path: Path, repository: str | None) -> Source:
    with path.open("rb") as file:
        head = file.read(512)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise SourceNotRecognised(path, f"it is compressed with {name}; decompress it first")
    if len(head) < 512:
        raise SourceNotRecognised(path, "too short for a tar archive")
    return LayoutArchive(path, repository=repository)


def _open_folder(path: Path, repository: str | None) -> Source:
    if (path / "oci-layout").exists():
        if holds_repositories(path):
            return KitStorage(path)
        above = _storage_above(path)
        return KitStorage(above[0], only=above[1]) if above else LayoutFolder(path, repository=repository)
    storage = storage_folder(path)
    if storage is not None:
        return KitStorage(storage)
    if path.name == STORAGE or holds_repositories(path):
        return KitStorage(path)
    raise SourceNotRecognised(path, "no oci-layout in it, and no repositories of kit")


def _storage_above(path: Path) -> tuple[Path, str] | None:
    """kit's ``storage`` folder that a repository's folder lies in, and the repository, if that is so."""
    path = Path(os.path.realpath(path))
    for folder in path.parents:
        if folder.name != STORAGE:
            continue
        name = path.relative_to(folder).as_posix()
        host = name.split("/", 1)[0]
        if host == "localhost" or "." in host or ":" in host:
            try:
                return folder, parse_repository(name)
            except ReferenceMalformed:
                return None
    return None
