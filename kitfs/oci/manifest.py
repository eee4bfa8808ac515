"""Image manifests of ModelKits and ModelPacks, and image indexes: read strictly, written as kit writes them.

A manifest's digest is over its bytes, so ``Manifest.raw`` keeps them and nothing is ever written back from the parsed
form. What is read: ``schemaVersion`` 2, ``config``, ``layers`` (``null`` is an empty list: kit 1.7 writes it for an
empty Kitfile), ``annotations``, ``artifactType``, ``mediaType`` (may be missing: the specification's example has
none). Other keys are ignored. Pure; used by import, resolve, pack and derive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kitfs.digest import Digest, DigestMalformed
from kitfs.errors import MalformedError
from kitfs.oci import go_json, strict_json
from kitfs.oci.mediatype import (
    ARTIFACT_KITOPS,
    ARTIFACT_MODELPACK,
    CONFIG_MODELPACK,
    OCI_MANIFEST,
    LayerFormat,
    is_config_type,
    parse_layer_type,
)

ANNOTATION_CREATED = "org.opencontainers.image.created"
ANNOTATION_AUTHORS = "org.opencontainers.image.authors"
ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
ANNOTATION_IMAGE_NAME = "io.containerd.image.name"
"""The full reference of an entry of ``index.json``, beside its ``ref.name`` (containerd, buildx)."""
ANNOTATION_CLI_VERSION = "ml.kitops.modelkit.cli-version"
ANNOTATION_KITFILE = "ml.kitops.modelkit.kitfile"
ANNOTATION_SUBTYPE = "ml.kitops.modelkit.layer-subtype"
ANNOTATION_FILEPATH = "org.cncf.model.filepath"
ANNOTATION_FILE_METADATA = "org.cncf.model.file.metadata+json"
ANNOTATION_INDEX = "org.kitfs.index"
"""On a layer's descriptor: the digest of its image index (`kitfs/layer/image_index.py`), which is so bound to it."""

MANIFEST_SIZE_MAX = strict_json.LIMIT_BYTES
LAYER_COUNT_MAX = 16_384
"""More than fit into 4 MiB with real descriptors of 250 bytes."""

_MEDIA_TYPE_LENGTH_MAX = 255
_SIZE_MAX = 2**63 - 1
_EMPTY = Digest.of(b"")
_CREATED = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.\d{1,30})?(Z|z|[+-]\d\d:\d\d)",
    re.ASCII,
)


class ManifestMalformed(MalformedError):
    """Bytes that are not a manifest or an index.

    Attributes:
        reason: What is wrong.
        place: The key it is at, as ``layers[3].size``; empty for the whole.
    """

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(f"malformed manifest: {place + ': ' if place else ''}{reason}")
        self.reason = reason
        self.place = place


class NotAModelKit(MalformedError):
    """A well-formed manifest of something else: a container image, an image index, another artifact.

    Attributes:
        what: The media type that says so.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"not a ModelKit: {what}")
        self.what = what


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob by media type, digest and size.

    Attributes:
        size: In bytes.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest of a ModelKit or ModelPack.

    Attributes:
        raw: The bytes as published.
        digest: Of ``raw``: the ModelKitID.
        artifact_type: None where the key is missing, as in everything before kit 1.10.
        media_type: None where the key is missing.
    """

    raw: bytes
    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    artifact_type: str | None = None
    media_type: str | None = None

    @property
    def created_s(self) -> int:
        """``org.opencontainers.image.created`` in seconds since the epoch; 0 when missing or not RFC 3339."""
        match = _CREATED.fullmatch(self.annotations.get(ANNOTATION_CREATED, ""))
        if match is None:
            return 0
        zone = match.group(2).upper().replace("Z", "+00:00")
        try:
            return int(datetime.fromisoformat(match.group(1).upper() + zone).astimezone(UTC).timestamp())
        except (ValueError, OverflowError):
            return 0

    @property
    def is_modelpack(self) -> bool:
        """Whether it is in the CNCF ModelPack form rather than kit's own."""
        return self.artifact_type == ARTIFACT_MODELPACK or self.config.media_type == CONFIG_MODELPACK


def parse_manifest(raw: bytes) -> Manifest:
    """Read the manifest of a ModelKit.

    Sizes are integers from 0 to 2^63-1. A config of size 0 is refused, and so is a layer, except where it must be:
    the raw layer of an empty file, which has the digest of no bytes (modctl writes one for ``__init__.py``).

    Raises:
        ManifestMalformed: when it breaks the format or a limit.
        NotAModelKit: when it is well formed and something else.
    """
    top = _decode(raw)
    has_layers, has_manifests = "layers" in top, "manifests" in top
    if has_layers and has_manifests:
        raise ManifestMalformed("both layers and manifests")
    if has_manifests:
        raise NotAModelKit("it is an image index")
    _check_schema_version(top)
    media_type = _find_text(top, "mediaType")
    if media_type not in (None, OCI_MANIFEST):
        raise NotAModelKit(f"its media type is {media_type[:200]!r}" if media_type else "empty media type")
    if not has_layers or "config" not in top:
        raise ManifestMalformed(f"no {'config' if has_layers else 'layers'}")
    config = _descriptor(top["config"], "config")
    artifact_type = _find_text(top, "artifactType")
    if artifact_type not in (ARTIFACT_KITOPS, ARTIFACT_MODELPACK) and not is_config_type(config.media_type):
        raise NotAModelKit(f"its config has media type {config.media_type[:200]!r}")
    layers = tuple(_descriptors(top["layers"] or [], "layers"))
    _check_sizes(config, layers)
    annotations = _annotations(top.get("annotations"), "annotations")
    return Manifest(raw, Digest.of(raw), config, layers, annotations, artifact_type, media_type)


def find_index_digest(layer: Descriptor) -> Digest | None:
    """The image index that is bound to a layer; None for none, and for text that is no digest."""
    try:
        return Digest.parse(layer.annotations.get(ANNOTATION_INDEX, ""))
    except DigestMalformed:
        return None


def parse_index(raw: bytes) -> tuple[Descriptor, ...]:
    """Read an image index, as ``index.json`` of an OCI layout or one of kit's per repository: its descriptors.

    Raises:
        ManifestMalformed: when it breaks the format or a limit.
    """
    top = _decode(raw)
    if "layers" in top:
        raise ManifestMalformed("an index has no layers")
    _check_schema_version(top)
    if "manifests" not in top:
        raise ManifestMalformed("no manifests")
    found = tuple(_descriptors(top["manifests"] or [], "manifests"))
    sizes: dict[Digest, int] = {}
    for number, descriptor in enumerate(found):
        if sizes.setdefault(descriptor.digest, descriptor.size) != descriptor.size:
            raise ManifestMalformed(f"{descriptor.digest} has two sizes", f"manifests[{number}].size")
    return found


def parse_descriptor(value: object, place: str = "descriptor") -> Descriptor:
    """Check one decoded descriptor, as kit's tags files hold them.

    Raises:
        ManifestMalformed: when it breaks the format.
    """
    return _descriptor(value, place)


def encode_manifest(
    config: Descriptor,
    layers: Sequence[Descriptor],
    annotations: Mapping[str, str],
    *,
    artifact_type: str | None = ARTIFACT_KITOPS,
    media_type: str | None = OCI_MANIFEST,
) -> bytes:
    """Write a manifest in the form of kit 1.10 and newer (with both None: of kit 0.5 to 1.9).

    Compact Go JSON; keys in the order of the image specification's struct, annotations sorted.
    """
    value: dict[str, object] = {"schemaVersion": 2}
    if media_type is not None:
        value["mediaType"] = media_type
    if artifact_type is not None:
        value["artifactType"] = artifact_type
    value["config"] = _encode_descriptor(config)
    value["layers"] = [_encode_descriptor(layer) for layer in layers]
    if annotations:
        value["annotations"] = dict(sorted(annotations.items()))
    return go_json.encode(value)


def _encode_descriptor(descriptor: Descriptor) -> dict[str, object]:
    value: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        value["annotations"] = dict(sorted(descriptor.annotations.items()))
    return value


def _decode(raw: bytes) -> dict[str, object]:
    try:
        value = strict_json.decode(raw, limit_bytes=MANIFEST_SIZE_MAX)
    except strict_json.JsonMalformed as error:
        raise ManifestMalformed(error.reason) from None
    if not isinstance(value, dict):
        raise ManifestMalformed("not a JSON object")
    return value


def _check_schema_version(top: dict[str, object]) -> None:
    version = top.get("schemaVersion")
    if type(version) is not int or version != 2:
        raise ManifestMalformed(f"{str(version)[:40]!r}, expected 2", "schemaVersion")


def _find_text(top: dict[str, object], key: str) -> str | None:
    value = top.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _MEDIA_TYPE_LENGTH_MAX:
        raise ManifestMalformed("not a media type", key)
    return value or None


def _descriptors(value: object, place: str) -> list[Descriptor]:
    if not isinstance(value, list):
        raise ManifestMalformed("not a list", place)
    if len(value) > LAYER_COUNT_MAX:
        raise ManifestMalformed(f"{len(value)} entries, at most {LAYER_COUNT_MAX}", place)
    return [_descriptor(item, f"{place}[{number}]") for number, item in enumerate(value)]


def _descriptor(value: object, place: str) -> Descriptor:
    if not isinstance(value, dict):
        raise ManifestMalformed("not a descriptor", place)
    media_type = value.get("mediaType")
    if not isinstance(media_type, str) or not 0 < len(media_type) <= _MEDIA_TYPE_LENGTH_MAX:
        raise ManifestMalformed("not a media type", f"{place}.mediaType")
    digest = value.get("digest")
    if not isinstance(digest, str):
        raise ManifestMalformed("not a digest", f"{place}.digest")
    try:
        parsed = Digest.parse(digest)
    except DigestMalformed as error:
        raise ManifestMalformed(str(error), f"{place}.digest") from None
    size = value.get("size")
    if type(size) is not int or not 0 <= size <= _SIZE_MAX:
        raise ManifestMalformed(f"{str(size)[:40]!r} is not a size", f"{place}.size")
    return Descriptor(media_type, parsed, size, _annotations(value.get("annotations"), f"{place}.annotations"))


def _annotations(value: object, place: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ManifestMalformed("not an object", place)
    for key, text in value.items():
        if not isinstance(text, str):
            raise ManifestMalformed("not a string", f"{place}[{key[:100]!r}]")
    return value


def _check_sizes(config: Descriptor, layers: tuple[Descriptor, ...]) -> None:
    if config.size == 0:
        raise ManifestMalformed("size 0", "config.size")
    sizes = {config.digest: config.size}
    for number, layer in enumerate(layers):
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise ManifestMalformed(f"{layer.digest} has two sizes", f"layers[{number}].size")
        if layer.size == 0 and not _may_be_empty(layer):
            raise ManifestMalformed("size 0", f"layers[{number}].size")


def _may_be_empty(layer: Descriptor) -> bool:
    layer_type = parse_layer_type(layer.media_type)
    return layer.digest == _EMPTY and (layer_type is None or layer_type.format is LayerFormat.RAW)
