"""What an export takes: ModelKits by reference, the parents that their Kitfiles name, and every blob of them, once.

Used by the verb ``export``; ``export_layout``, ``export_archive`` and ``export_kit`` write what is planned here. Image
index blobs are not exported: no manifest lists them, and whoever imports makes them anew. Reads the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kitfs.digest import Digest
from kitfs.oci.manifest import Descriptor, Manifest, parse_manifest
from kitfs.oci.mediatype import OCI_MANIFEST, parse_layer_type
from kitfs.oci.reference import Reference
from kitfs.store.lease import Lease
from kitfs.store.store import Store
from kitfs.transfer.parents import PARENTS_MAX, find_digest, find_parent_stored


@dataclass(frozen=True, slots=True)
class ExportedKit:
    """One name of one ModelKit.

    Attributes:
        reference: The name: with a tag, or with a digest and no tag.
        manifest: Its manifest.
        is_parent: Whether it comes along because a Kitfile names it.
    """

    reference: Reference
    manifest: Manifest
    is_parent: bool

    @property
    def name(self) -> str | None:
        """Repository and tag in full, None where there is no tag."""
        return f"{self.reference.repository}:{self.reference.tag}" if self.reference.tag else None

    @property
    def descriptor(self) -> Descriptor:
        """Of the manifest, without annotations."""
        media_type = self.manifest.media_type or OCI_MANIFEST
        return Descriptor(media_type, self.manifest.digest, len(self.manifest.raw))


@dataclass(frozen=True, slots=True)
class ExportedBlob:
    """One blob.

    Attributes:
        digest: Which.
        size: Its bytes.
        title: How progress names it.
    """

    digest: Digest
    size: int
    title: str


@dataclass(slots=True)
class ExportPlan:
    """What is to be exported; valid while the lease is held that it was made with.

    Attributes:
        kits: As they were asked for, each followed by its parents, nearest first.
        blobs: All blobs, a manifest after what it needs.
        missing: Parents that the store does not have.
    """

    kits: list[ExportedKit] = field(default_factory=list)
    blobs: dict[Digest, ExportedBlob] = field(default_factory=dict)
    missing: list[Reference] = field(default_factory=list)


def plan_export(store: Store, lease: Lease, references: Sequence[Reference]) -> ExportPlan:
    """Find everything, and hold it.

    Args:
        store: Where from.
        lease: What keeps it until the export is done.
        references: Tags or digests.

    Raises:
        TagNotFound, ManifestNotFound: when a reference is not in the store.
        BlobNotFound, BlobCorrupt: when a manifest or config can not be read.
        MalformedError: when one breaks its format.
    """
    plan = ExportPlan()
    for reference in references:
        _add(plan, store, lease, ExportedKit(reference, _hold(store, lease, get_digest(store, reference)), False))
        for parent in _iter_parents(store, reference):
            digest = find_digest(store, parent)
            if digest is not None:
                _add(plan, store, lease, ExportedKit(parent, _hold(store, lease, digest), True))
            elif parent not in plan.missing:
                plan.missing.append(parent)
    return plan


def get_digest(store: Store, reference: Reference) -> Digest:
    """The ModelKitID that a reference means.

    Raises:
        TagNotFound, ManifestNotFound: when it is not in the store.
    """
    if reference.digest is not None:
        store.get_manifest(reference.digest)
        return reference.digest
    return store.get_tag(reference.repository, reference.tag or "latest").manifest


def _hold(store: Store, lease: Lease, digest: Digest) -> Manifest:
    lease.hold(digest)
    return parse_manifest(store.read_blob(digest))


def _iter_parents(store: Store, reference: Reference) -> Iterator[Reference]:
    seen: set[Digest] = set()
    wanted: Reference | None = reference
    for _ in range(PARENTS_MAX + 1):
        digest = find_digest(store, wanted) if wanted is not None else None
        if digest is None or digest in seen:
            return
        seen.add(digest)
        wanted = find_parent_stored(store, digest)
        if wanted is not None:
            yield wanted


def _add(plan: ExportPlan, store: Store, lease: Lease, kit: ExportedKit) -> None:
    if any((known.reference, known.manifest.digest) == (kit.reference, kit.manifest.digest) for known in plan.kits):
        return
    plan.kits.append(kit)
    shown = kit.reference.display
    for number, layer in enumerate(kit.manifest.layers, start=1):
        kind = parse_layer_type(layer.media_type)
        _add_blob(plan, layer, f"{shown}  {kind.kind if kind else 'layer'} {number} {layer.digest.hex[:12]}")
    _add_blob(plan, kit.manifest.config, f"{shown}  config")
    _add_blob(plan, kit.descriptor, f"{shown}  manifest")


def _add_blob(plan: ExportPlan, descriptor: Descriptor, title: str) -> None:
    blob = ExportedBlob(descriptor.digest, descriptor.size, title)
    plan.blobs.setdefault(descriptor.digest, blob)
