"""Everything that a ModelKit needs to be mounted, hashed and proven: manifest, config, layers, and its parents' models.

Used by ``kitfs verify``. A damaged part does not keep the others from being looked at: without a manifest that can be
read, layers are those that the index remembers. Reads the store and changes nothing; a lease keeps GC away.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from kitfs.digest import Digest
from kitfs.errors import KitfsError, MalformedError
from kitfs.layer.verify import IMPORT_AGAIN, REPAIR_DATA, BlobVerdict, Damage, verify_blob, verify_layer
from kitfs.modelkit.resolve import (
    PARENTS_MAX,
    Kit,
    ModelKitNotFound,
    ParentChainMalformed,
    find_manifest,
    is_model,
    parse_kit,
)
from kitfs.oci.manifest import ANNOTATION_INDEX, Descriptor, Manifest, find_index_digest, parse_manifest
from kitfs.oci.mediatype import Compression, LayerFormat, parse_layer_type
from kitfs.oci.reference import Reference, parse_reference
from kitfs.progress import Progress
from kitfs.store.errors import BlobNotFound
from kitfs.store.lease import Lease
from kitfs.store.store import Store

PACK_AGAIN = "whoever published it packs it again"


@dataclass(frozen=True, slots=True)
class Part:
    """One blob that a ModelKit needs.

    Attributes:
        kit: Reference of the ModelKit or parent that needs it.
        what: ``manifest``, ``config``, the kind of layer, or ``index`` for a layer's image index.
        form: Of a layer: ``tar``, ``tar+gzip``, …; else empty.
        verdict: What was found.
    """

    kit: str
    what: str
    form: str
    verdict: BlobVerdict


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at.

    Attributes:
        manifest: The ModelKitID.
        parts: Every blob, the ModelKit's and then its parents'.
    """

    manifest: Digest
    parts: list[Part]

    @property
    def is_right(self) -> bool:
        """Whether nothing is damaged."""
        return not any(part.verdict.damages for part in self.parts)


def verify(store: Store, reference: Reference, progress: Progress) -> VerifyReport:
    """Read all that a mount of a ModelKit could read, and say what is not right.

    Raises:
        ModelKitNotFound: when it or a parent is not in the store.
        ParentChainMalformed: when the chain of parents is longer than ten or comes back to itself.
        RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell which ModelKit is meant.
    """
    manifest = find_manifest(store, reference)
    if manifest is None:
        raise ModelKitNotFound(reference.display)
    with store.lease(f"verify {reference.display}") as lease:
        run = _Verify(store, lease, progress)
        run.follow(manifest, reference.display)
    return VerifyReport(manifest, run.parts)


class _Verify:
    """One run."""

    def __init__(self, store: Store, lease: Lease, progress: Progress) -> None:
        self.parts: list[Part] = []
        self._store = store
        self._lease = lease
        self._progress = progress

    def follow(self, manifest: Digest, name: str) -> None:
        """The ModelKit, then its parents, as a mount resolves them."""
        chain = [name]
        seen: list[Digest] = []
        while True:
            if manifest in seen:
                raise ParentChainMalformed(chain, "parents come back to themselves")
            if len(seen) > PARENTS_MAX:
                raise ParentChainMalformed(chain, f"more than {PARENTS_MAX} parents")
            seen.append(manifest)
            kit = self._look_at_kit(manifest, chain[-1], is_parent=len(seen) > 1)
            if kit is None or kit.parent is None:
                return
            parent = parse_reference(kit.parent)
            chain.append(parent.display)
            found = find_manifest(self._store, parent)
            if found is None:
                raise ModelKitNotFound(chain[-1], chain[-2])
            manifest = found

    def _look_at_kit(self, digest: Digest, name: str, *, is_parent: bool) -> Kit | None:
        with contextlib.suppress(BlobNotFound):
            self._lease.hold(digest)
        verdict = self._add(name, "manifest", digest)
        if verdict.damages:
            self._look_at_recorded(digest, name)
            return None
        manifest = parse_manifest(self._store.read_blob(digest))
        config = self._add(name, "config", manifest.config.digest)
        kit = None
        if not config.damages:
            try:
                kit = parse_kit(manifest.raw, self._store.read_blob(manifest.config.digest))
            except MalformedError as error:
                config.damages.append(Damage(str(error), IMPORT_AGAIN))
        self._look_at_layers(manifest, name, _shown_of_parent(kit) if is_parent else None)
        return kit

    def _look_at_layers(self, manifest: Manifest, name: str, wanted: set[Digest] | None) -> None:
        for layer in {layer.digest: layer for layer in manifest.layers}.values():
            if wanted is not None and layer.digest not in wanted:
                continue
            kind = parse_layer_type(layer.media_type)
            if kind is None:
                self._add(name, "layer", layer.digest)
            else:
                verdict = self._add_layer(name, str(kind.kind), layer.digest, kind.format, kind.compression)
                self._look_at_index(name, manifest.digest, layer, verdict)

    def _look_at_index(self, name: str, manifest: Digest, layer: Descriptor, verdict: BlobVerdict) -> None:
        """The image index that a layer's descriptor names: whether it is that of the layer, and is right."""
        if ANNOTATION_INDEX not in layer.annotations:
            return
        named = find_index_digest(layer)
        if verdict.image_index is None:  # the layer is damaged, and can not tell
            if named is not None and named in self._recorded_indexes(manifest):
                self._add_index(name, named)
        elif named == verdict.image_index:
            self._add_index(name, verdict.image_index)
        else:
            text = layer.annotations[ANNOTATION_INDEX][:100]
            reason = (
                f"its descriptor names another image index than it has, {text!r}; reads here are right all the same"
            )
            verdict.damages.append(Damage(reason, PACK_AGAIN))

    def _recorded_indexes(self, manifest: Digest) -> list[Digest]:
        with contextlib.suppress(KitfsError):
            record = self._store.find_manifest(manifest)
            return record.indexes if record is not None else []
        return []

    def _add_index(self, name: str, digest: Digest) -> None:
        bound = self._add(name, "index", digest)
        bound.damages[:] = [Damage(damage.reason, REPAIR_DATA) for damage in bound.damages]

    def _look_at_recorded(self, digest: Digest, name: str) -> None:
        """Without its manifest: what the index has of it."""
        record = None
        with contextlib.suppress(KitfsError):
            record = self._store.find_manifest(digest)
        if record is None:
            return
        self._add(name, "config", record.config)
        for layer in dict.fromkeys(record.layers):
            known = None
            with contextlib.suppress(KitfsError):
                known = self._store.find_layer(layer)
            if known is None:
                self._add(name, "layer", layer)
            else:
                self._add_layer(name, "layer", layer, LayerFormat(known.format), Compression(known.compression))
        for index in record.indexes:
            self._add_index(name, index)

    def _add(self, name: str, what: str, digest: Digest) -> BlobVerdict:
        verdict = verify_blob(self._store, digest, lambda _: None)
        self.parts.append(Part(name, what, "", verdict))
        return verdict

    def _add_layer(
        self, name: str, what: str, digest: Digest, layer_format: LayerFormat, compression: Compression
    ) -> BlobVerdict:
        record = self._store.find_blob(digest)
        step = self._progress.begin(f"{name}  {what} {digest.hex[:12]}", record.size if record else 0)
        verdict = verify_layer(self._store, digest, layer_format, compression, step.advance)
        step.finish()
        form = str(layer_format) if compression is Compression.NONE else f"{layer_format}+{compression}"
        self.parts.append(Part(name, what, form, verdict))
        return verdict


def _shown_of_parent(kit: Kit | None) -> set[Digest]:
    """The layers of a parent that its child shows."""
    return {layer.digest for layer in kit.layers if is_model(layer)} if kit else set()
