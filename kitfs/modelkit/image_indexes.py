"""Image indexes that ModelKits name and the store lacks, made anew of their layers; and repair, which needs that.

Used by ``kitfs fsck --repair`` and when the index is made anew. An image index is a function of its layer: one that a
descriptor names comes out with the digest that it names, or was never that layer's.
"""

from __future__ import annotations

import contextlib

import msgspec

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.index_blob import add_image_index, get_layer_index
from kitfs.oci.manifest import find_index_digest, parse_manifest
from kitfs.store import repair as store_repair
from kitfs.store.findings import Finding, FsckReport, Weight
from kitfs.store.store import Store


def repair(store: Store, *, read_data: bool = False) -> FsckReport:
    """Repair a store as ``kitfs.store.repair`` does, then make the image indexes that it lacks.

    Raises:
        IndexFailed, IndexCorrupt, StoreWriteFailed: when reading or writing failed.
    """
    report = store_repair.repair(store, read_data=read_data)
    named = {finding.name for finding in report.repaired}
    report.repaired += [finding for finding in restore_indexes(store) if finding.name not in named]
    return report


def restore_indexes(store: Store) -> list[Finding]:
    """See that each ModelKit has the image indexes that its descriptors name and its layers give.

    A layer that is damaged, or gives another, has none; what is wrong with it others say. On disk when it returns:
    the image indexes, recorded and named by their ModelKits.

    Returns:
        What was missing, each now there.

    Raises:
        IndexFailed, IndexCorrupt, StoreWriteFailed: when reading or writing failed.
    """
    findings: list[Finding] = []
    for digest, _ in store.iter_manifests():
        for index, layer in _restore(store, digest):
            detail = f"the image index of layer {layer} was not recorded"
            findings.append(Finding("missing-index", str(index), detail, Weight.REPAIRABLE))
    return findings


def _restore(store: Store, digest: Digest) -> list[tuple[Digest, Digest]]:
    """Image indexes of one ModelKit that were missing and are there now, with their layers."""
    try:
        manifest = parse_manifest(store.read_blob(digest))
    except KitfsError:
        return []  # named as the damage of its blob
    made: list[tuple[Digest, Digest]] = []
    with store.lease(f"image indexes of {digest}") as lease:
        with contextlib.suppress(KitfsError):
            lease.hold(digest)
        record = store.find_manifest(digest) if lease.holds(digest) else None
        if record is None:
            return []
        change = store.change(lease)
        known = list(record.indexes)
        for layer in manifest.layers:
            index = find_index_digest(layer)
            if index is None or index in known:
                continue
            try:
                found = get_layer_index(store, layer.digest)
            except KitfsError:
                continue  # named as the layer's damage
            if add_image_index(store, lease, change, found, expected=index) is not None:
                known.append(index)
                made.append((index, layer.digest))
        if made:
            change.add_manifest(digest, msgspec.structs.replace(record, indexes=known))
            change.commit()
    return made
