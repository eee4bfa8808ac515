"""Media types of ModelKit configs and layers, in every spelling that a program ever wrote.

Four families, read by one table each:

========================  =======================================================  ==============================
family                    layer type                                               written by
========================  =======================================================  ==============================
``KITOPS``                ``application/vnd.kitops.modelkit.<kind>.v1.<form>``     kit 0.1.0 and newer, kitfs
``KITOPS_MODEL``          ``application/vnd.kitops.model.content.v1.tar+gzip`` …   kit before its first release
``JOZU``                  ``application/vnd.jozu.model.content.v1.tar+gzip`` …     the specification's example
``MODELPACK``             ``application/vnd.cncf.model.<kind>.v1.<form>``          modctl, kit 1.10 ``--use-model-pack``
========================  =======================================================  ==============================

A text that no table knows is None: the caller skips the layer with a warning, as kit does. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

CONFIG_KITOPS = "application/vnd.kitops.modelkit.config.v1+json"
CONFIG_KITOPS_MODEL = "application/vnd.kitops.model.config.v1+json"
CONFIG_JOZU = "application/vnd.jozu.model.config.v1+json"
CONFIG_MODELPACK = "application/vnd.cncf.model.config.v1+json"
ARTIFACT_KITOPS = "application/vnd.kitops.modelkit.manifest.v1+json"
ARTIFACT_MODELPACK = "application/vnd.cncf.model.manifest.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER_INDEX = "application/vnd.kitfs.layer.index.v1"
"""The image index of a layer, our own (`kitfs/layer/image_index.py`)."""
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

_CONFIGS = frozenset({CONFIG_KITOPS, CONFIG_KITOPS_MODEL, CONFIG_JOZU, CONFIG_MODELPACK})


class LayerKind(StrEnum):
    """What a layer holds; the value is kit's word for it."""

    MODEL = "model"
    MODELPART = "modelpart"
    DATASET = "dataset"
    CODE = "code"
    DOCS = "docs"
    MCPB = "mcpb"


class LayerFormat(StrEnum):
    """How members lie in a layer: a tar of many, or the bytes of one."""

    TAR = "tar"
    RAW = "raw"


class Compression(StrEnum):
    """How the tar or the raw bytes are compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


class Family(StrEnum):
    """Who named the media type."""

    KITOPS = "kitops"
    KITOPS_MODEL = "kitops-model"
    JOZU = "jozu"
    MODELPACK = "modelpack"


@dataclass(frozen=True, slots=True)
class LayerType:
    """A layer's media type, taken apart."""

    kind: LayerKind
    format: LayerFormat = LayerFormat.TAR
    compression: Compression = Compression.NONE
    family: Family = Family.KITOPS


_KINDS: dict[Family, dict[str, LayerKind]] = {
    Family.KITOPS: {f"vnd.kitops.modelkit.{kind}": kind for kind in LayerKind},
    Family.KITOPS_MODEL: {
        "vnd.kitops.model.content": LayerKind.MODEL,
        "vnd.kitops.dataset.content": LayerKind.DATASET,
        "vnd.kitops.model.code": LayerKind.CODE,
    },
    Family.JOZU: {
        "vnd.jozu.model.content": LayerKind.MODEL,
        "vnd.jozu.dataset.content": LayerKind.DATASET,
        "vnd.jozu.model.code": LayerKind.CODE,
    },
    Family.MODELPACK: {
        "vnd.cncf.model.weight": LayerKind.MODEL,
        "vnd.cncf.model.weight.config": LayerKind.MODELPART,
        "vnd.cncf.model.dataset": LayerKind.DATASET,
        "vnd.cncf.model.code": LayerKind.CODE,
        "vnd.cncf.model.doc": LayerKind.DOCS,
    },
}
_LOOKUP = {name: (family, kind) for family, names in _KINDS.items() for name, kind in names.items()}
_NAMES = {(family, kind): name for name, (family, kind) in _LOOKUP.items()}
_TYPE = re.compile(r"application/([a-z.]{1,64})\.v1\.(tar|raw)(?:\+(gzip|zstd))?")


@lru_cache(maxsize=256)
def parse_layer_type(text: str) -> LayerType | None:
    """Take a layer's media type apart; None when no family knows it."""
    match = _TYPE.fullmatch(text)
    found = _LOOKUP.get(match.group(1)) if match else None
    if match is None or found is None:
        return None
    family, kind = found
    parsed = LayerType(kind, LayerFormat(match.group(2)), Compression(match.group(3) or "none"), family)
    return parsed if _is_allowed(parsed) else None


def encode_layer_type(layer_type: LayerType) -> str:
    """The media type's text.

    Raises:
        ValueError: when the family has no such type (raw and compressed in ModelPack, docs in the oldest names);
            a caller's mistake, not bad input.
    """
    name = _NAMES.get((layer_type.family, layer_type.kind))
    if name is None or not _is_allowed(layer_type):
        raise ValueError(f"no media type for {layer_type}")
    suffix = "" if layer_type.compression is Compression.NONE else f"+{layer_type.compression}"
    return f"application/{name}.v1.{layer_type.format}{suffix}"


def has_kind(family: Family, kind: LayerKind) -> bool:
    """Whether a family has a media type for a kind of layer."""
    return (family, kind) in _NAMES


def is_config_type(text: str) -> bool:
    """Whether a config of this media type makes its manifest a ModelKit."""
    return text in _CONFIGS


def _is_allowed(layer_type: LayerType) -> bool:
    raw = layer_type.format is LayerFormat.RAW
    plain = layer_type.compression is Compression.NONE
    if layer_type.kind is LayerKind.MCPB:
        return raw and plain
    if layer_type.family is Family.MODELPACK:
        return plain or not raw
    if layer_type.family in (Family.JOZU, Family.KITOPS_MODEL):
        return not raw
    return True
