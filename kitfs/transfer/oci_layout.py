"""An OCI image layout as a source: the folder, and what it shares with an archive (``oci_archive``).

https://github.com/opencontainers/image-spec, image-layout.md, version 1.0.0: ``oci-layout``, ``index.json``,
``blobs/sha256/<hex>``. Names are the annotations ``org.opencontainers.image.ref.name``: a full reference, or a bare
tag, which belongs to the repository that the caller names, else to that of ``io.containerd.image.name``, which
``kitfs export`` and containerd write beside it, else to ``localhost/<folder name>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kitfs.errors import UsageError
from kitfs.oci.manifest import ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor, parse_index
from kitfs.oci.reference import Reference, ReferenceMalformed, parse_reference, parse_repository, parse_tag
from kitfs.oci.strict_json import decode
from kitfs.transfer.source import (
    INDEX_SIZE_MAX,
    BlobFolder,
    Blobs,
    SourceEntry,
    SourceMalformed,
    find_in_entries,
    placed,
    read_plain,
)

LAYOUT_VERSION = "1.0.0"
MARKER_SIZE_MAX = 4096


def check_layout_version(raw: bytes, place: Path | str) -> None:
    """Look at the bytes of an ``oci-layout`` file.

    Raises:
        SourceMalformed: for another version or something else.
    """
    value = placed(partial(decode, limit_bytes=MARKER_SIZE_MAX, depth=8), raw, Path(place))
    version = value.get("imageLayoutVersion") if isinstance(value, dict) else None
    if version != LAYOUT_VERSION:
        raise SourceMalformed(place, f"imageLayoutVersion is {version!r:.100}, only {LAYOUT_VERSION!r} is read")


def name_entry(descriptor: Descriptor, blobs: Blobs, repository: str | None) -> SourceEntry:
    """The entry for one descriptor of an ``index.json``.

    Args:
        descriptor: As the index has it.
        blobs: Where its blobs are.
        repository: What a bare tag belongs to.

    Raises:
        ReferenceMalformed: when its name is neither a tag nor a full reference.
        RepositoryNeeded: when its name is a bare tag and there is no repository.
    """
    name = descriptor.annotations.get(ANNOTATION_REF_NAME)
    if name is None:
        return SourceEntry(repository, None, descriptor, blobs)
    if is_tag(name):
        if repository is None:
            raise RepositoryNeeded(name)
        return SourceEntry(repository, name, descriptor, blobs)
    reference = parse_reference(name, default_tag=None)
    if reference.tag is None:
        raise ReferenceMalformed(name, "neither a tag nor a repository with one")
    return SourceEntry(reference.repository, reference.tag, descriptor, blobs)


def is_tag(text: str) -> bool:
    """Whether a text is a tag by itself."""
    try:
        parse_tag(text)
    except ReferenceMalformed:
        return False
    return True


class RepositoryNeeded(UsageError):
    """A bare tag in a layout whose own name can not be a repository's."""

    hint = "name the repository with --as"

    def __init__(self, tag: str) -> None:
        super().__init__(f"the layout does not say which repository its tag {tag!r} belongs to")
        self.tag = tag


class Layout:
    """What folder and archive share: the index and its names."""

    origin = "layout"

    def __init__(self, path: Path, blobs: Blobs, repository: str | None) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._blobs = blobs
        self._repository = repository

    def _read(self, name: str, limit: int) -> bytes:
        raise NotImplementedError

    def iter_entries(self) -> Iterator[SourceEntry]:
        """All manifests of ``index.json``, in its order; see ``Source``.

        Raises:
            SourceMalformed: when a file of the layout breaks its format.
            RepositoryNeeded: when a bare tag belongs to no repository.
        """
        self.warnings.clear()
        check_layout_version(self._read("oci-layout", MARKER_SIZE_MAX), self.path / "oci-layout")
        for descriptor in placed(parse_index, self._read("index.json", INDEX_SIZE_MAX), self.path / "index.json"):
            try:
                repository = self._repository or _find_repository(descriptor) or _default_repository(self.path)
                entry = name_entry(descriptor, self._blobs, repository)
            except ReferenceMalformed as error:
                self.warnings.append(f"{self.path}: {error}: passed over")
                continue
            yield entry if entry.tag else SourceEntry(None, None, descriptor, self._blobs)

    def find_entry(self, reference: Reference) -> SourceEntry | None:
        """The entry for a reference; see ``Source``."""
        return find_in_entries(self.iter_entries(), reference)


def _find_repository(descriptor: Descriptor) -> str | None:
    """The repository that an entry's full name says, where that name ends with the entry's tag."""
    try:
        reference = parse_reference(descriptor.annotations.get(ANNOTATION_IMAGE_NAME, ""), default_tag=None)
    except ReferenceMalformed:
        return None
    return reference.repository if reference.tag == descriptor.annotations.get(ANNOTATION_REF_NAME) else None


def _default_repository(path: Path) -> str | None:
    name = path.resolve().name
    for ending in (".tar", ".oci"):
        name = name.removesuffix(ending)
    try:
        return parse_repository(f"localhost/{name}")
    except ReferenceMalformed:
        return None


class LayoutFolder(Layout):
    """A layout that is a folder.

    Args:
        path: The folder.
        repository: What bare tags belong to; by default ``localhost/<name of the folder>``.
    """

    def __init__(self, path: Path, *, repository: str | None = None) -> None:
        self._folder = BlobFolder(path)
        super().__init__(path, self._folder, repository)

    def _read(self, name: str, limit: int) -> bytes:
        try:
            return read_plain(self.path, name, limit=limit)
        except FileNotFoundError:
            raise SourceMalformed(self.path, f"no {name} in it, so it is not an OCI layout") from None

    def close(self) -> None:
        """Close descriptors; may be called again."""
        self._folder.close()
