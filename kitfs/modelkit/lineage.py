"""Where a ModelKit comes from: the annotations of a derived one, and the way back through its ancestors.

Used by ``kitfs log``, ``inspect`` and the Python API; ``derive`` writes what is read here. A ModelKit does not keep its
ancestors, so one that the store does not hold is an end like any other. Reads the store and never changes it. No
ModelKit is its own ancestor, as its digest would have to be in the bytes that it is the digest of; how far the way
back is followed is bounded all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kitfs.digest import Digest, DigestMalformed
from kitfs.errors import MalformedError
from kitfs.oci.manifest import (
    ANNOTATION_MESSAGE,
    ANNOTATION_PARENT,
    ANNOTATION_PARENT_REFERENCE,
    Manifest,
    parse_manifest,
)
from kitfs.oci.reference import Reference
from kitfs.store.errors import BlobNotFound

if TYPE_CHECKING:
    from kitfs.store.store import Store

ANCESTORS_MAX = 100_000
"""ModelKits that the way back is followed over: a commit a minute for ten weeks; 15 s of reading."""

_SHOWN_MAX = 100


class LineageMalformed(MalformedError):
    """A manifest whose annotation names no parent.

    Attributes:
        manifest: The ModelKit.
        value: What the annotation says.
    """

    hint = "kitfs inspect shows all that the ModelKit says of itself"

    def __init__(self, manifest: Digest, value: str) -> None:
        shown = repr(value[:_SHOWN_MAX]) + ("…" if len(value) > _SHOWN_MAX else "")
        super().__init__(f"ModelKit {manifest}: its annotation {ANNOTATION_PARENT} is no ModelKitID: {shown}")
        self.manifest = manifest
        self.value = value


class AncestryTooLong(MalformedError):
    """A ModelKit with more ancestors than are followed.

    Attributes:
        manifest: The first that was not looked at.
        limit: How many were.
    """

    hint = "kitfs log -n N shows the last N"

    def __init__(self, manifest: Digest, limit: int) -> None:
        super().__init__(f"more than {limit} ancestors; the next is {manifest}")
        self.manifest = manifest
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a manifest says of where its ModelKit comes from.

    Attributes:
        parent: The ModelKit that it was derived from, or None.
        parent_reference: What that was called then, or empty.
        message: What was said about the change, or empty.
    """

    parent: Digest | None
    parent_reference: str
    message: str


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A ModelKit on the way back.

    Attributes:
        digest: Its ModelKitID.
        references: What it is called now, in order of the alphabet.
        manifest: None when the store does not hold it.
        lineage: What its manifest says of where it comes from.
    """

    digest: Digest
    references: tuple[str, ...]
    manifest: Manifest | None
    lineage: Lineage


NO_LINEAGE = Lineage(None, "", "")


def read_lineage(manifest: Manifest) -> Lineage:
    """Where a ModelKit comes from.

    Raises:
        LineageMalformed: when its annotation is no digest.
    """
    annotations = manifest.annotations
    text = annotations.get(ANNOTATION_PARENT, "")
    try:
        parent = Digest.parse(text) if text else None
    except DigestMalformed:
        raise LineageMalformed(manifest.digest, text) from None
    return Lineage(parent, annotations.get(ANNOTATION_PARENT_REFERENCE, ""), annotations.get(ANNOTATION_MESSAGE, ""))


def iter_ancestry(store: Store, manifest: Digest, *, limit: int = ANCESTORS_MAX) -> Iterator[Ancestor]:
    """A ModelKit, its parent, and so on: to the first without one, or the first that the store does not hold.

    Raises:
        LineageMalformed: at a ModelKit whose annotation is no digest.
        AncestryTooLong: after ``limit`` ModelKits, when there is one more.
        BlobNotFound, BlobCorrupt: when a manifest that the store has is lost or rotten.
        MalformedError: when it breaks its format.
        RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
    """
    names = _read_names(store)
    digest: Digest | None = manifest
    for _ in range(limit):
        if digest is None:
            return
        found = _find_manifest(store, digest)
        lineage = read_lineage(found) if found else NO_LINEAGE
        yield Ancestor(digest, tuple(sorted(names.get(digest, ()))), found, lineage)
        digest = lineage.parent
    if digest is not None:
        raise AncestryTooLong(digest, limit)


def _read_names(store: Store) -> dict[Digest, list[str]]:
    names: dict[Digest, list[str]] = {}
    for repository, tag, record in store.iter_tags():
        names.setdefault(record.manifest, []).append(Reference(repository, tag, None).display)
    return names


def _find_manifest(store: Store, digest: Digest) -> Manifest | None:
    if store.find_manifest(digest) is None:
        return None
    try:
        return parse_manifest(store.read_blob(digest))
    except BlobNotFound:
        if store.find_manifest(digest) is not None:
            raise
        return None  # collected since
