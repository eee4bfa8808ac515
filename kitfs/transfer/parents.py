"""The parents of a ModelKit as the store has them: the chain of ``model.path`` references.

Used by import and by the look at kit's storage before a mount. Reads configs from the store, verified; changes
nothing. Chains are followed here only to bring parents along and to record them: what a mount shows is resolved
by ``modelkit``, which also says what is wrong with a chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.errors import MalformedError
from kitfs.oci.kitfile import Kitfile, iter_artifacts, parse_kitfile_json, validate_kitfile
from kitfs.oci.manifest import ANNOTATION_KITFILE, Manifest, parse_manifest
from kitfs.oci.reference import Reference, looks_like_reference, parse_reference

if TYPE_CHECKING:
    from kitfs.store.reads import StoreReads

PARENTS_MAX = 10
"""Longest chain of ``model.path`` references (kitops, "reached maximum number of model references")."""


class ConfigMismatch(MalformedError):
    """A config that names a layer which its manifest does not."""

    def __init__(self, manifest: Digest, layer: Digest) -> None:
        super().__init__(f"ModelKit {manifest}: its config names layer {layer}, its manifest does not")
        self.manifest = manifest
        self.layer = layer


def read_kitfile(manifest: Manifest, config: bytes) -> Kitfile | None:
    """The Kitfile of a ModelKit, as it was published; None for a ModelPack artifact without one.

    Raises:
        KitfileMalformed: when it breaks its format.
    """
    if not manifest.is_modelpack:
        return parse_kitfile_json(config)
    annotated = manifest.annotations.get(ANNOTATION_KITFILE)
    return parse_kitfile_json(annotated.encode()) if annotated else None


def parse_config(manifest: Manifest, config: bytes) -> Kitfile | None:
    """The Kitfile of a ModelKit, checked; None for a ModelPack artifact without one.

    Raises:
        KitfileMalformed: when it breaks its format or rules.
        ConfigMismatch: when it names a layer that the manifest does not.
    """
    kitfile = read_kitfile(manifest, config)
    if kitfile is not None:
        validate_kitfile(kitfile)
        named = {artifact.digest for artifact in iter_artifacts(kitfile) if artifact.digest}
        if missing := named - {layer.digest for layer in manifest.layers}:
            raise ConfigMismatch(manifest.digest, min(missing))
    return kitfile


def find_parent(kitfile: Kitfile | None) -> Reference | None:
    """The ModelKit that ``model.path`` names, or None when the model is the kit's own."""
    path = kitfile.model.path if kitfile and kitfile.model else ""
    return parse_reference(path) if path and looks_like_reference(path) else None


def find_parent_stored(store: StoreReads, manifest: Digest) -> Reference | None:
    """The parent of a ModelKit that is in the store.

    Raises:
        BlobNotFound, BlobCorrupt: when its manifest or config can not be read.
        MalformedError: when they break their format.
    """
    parsed = parse_manifest(store.read_blob(manifest))
    return find_parent(read_kitfile(parsed, store.read_blob(parsed.config.digest)))


def find_digest(store: StoreReads, reference: Reference) -> Digest | None:
    """The ModelKitID that a reference means in the store now, or None."""
    if reference.digest is not None:
        return reference.digest if store.find_manifest(reference.digest) else None
    record = store.find_tag(reference.repository, reference.tag) if reference.tag else None
    return record.manifest if record else None


def follow_parents(store: StoreReads, parent: Reference | None) -> tuple[list[Digest], Reference | None]:
    """The chain of parents from ``parent`` on, nearest first, and the first one that the store lacks.

    Ends at ten, and where it comes back to itself.

    Raises:
        BlobNotFound, BlobCorrupt: when a parent's manifest or config can not be read.
        MalformedError: when one breaks its format.
    """
    chain: list[Digest] = []
    while parent is not None and len(chain) < PARENTS_MAX:
        digest = find_digest(store, parent)
        if digest is None:
            return chain, parent
        if digest in chain:
            break
        chain.append(digest)
        parent = find_parent_stored(store, digest)
    return chain, None
