"""Media types of every family, taken apart and written again."""

import pytest

from kitfs.oci import mediatype
from kitfs.oci.mediatype import (
    Compression,
    Family,
    LayerFormat,
    LayerKind,
    LayerType,
    encode_layer_type,
    is_config_type,
    parse_layer_type,
)

KITOPS = [
    f"application/vnd.kitops.modelkit.{kind}.v1.{form}"
    for kind in ("model", "modelpart", "dataset", "code", "docs")
    for form in ("tar", "tar+gzip", "tar+zstd", "raw", "raw+gzip", "raw+zstd")
] + ["application/vnd.kitops.modelkit.mcpb.v1.raw"]
MODELPACK = [
    f"application/vnd.cncf.model.{kind}.v1.{form}"
    for kind in ("weight", "weight.config", "doc", "code", "dataset")
    for form in ("raw", "tar", "tar+gzip", "tar+zstd")
]
EARLY = [
    f"application/vnd.{vendor}.{kind}.v1.tar+gzip"
    for vendor in ("jozu", "kitops")
    for kind in ("model.content", "dataset.content", "model.code")
]
UNKNOWN = [
    "",
    "application/octet-stream",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.kitops.modelkit.badbase.v1.tar",
    "application/vnd.kitops.modelkit.model.v1.tar+badCompression",
    "application/vnd.kitops.modelkit.model.v1.badFormat",
    "application/vnd.kitops.modelkit.model.v2.tar",
    "application/vnd.kitops.modelkit.model.v1.tar+gzip+gzip",
    "application/vnd.kitops.modelkit.model.v1.tar\n",
    "Application/vnd.kitops.modelkit.model.v1.tar",
    "application/vnd.kitops.modelkit.config.v1+json",
    "application/vnd.kitops.modelkit.mcpb.v1.tar",
    "application/vnd.kitops.modelkit.mcpb.v1.raw+gzip",
    "application/vnd.cncf.model.weight.v1.raw+gzip",
    "application/vnd.cncf.model.model.v1.tar",
    "application/vnd.jozu.model.docs.v1.tar",
    "application/vnd.jozu.model.content.v1.raw",
]


@pytest.mark.parametrize("text", KITOPS + MODELPACK + EARLY)
def test_layer_type_survives_being_read_and_written(text: str):
    """Every layer type that a program ever wrote is read, and written again as it was."""
    parsed = parse_layer_type(text)
    assert parsed is not None
    assert encode_layer_type(parsed) == text


def test_modelpack_has_twenty_layer_types():
    """Five kinds in four forms."""
    assert len({parse_layer_type(text) for text in MODELPACK}) == 20


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown_layer_type_is_none(text: str):
    """What no family has is None, so that the caller can skip the layer."""
    assert parse_layer_type(text) is None


def test_early_and_modelpack_names_mean_kits_kinds():
    """content is a model; weight, weight.config and doc are model, modelpart and docs."""
    expected = {
        "application/vnd.jozu.model.content.v1.tar+gzip": LayerType(
            LayerKind.MODEL, LayerFormat.TAR, Compression.GZIP, Family.JOZU
        ),
        "application/vnd.cncf.model.weight.v1.raw": LayerType(
            LayerKind.MODEL, LayerFormat.RAW, Compression.NONE, Family.MODELPACK
        ),
        "application/vnd.cncf.model.weight.config.v1.tar": LayerType(LayerKind.MODELPART, family=Family.MODELPACK),
        "application/vnd.cncf.model.doc.v1.tar": LayerType(LayerKind.DOCS, family=Family.MODELPACK),
    }
    assert {text: parse_layer_type(text) for text in expected} == expected


@pytest.mark.parametrize(
    "layer_type",
    [
        LayerType(LayerKind.MCPB),
        LayerType(LayerKind.MODEL, LayerFormat.RAW, Compression.GZIP, Family.MODELPACK),
        LayerType(LayerKind.DOCS, family=Family.JOZU),
    ],
)
def test_layer_type_that_no_family_has_can_not_be_written(layer_type: LayerType):
    """Writing a type that nobody could read is a mistake of the caller."""
    with pytest.raises(ValueError, match="no media type"):
        encode_layer_type(layer_type)


def test_config_types_of_all_families_are_known():
    """Four config types make a ModelKit; a container image's does not."""
    for name in ("CONFIG_KITOPS", "CONFIG_KITOPS_MODEL", "CONFIG_JOZU", "CONFIG_MODELPACK"):
        assert is_config_type(getattr(mediatype, name))
    assert not is_config_type("application/vnd.oci.image.config.v1+json")
