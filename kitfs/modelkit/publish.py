"""Makes a new ModelKit visible: its layers, config, manifest and tags in one change, or nothing of it.

Used by pack and derive, whose layers are in the store already, held by the lease and not yet in the index.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol

from kitfs.digest import Digest
from kitfs.layer.index_blob import add_image_index
from kitfs.modelkit.pack_layers import PackedLayer
from kitfs.oci.kitfile import KitfileMalformed
from kitfs.oci.manifest import ANNOTATION_INDEX, MANIFEST_SIZE_MAX, Descriptor, find_index_digest
from kitfs.oci.mediatype import OCI_MANIFEST, encode_layer_type
from kitfs.oci.reference import Reference
from kitfs.store.errors import BlobNotFound
from kitfs.store.lease import Lease
from kitfs.store.records import ManifestRecord
from kitfs.store.store import Store


class Form(Protocol):
    """How a config and a manifest are written."""

    @property
    def config_type(self) -> str:
        """Media type of the config."""

    def encode_config(self) -> bytes:
        """The config blob."""
        ...

    def encode_manifest(self, config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
        """The manifest."""
        ...


class Publication:
    """One ModelKit on its way."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self._change = store.change(lease)
        self._indexes: list[Digest] = []

    def add_layer(self, layer: PackedLayer) -> Descriptor:
        """Record a layer that was written or found, with its image index.

        Raises:
            StoreWriteFailed, LeaseEnded, BlobNotFound: when it can not be kept.
        """
        index, media_type = layer.index, encode_layer_type(layer.plan.type)
        self._change.add_blob(index.digest, index.size, media_type=media_type)
        if layer.is_new:
            self._change.add_layer(index.digest, index.record, index.toc, index.span_checksums, index.checkpoints)
        annotations = dict(layer.annotations)
        bound = add_image_index(self._store, self._lease, self._change, index)
        if bound is not None:
            annotations[ANNOTATION_INDEX] = str(bound)
            self._indexes.append(bound)
        return Descriptor(media_type, index.digest, index.size, annotations)

    def keep_layer(self, descriptor: Descriptor) -> Descriptor:
        """Keep a layer that another ModelKit has, its descriptor verbatim; none of its bytes are read.

        Raises:
            BlobNotFound: when its file is gone.
            StoreWriteFailed, LeaseEnded: when it can not be held.
        """
        self._lease.hold(descriptor.digest)
        index = find_index_digest(descriptor)
        if index is not None and self._store.find_blob(index) is not None:  # it may never have come along
            with contextlib.suppress(BlobNotFound):
                self._lease.hold(index)
                self._indexes.append(index)
        return descriptor

    def commit(
        self,
        form: Form,
        layers: Sequence[Descriptor],
        parents: Sequence[Digest],
        references: Sequence[Reference],
        *,
        moves_tags: bool = True,
    ) -> Digest:
        """Write config and manifest, and make it all visible; on disk when this returns.

        Args:
            form: How they are written.
            layers: In the order of the manifest.
            parents: The ModelKits that ``model.path`` leads to, nearest first.
            references: Tags to set.
            moves_tags: Whether tags may be there already.

        Raises:
            KitfileMalformed: when config or manifest would be larger than is read.
            TagTaken: when a tag is there and must not be moved.
            StoreWriteFailed and the store's other errors: when it can not be stored. Nothing is visible then.
        """
        raw_config = form.encode_config()
        config = Descriptor(form.config_type, self._put_small(raw_config, form.config_type), len(raw_config))
        manifest = self._put_small(form.encode_manifest(config, layers), OCI_MANIFEST)
        for parent in parents:
            self._lease.hold(parent)
        layer_digests = [layer.digest for layer in layers]
        record = ManifestRecord(config.digest, layer_digests, list(parents), list(dict.fromkeys(self._indexes)))
        self._change.add_manifest(manifest, record)
        for reference in references:
            if reference.tag is not None:
                self._change.set_tag(reference.repository, reference.tag, manifest, moves=moves_tags)
        self._change.commit()
        return manifest

    def _put_small(self, raw: bytes, media_type: str) -> Digest:
        if len(raw) > MANIFEST_SIZE_MAX:
            raise KitfileMalformed(
                [f"it makes a config or manifest of {len(raw)} bytes, at most {MANIFEST_SIZE_MAX} are read"]
            )
        with self._store.ingest(self._lease) as ingest:
            ingest.write(raw)
            digest = ingest.commit_blob(size=len(raw))
        self._change.add_blob(digest, len(raw), media_type=media_type)
        return digest
