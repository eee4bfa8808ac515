"""Image manifests of ModelKits and ModelPacks, and image indexes: read strictly, written as kit writes them.

A manifest's digest is over its bytes, so ``Manifest.raw`` keeps them and nothing is ever written back from the parsed
form. What is read: ``schemaVersion`` 2, ``config``, ``layers`` (``null`` is an empty list: kit 1.7 writes it for an
empty Kitfile), ``annotations``, ``artifactType``, ``mediaType`` (may be missing: the specification's example has
none). Other keys are ignored. Pure; used by import, resolve, pack and derive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kitfs.digest import Digest, DigestMalformed
from kitfs.errors import MalformedError
from kitfs.oci import go_json, strict_json
from kitfs.oci.descriptor import Descriptor as Descriptor
from kitfs.oci.descriptor import DescriptorReader
from kitfs.oci.descriptor import ManifestMalformed as ManifestMalformed
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
ANNOTATION_PARENT = "org.kitfs.parent"
"""The ModelKitID of the ModelKit that this one was derived from."""
ANNOTATION_PARENT_REFERENCE = "org.kitfs.parent.reference"
"""The reference that it had when this one was derived; for people, as tags move."""
ANNOTATION_MESSAGE = "org.kitfs.message"
"""What the one who derived it said about the change."""

MANIFEST_SIZE_MAX = strict_json.LIMIT_BYTES

_EMPTY = Digest.of(b"")
_CREATED = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.\d{1,30})?(Z|z|[+-]\d\d:\d\d)",
    re.ASCII,
)


class NotAModelKit(MalformedError):
    """A well-formed manifest of something else: a container image, an image index, another artifact.

    Attributes:
        what: The media type that says so.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"not a ModelKit: {what}")
        self.what = what


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
        ManifestMalformed: when it breaks the format or a limit, with all problems and their places.
        NotAModelKit: when it is well formed so far and something else.
    """
    top = _decode(raw)
    reader = DescriptorReader()
    has_layers, has_manifests = "layers" in top, "manifests" in top
    if has_layers and has_manifests:
        reader.note("both layers and manifests", "")
    elif has_manifests:
        raise NotAModelKit("it is an image index")
    _check_schema_version(reader, top)
    media_type = reader.media_type(top, "mediaType")
    _check_kind(reader, media_type not in (None, OCI_MANIFEST), f"its media type is {str(media_type)[:200]!r}")
    for key in ("config", "layers"):
        if key not in top:
            reader.note(f"no {key}", "")
    artifact_type = reader.media_type(top, "artifactType")
    config = reader.descriptor(top["config"], "config") if "config" in top else None
    if config is not None and artifact_type not in (ARTIFACT_KITOPS, ARTIFACT_MODELPACK):
        is_other = not is_config_type(config.media_type)
        _check_kind(reader, is_other, f"its config has media type {config.media_type[:200]!r}")
    layers = reader.descriptors(top.get("layers"), "layers")
    annotations = reader.annotations(top.get("annotations"), "annotations")
    _check_sizes(reader, config, layers)
    reader.finish()
    if config is None:
        raise ManifestMalformed("no config")
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
    reader = DescriptorReader()
    if "layers" in top:
        reader.note("an index has no layers", "")
    _check_schema_version(reader, top)
    if "manifests" not in top:
        reader.note("no manifests", "")
    found = reader.descriptors(top.get("manifests"), "manifests")
    reader.finish()
    sizes: dict[Digest, int] = {}
    for number, descriptor in enumerate(found):
        if sizes.setdefault(descriptor.digest, descriptor.size) != descriptor.size:
            reader.note(f"{descriptor.digest} has two sizes", f"manifests[{number}].size")
    reader.finish()
    return found


def parse_descriptor(value: object, place: str = "descriptor") -> Descriptor:
    """Check one decoded descriptor, as kit's tags files hold them.

    Raises:
        ManifestMalformed: when it breaks the format.
    """
    reader = DescriptorReader()
    descriptor = reader.descriptor(value, place)
    reader.finish()
    return descriptor


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


def _check_schema_version(reader: DescriptorReader, top: dict[str, object]) -> None:
    version = top.get("schemaVersion")
    if type(version) is not int or version != 2:
        reader.note(f"{str(version)[:40]!r}, expected 2", "schemaVersion")


def _check_kind(reader: DescriptorReader, is_other: bool, what: str) -> None:
    """Refuse another artifact; what is malformed already is refused as that."""
    if is_other and not reader.problems:
        raise NotAModelKit(what)


def _check_sizes(reader: DescriptorReader, config: Descriptor | None, layers: tuple[Descriptor, ...]) -> None:
    """Sizes that can not be; of descriptors that could be read, or each problem would come twice."""
    unread = {place.partition(".")[0] for place, _ in reader.problems}
    sizes: dict[Digest, int] = {}
    named = [("config", config)] if config is not None else []
    for place, descriptor in (*named, *((f"layers[{number}]", layer) for number, layer in enumerate(layers))):
        if place in unread:
            continue
        if sizes.setdefault(descriptor.digest, descriptor.size) != descriptor.size:
            reader.note(f"{descriptor.digest} has two sizes", f"{place}.size")
        if descriptor.size == 0 and (place == "config" or not _may_be_empty(descriptor)):
            reader.note("size 0", f"{place}.size")


def _may_be_empty(layer: Descriptor) -> bool:
    layer_type = parse_layer_type(layer.media_type)
    return layer.digest == _EMPTY and (layer_type is None or layer_type.format is LayerFormat.RAW)
