"""Records made anew from the files they describe.

Used when ``tags.log`` names a manifest that the index lacks, as after a restored or rebuilt index. Makes records
of blobs and manifests; a layer's table of contents takes a pass over the layer, which belongs to ``kitfs.layer``
(such a layer raises ``LayerNotIndexed`` until it is imported again). Changes no file.
"""

from __future__ import annotations

import os
import stat

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.oci.manifest import Manifest, parse_manifest
from kitfs.store import catalog, schema
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.records import BlobForm, BlobRecord, ManifestRecord

_MANIFEST_SIZE_MAX = 4 << 20


def restore_manifest(txn: Txn, layout: Layout, digest: Digest, *, origin: str, now_s: int) -> bool:
    """See that a manifest and its blobs are recorded, from the files where the index has no records.

    Returns:
        False when a file that it needs is not there or is no manifest; nothing is recorded then.

    Raises:
        RecordCorrupt: when a record that is there does not verify.
    """
    if catalog.find_manifest(txn, digest) is not None:
        return True
    return record_from_files(txn, layout, digest, origin=origin, now_s=now_s)


def record_from_files(txn: Txn, layout: Layout, digest: Digest, *, origin: str, now_s: int) -> bool:
    """Record a manifest, and those of its blobs that are not recorded, from their files.

    Returns:
        False when a file that it needs is not there or is no manifest; nothing is recorded then.

    Raises:
        RecordCorrupt: when a record that is there does not verify.
    """
    manifest = _read_manifest(layout, digest)
    if manifest is None:
        return False
    sizes = {digest: len(manifest.raw)}
    types = {digest: manifest.media_type or ""}
    for descriptor in (manifest.config, *manifest.layers):
        sizes[descriptor.digest] = descriptor.size
        types[descriptor.digest] = descriptor.media_type
    forms: dict[Digest, BlobForm] = {}
    for blob, size in sizes.items():
        form = _find_form(layout, blob, size)
        if form is None:
            return False
        forms[blob] = form
    for blob, form in forms.items():
        if catalog.find_blob(txn, blob) is None:
            txn.put(schema.BLOBS, blob.raw, BlobRecord(sizes[blob], form, [types[blob]], origin, now_s, now_s))
            if form == "split":
                _pin(txn, layout, blob, now_s)
    if catalog.find_manifest(txn, digest) is not None:
        return True
    layers = [layer.digest for layer in manifest.layers]
    catalog.put_manifest(txn, digest, ManifestRecord(manifest.config.digest, layers))
    return True


def _read_manifest(layout: Layout, digest: Digest) -> Manifest | None:
    try:
        with open(layout.blob(digest), "rb") as file:
            raw = file.read(_MANIFEST_SIZE_MAX + 1)
    except OSError:
        return None
    if len(raw) > _MANIFEST_SIZE_MAX or Digest.of(raw) != digest:
        return None
    try:
        return parse_manifest(raw)
    except KitfsError:
        return None


def _find_form(layout: Layout, digest: Digest, size: int) -> BlobForm | None:
    """In which form a blob of this size is there, or None."""
    try:
        status = os.lstat(layout.blob(digest))
        if stat.S_ISREG(status.st_mode) and status.st_size == size:
            return "linked" if status.st_nlink > 1 else "whole"
    except OSError:
        pass
    from kitfs.store.recipe import find_recipe, has_all_members  # rare, and a mount imports this module

    recipe = find_recipe(layout, digest)
    return "split" if recipe is not None and recipe.size == size and has_all_members(layout, recipe) else None


def _pin(txn: Txn, layout: Layout, digest: Digest, now_s: int) -> None:
    from kitfs.store.pins import pin_members
    from kitfs.store.recipe import find_recipe

    recipe = find_recipe(layout, digest)
    if recipe is not None:
        pin_members(txn, layout, recipe, now_s)
