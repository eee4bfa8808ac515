"""From a reference to everything that its tree is made of: manifests, Kitfiles, layers, parents.

A tree is not a function of a tag alone (a parent is often named by a tag), so whoever needs a tree twice keeps the
digests that ``resolve`` found and calls ``reopen`` with them. Reads the store and never changes it; small blobs are
verified against their digests whenever they are read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.errors import MalformedError, NotFoundError
from kitfs.oci import strict_json
from kitfs.oci.kitfile_json import parse_kitfile_json
from kitfs.oci.kitfile_schema import Artifact, Kitfile, iter_artifacts
from kitfs.oci.manifest import (
    ANNOTATION_FILE_METADATA,
    ANNOTATION_FILEPATH,
    ANNOTATION_KITFILE,
    Descriptor,
    Manifest,
    parse_manifest,
)
from kitfs.oci.mediatype import LayerFormat, LayerKind, LayerType, parse_layer_type
from kitfs.oci.reference import Reference, looks_like_reference, parse_reference

if TYPE_CHECKING:
    from kitfs.store.store import Store

PARENTS_MAX = 10
"""Longest chain of ``model.path`` references (kitops: "reached maximum number of model references")."""

FILEPATHS = (ANNOTATION_FILEPATH, "org.cnai.model.filepath")
"""Annotations that name a layer's path: model-spec's, and that of its version 0.0.6."""
METADATA = (ANNOTATION_FILE_METADATA, "org.cnai.model.file.metadata+json")
RAW_MODE = 0o644
"""Mode of a raw layer without metadata (kitops ``raw.go``)."""


class ModelKitNotFound(NotFoundError):
    """A reference that the store does not hold."""

    def __init__(self, reference: str, needed_by: str | None = None) -> None:
        where = f", the parent of {needed_by}," if needed_by else ""
        super().__init__(f"{reference}{where} is not in the store")
        self.reference = reference
        self.hint = "kitfs list shows what is; kitfs import brings it in"


class ParentChainMalformed(MalformedError):
    """A chain of ``model.path`` references that is too long or comes back to itself."""

    def __init__(self, chain: Sequence[str], reason: str) -> None:
        super().__init__(f"{reason}: {' -> '.join(chain)}")
        self.chain = tuple(chain)


class ModelKitMalformed(MalformedError):
    """A ModelKit whose config and manifest do not fit together."""

    def __init__(self, manifest: Digest, reason: str) -> None:
        super().__init__(f"ModelKit {manifest}: {reason}")
        self.manifest = manifest
        self.reason = reason


@dataclass(frozen=True, slots=True)
class KitLayer:
    """One layer of a ModelKit that kitfs can show.

    Attributes:
        digest: The layer's blob.
        type: What it holds and how it is packed.
        prefix: Directory that the names in its tar are relative to (kit before 0.5), else empty.
        raw_path: Path of a raw layer's only member, else None.
        raw_mode: Permission bits of a raw layer's only member.
        artifacts: Its entries in the Kitfile, several where they have the same bytes; without a Kitfile one made from
            its annotations.
    """

    digest: Digest
    type: LayerType
    prefix: bytes = b""
    raw_path: bytes | None = None
    raw_mode: int = RAW_MODE
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True)
class Kit:
    """A manifest with its Kitfile and the layers that are shown.

    Attributes:
        manifest: The manifest, bytes kept.
        config: The config blob's bytes.
        kitfile: None for a ModelPack artifact without one.
        layers: In the order of the manifest.
    """

    manifest: Manifest
    config: bytes
    kitfile: Kitfile | None
    layers: tuple[KitLayer, ...]

    @property
    def unknown_layers(self) -> list[Descriptor]:
        """Layers of media types that kitfs does not know, and so passes over."""
        return [layer for layer in self.manifest.layers if parse_layer_type(layer.media_type) is None]

    @property
    def parent(self) -> str | None:
        """The reference in ``model.path``, or None when the model is the kit's own."""
        path = self.kitfile.model.path if self.kitfile and self.kitfile.model else ""
        return path if path and looks_like_reference(path) else None


@dataclass(frozen=True, slots=True)
class ResolvedTree:
    """A ModelKit and the parents whose models it shows, nearest first.

    Attributes:
        reference: As it is shown, empty where a digest alone was asked for.
        kits: The ModelKit, then its parents; of a parent only model and model parts are shown.
    """

    reference: str
    kits: tuple[Kit, ...]

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Manifest digests, in the order of ``kits``: what ``reopen`` needs."""
        return tuple(kit.manifest.digest for kit in self.kits)


def find_manifest(store: Store, reference: Reference) -> Digest | None:
    """The manifest that a reference means now, or None when the store does not hold it."""
    if reference.digest is not None:
        return reference.digest if store.find_manifest(reference.digest) else None
    if reference.tag is None:
        return None
    record = store.find_tag(reference.repository, reference.tag)
    return record.manifest if record else None


def open_kit(store: Store, manifest: Digest) -> Kit:
    """Read a ModelKit that is in the store.

    Raises:
        BlobNotFound: when the manifest or its config is not there.
        DigestMismatch: when their bytes have changed.
        MalformedError: when they break their formats or do not fit together.
    """
    return parse_kit(raw := store.read_blob(manifest), store.read_blob(parse_manifest(raw).config.digest))


def parse_kit(raw_manifest: bytes, config: bytes) -> Kit:
    """A ModelKit from the bytes of its manifest and config.

    Raises:
        MalformedError: when they break their formats or do not fit together.
    """
    manifest = parse_manifest(raw_manifest)
    kitfile = _kitfile(manifest, config)
    return Kit(manifest, config, kitfile, tuple(_layers(manifest, kitfile)))


def resolve(store: Store, reference: Reference) -> ResolvedTree:
    """A ModelKit and its chain of parents, as tags stand now.

    Raises:
        ModelKitNotFound: when it or a parent is not in the store.
        ParentChainMalformed: when the chain is longer than ten or comes back to itself.
        MalformedError: when a manifest or Kitfile breaks its format.
    """
    chain = [reference.display]
    kits: list[Kit] = []
    manifest = find_manifest(store, reference)
    while True:
        if manifest is None:
            raise ModelKitNotFound(chain[-1], chain[-2] if len(chain) > 1 else None)
        if any(kit.manifest.digest == manifest for kit in kits):
            raise ParentChainMalformed(chain, "parents come back to themselves")
        kits.append(open_kit(store, manifest))
        if (parent := kits[-1].parent) is None:
            return ResolvedTree(reference.display, tuple(kits))
        if len(kits) > PARENTS_MAX:
            raise ParentChainMalformed(chain, f"more than {PARENTS_MAX} parents")
        parsed = parse_reference(parent)
        chain.append(parsed.display)
        manifest = find_manifest(store, parsed)


def reopen(store: Store, reference: str, manifests: Sequence[Digest]) -> ResolvedTree:
    """What was resolved before, from its digests: tags that have moved since change nothing.

    Raises:
        BlobNotFound: when one of the manifests is gone.
    """
    return ResolvedTree(reference, tuple(open_kit(store, manifest) for manifest in manifests))


def _kitfile(manifest: Manifest, config: bytes) -> Kitfile | None:
    if not manifest.is_modelpack:
        return parse_kitfile_json(config)
    annotated = manifest.annotations.get(ANNOTATION_KITFILE)
    return parse_kitfile_json(annotated.encode()) if annotated else None


def _layers(manifest: Manifest, kitfile: Kitfile | None) -> Iterator[KitLayer]:
    artifacts = list(iter_artifacts(kitfile)) if kitfile else []
    legacy = bool(artifacts) and not manifest.is_modelpack and not any(artifact.digest for artifact in artifacts)
    by_digest: dict[Digest, list[Artifact]] = {}
    for entry in artifacts:
        if entry.digest:
            by_digest.setdefault(entry.digest, []).append(entry)
    if missing := by_digest.keys() - {descriptor.digest for descriptor in manifest.layers}:
        raise ModelKitMalformed(manifest.digest, f"its config names layer {min(missing)}, its manifest does not")
    in_order: dict[LayerKind, Iterator[Artifact]] = {
        kind: iter([artifact for artifact in artifacts if artifact.kind is kind]) for kind in LayerKind
    }
    seen: set[Digest] = set()
    for descriptor in manifest.layers:
        kind = parse_layer_type(descriptor.media_type)
        if kind is None:
            continue
        found = list(islice(in_order[kind.kind], 1)) if legacy else by_digest.get(descriptor.digest, [])
        if by_digest and not found:
            continue  # kit looks layers up by the config's digests, and so passes over this one
        if not legacy and descriptor.digest in seen and kind.format is LayerFormat.TAR:
            continue  # one blob listed twice holds the same names twice
        seen.add(descriptor.digest)
        yield _layer(manifest, descriptor, kind, found, legacy)


def _layer(
    manifest: Manifest, descriptor: Descriptor, kind: LayerType, found: Sequence[Artifact], legacy: bool
) -> KitLayer:
    filepath = find_filepath(descriptor)
    digest = descriptor.digest
    artifacts = tuple(found) or (Artifact(kind.kind, "", "", filepath or "", digest, None),)
    if kind.format is LayerFormat.RAW:
        path = filepath or artifacts[0].path
        if not path:
            raise ModelKitMalformed(manifest.digest, f"raw layer {digest} has no path")
        clean, mode = clean_path(path), _raw_mode(descriptor)
        artifacts = tuple(one for one in artifacts if clean_path(one.path) == clean) or artifacts  # bytes are shared
        return KitLayer(digest, kind, raw_path=clean, raw_mode=mode, artifacts=artifacts)
    if legacy and not found:
        raise ModelKitMalformed(manifest.digest, f"layer {digest} has no entry in the Kitfile")
    prefix = posixpath.dirname(clean_path(found[0].path)) if legacy else b""
    return KitLayer(digest, kind, prefix=prefix, artifacts=artifacts)


def find_filepath(descriptor: Descriptor) -> str | None:
    """The path that a layer's annotations name, or None."""
    return _annotation(descriptor, FILEPATHS)


def _annotation(descriptor: Descriptor, names: Sequence[str]) -> str | None:
    return next((descriptor.annotations[name] for name in names if name in descriptor.annotations), None)


def _raw_mode(descriptor: Descriptor) -> int:
    text = _annotation(descriptor, METADATA)
    if text is None:
        return RAW_MODE
    metadata = strict_json.decode(text.encode(), limit_bytes=64 * 1024, depth=8)
    mode = metadata.get("mode") if isinstance(metadata, dict) else None
    return mode & 0o777 if type(mode) is int and mode >= 0 else RAW_MODE


def clean_path(path: str) -> bytes:
    """A Kitfile path as bytes without ``./``, doubled and trailing slashes; ``.`` becomes empty.

    Raises:
        PathEscapes: when it is absolute or leads out of the ModelKit.
    """
    clean = posixpath.normpath(path) if path else "."
    if clean.startswith(("/", "../")) or clean == ".." or "\0" in clean:
        raise PathEscapes(path)
    return b"" if clean == "." else clean.encode("utf-8", "surrogateescape")


class PathEscapes(MalformedError):
    """A path in a Kitfile or annotation that is absolute or leads out of the ModelKit."""

    def __init__(self, path: str) -> None:
        super().__init__(f"path {path!r} leads out of the ModelKit")
        self.path = path


def is_model(layer: KitLayer) -> bool:
    """Whether a layer is a model or a part of one: what a child shows of its parent."""
    return layer.type.kind in (LayerKind.MODEL, LayerKind.MODELPART)
