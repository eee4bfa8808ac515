"""Manifests and indexes: real ones are read, hostile ones refused, ours written as kit writes its."""

import json
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.oci.manifest import (
    ANNOTATION_REF_NAME,
    Descriptor,
    ManifestMalformed,
    NotAModelKit,
    encode_manifest,
    parse_index,
    parse_manifest,
)
from kitfs.oci.mediatype import ARTIFACT_MODELPACK, CONFIG_KITOPS, CONFIG_MODELPACK, OCI_MANIFEST

A, B = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
TAR = "application/vnd.kitops.modelkit.model.v1.tar"
RAW = "application/vnd.cncf.model.code.v1.raw"
EMPTY = str(Digest.of(b""))

EXAMPLE = {
    "schemaVersion": 2,
    "config": {
        "mediaType": "application/vnd.jozu.model.config.v1+json",
        "digest": "sha256:d5815835051dd97d800a03f641ed8162877920e734d3d705b698912602b8c763",
        "size": 301,
    },
    "layers": [
        {
            "mediaType": "application/vnd.jozu.model.content.v1.tar+gzip",
            "digest": "sha256:3f907c1a03bf20f20355fe449e18ff3f9de2e49570ffb536f1a32f20c7179808",
            "size": 30327160,
        }
    ],
}


def descriptor(**changes: object) -> dict[str, object]:
    return {"mediaType": TAR, "digest": A, "size": 5, **changes}


def manifest(**changes: object) -> bytes:
    value = {
        "schemaVersion": 2,
        "config": {"mediaType": CONFIG_KITOPS, "digest": B, "size": 3},
        "layers": [descriptor()],
        **changes,
    }
    return json.dumps({key: item for key, item in value.items() if item != "absent"}).encode()


def test_example_of_the_specification_is_read():
    """The manifest of the specification v0.1, with its older media types and no media type of its own."""
    parsed = parse_manifest(json.dumps(EXAMPLE).encode())
    assert parsed.config.size == 301
    assert [(layer.media_type, layer.size) for layer in parsed.layers] == [
        ("application/vnd.jozu.model.content.v1.tar+gzip", 30327160)
    ]
    assert parsed.media_type is None
    assert not parsed.is_modelpack


def test_every_manifest_that_another_program_wrote_is_read(shared_fixtures: Path):
    """Manifests of six versions of kit and of modctl are read, and their digest is the name of their file."""
    count = 0
    for path in sorted(shared_fixtures.glob("*/**/blobs/sha256/*")):
        if path.stat().st_size < 100_000 and (raw := path.read_bytes()).startswith(b'{"schemaVersion"'):
            assert parse_manifest(raw).digest.hex == path.name
            count += 1
    assert count >= 14


def test_manifest_of_form_a_is_written_as_kit_wrote_it(shared_fixtures: Path):
    """Without artifact type and media type the bytes are those of kit 1.7.0."""
    for path in (shared_fixtures / "kit-v1.7.0/storage/blobs/sha256").iterdir():
        raw = path.read_bytes() if path.stat().st_size < 100_000 else b""
        if raw.startswith(b'{"schemaVersion"') and b'"layers":null' not in raw:
            parsed = parse_manifest(raw)
            assert (
                encode_manifest(parsed.config, parsed.layers, parsed.annotations, artifact_type=None, media_type=None)
                == raw
            )


def test_manifest_of_form_b_has_the_order_of_the_image_specification():
    """Keys stand in the order of the struct, annotations sorted, no white space."""
    layer = Descriptor(TAR, Digest.parse(A), 5, {"org.cncf.model.filepath": "a<b"})
    raw = encode_manifest(Descriptor(CONFIG_KITOPS, Digest.parse(B), 3), [layer], {"z": "1", "a": "2"})
    assert raw.decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        '"artifactType":"application/vnd.kitops.modelkit.manifest.v1+json",'
        f'"config":{{"mediaType":"{CONFIG_KITOPS}","digest":"{B}","size":3}},'
        f'"layers":[{{"mediaType":"{TAR}","digest":"{A}","size":5,"annotations":{{"org.cncf.model.filepath":"a\\u003cb"}}}}],'
        '"annotations":{"a":"2","z":"1"}}'
    )
    assert parse_manifest(raw).layers == (layer,)


def test_missing_and_null_parts_are_accepted():
    """layers may be null, annotations too, and the media type missing or right."""
    parsed = parse_manifest(manifest(layers=None, annotations=None, mediaType=OCI_MANIFEST))
    assert parsed.layers == ()
    assert parsed.annotations == {}


def test_modelpack_is_told_by_artifact_type_or_config():
    """Either of the two says that a manifest is a ModelPack."""
    assert parse_manifest(manifest(artifactType=ARTIFACT_MODELPACK)).is_modelpack
    config = {"mediaType": CONFIG_MODELPACK, "digest": B, "size": 3}
    assert parse_manifest(manifest(config=config)).is_modelpack


@pytest.mark.parametrize(
    ("created", "expected_s"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000),
        ("2023-11-14T23:13:20.999999999+01:00", 1_700_000_000),
        ("1970-01-01T00:00:00Z", 0),
        ("yesterday", 0),
        ("2023-13-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+14:00", 0),
        ("", 0),
    ],
)
def test_creation_time_is_seconds_or_the_epoch(created: str, expected_s: int):
    """RFC 3339 is read; anything else is the epoch, never an error and never now."""
    parsed = parse_manifest(manifest(annotations={"org.opencontainers.image.created": created}))
    assert parsed.created_s == expected_s


MALFORMED = {
    "not JSON": (b"{", "Expecting"),
    "not an object": (b"[]", "not a JSON object"),
    "above 4 MiB": (manifest() + b" " * (4 << 20), "at most 4194304"),
    "depth 2000": (b'{"a":' * 2000, "nested deeper"),
    "duplicate key": (b'{"schemaVersion":2,"schemaVersion":2}', "duplicate key"),
    "NaN": (manifest(layers=[descriptor(size=float("nan"))]), "NaN"),
    "both lists": (manifest(manifests=[]), "both layers and manifests"),
    "no layers": (manifest(layers="absent"), "no layers"),
    "no config": (manifest(config="absent"), "no config"),
    "version 1": (manifest(schemaVersion=1), "schemaVersion"),
    "version true": (manifest(schemaVersion=True), "schemaVersion"),
    "version 2.0": (manifest(schemaVersion=2.0), "schemaVersion"),
    "layers an object": (manifest(layers={"a": 1}), "layers: not a list"),
    "layer a number": (manifest(layers=[1]), r"layers\[0\]: not a descriptor"),
    "size -1": (manifest(layers=[descriptor(size=-1)]), r"layers\[0\].size"),
    "size 2^63": (manifest(layers=[descriptor(size=2**63)]), r"layers\[0\].size"),
    "size 1.0": (manifest(layers=[descriptor(size=1.0)]), r"layers\[0\].size"),
    "size true": (manifest(layers=[descriptor(size=True)]), r"layers\[0\].size"),
    "size text": (manifest(layers=[descriptor(size="1")]), r"layers\[0\].size"),
    "size missing": (manifest(layers=[{"mediaType": TAR, "digest": A}]), r"layers\[0\].size"),
    "size 0": (manifest(layers=[descriptor(size=0)]), r"layers\[0\].size: size 0"),
    "empty tar": (manifest(layers=[descriptor(size=0, digest=EMPTY)]), r"layers\[0\].size: size 0"),
    "empty config": (manifest(config={"mediaType": CONFIG_KITOPS, "digest": EMPTY, "size": 0}), "config.size"),
    "digest short": (manifest(layers=[descriptor(digest=A[:-1])]), r"layers\[0\].digest"),
    "digest upper case": (manifest(layers=[descriptor(digest=A.upper())]), r"layers\[0\].digest"),
    "digest of other algorithm": (manifest(layers=[descriptor(digest="sha512:" + "a" * 128)]), r"layers\[0\].digest"),
    "digest a path": (manifest(layers=[descriptor(digest="sha256:../../etc/passwd")]), r"layers\[0\].digest"),
    "digest with newline": (manifest(layers=[descriptor(digest=A + "\n")]), r"layers\[0\].digest"),
    "digest a number": (manifest(layers=[descriptor(digest=5)]), r"layers\[0\].digest"),
    "media type missing": (manifest(layers=[{"digest": A, "size": 5}]), r"layers\[0\].mediaType"),
    "media type long": (manifest(layers=[descriptor(mediaType="a" * 256)]), r"layers\[0\].mediaType"),
    "two sizes": (manifest(layers=[descriptor(), descriptor(size=6)]), "two sizes"),
    "two sizes with config": (manifest(layers=[descriptor(digest=B)]), "two sizes"),
    "annotation a number": (manifest(annotations={"a": 1}), "annotations"),
    "annotations a list": (manifest(layers=[descriptor(annotations=[])]), r"layers\[0\].annotations"),
    "many layers": (b'{"schemaVersion":2,"config":{},"layers":[' + b"0," * 1_000_000 + b"0]}", "config"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_manifest_is_refused_with_its_place(name: str):
    """Each kind of bad manifest is refused, and the message names the place."""
    raw, place = MALFORMED[name]
    with pytest.raises(ManifestMalformed, match=place):
        parse_manifest(raw)


def test_all_problems_of_a_manifest_come_at_once_with_their_places():
    """Every malformed descriptor and annotation is named; what could not be read has no second problem."""
    bad = [
        descriptor(size=-1, digest="sha256:x"),
        descriptor(),
        5,
        descriptor(annotations={"a": 1, "b": "c", "d": None}),
        descriptor(size=6),
        descriptor(mediaType="", digest=A.upper()),
    ]
    with pytest.raises(ManifestMalformed) as caught:
        parse_manifest(manifest(schemaVersion=1, layers=bad, annotations=[]))
    assert [place for place, _ in caught.value.problems] == [
        "schemaVersion",
        "layers[0].digest",
        "layers[0].size",
        "layers[2]",
        "layers[3].annotations['a']",
        "layers[3].annotations['d']",
        "layers[5].mediaType",
        "layers[5].digest",
        "annotations",
        "layers[4].size",
    ]
    assert str(caught.value).startswith("malformed manifest:\n  * schemaVersion: '1', expected 2\n  * layers[0].digest")


def test_many_problems_of_a_manifest_do_not_make_a_long_message():
    """The message shows the first fifty and counts the rest."""
    with pytest.raises(ManifestMalformed, match="and 1950 more") as caught:
        parse_manifest(manifest(layers=[5] * 2000))
    assert len(caught.value.problems) == 2000
    assert len(str(caught.value)) < 5_000


def test_number_of_layers_is_limited():
    """A list that is longer than any real one is refused before its items are looked at."""
    with pytest.raises(ManifestMalformed, match="16385 entries"):
        parse_manifest(manifest(layers=[0] * 16_385))


def test_layer_of_an_empty_file_is_accepted():
    """modctl writes a raw layer of size 0 for an empty file; it has the digest of no bytes."""
    parsed = parse_manifest(manifest(layers=[descriptor(mediaType=RAW, size=0, digest=EMPTY)]))
    assert parsed.layers[0].size == 0
    with pytest.raises(ManifestMalformed, match="size 0"):
        parse_manifest(manifest(layers=[descriptor(mediaType=RAW, size=0)]))


def test_same_layer_twice_is_accepted():
    """One blob may be listed twice with one size."""
    assert len(parse_manifest(manifest(layers=[descriptor(), descriptor()])).layers) == 2


@pytest.mark.parametrize(
    "raw",
    [
        manifest(config={"mediaType": "application/vnd.oci.image.config.v1+json", "digest": B, "size": 3}),
        manifest(mediaType="application/vnd.oci.image.index.v1+json"),
        b'{"schemaVersion":2,"manifests":[]}',
    ],
)
def test_other_artifacts_are_no_modelkits(raw: bytes):
    """A container image and an index are well formed and refused as what they are."""
    with pytest.raises(NotAModelKit):
        parse_manifest(raw)


def test_index_of_a_layout_is_read(shared_fixtures: Path):
    """modctl's layout has two manifests, named by annotations."""
    entries = parse_index((shared_fixtures / "modctl/layout/index.json").read_bytes())
    assert [entry.annotations[ANNOTATION_REF_NAME] for entry in entries] == ["raw", "tar"]


@pytest.mark.parametrize(
    "raw", [b"{}", b'{"schemaVersion":2}', b'{"schemaVersion":2,"manifests":[],"layers":[]}', b"[]"]
)
def test_malformed_index_is_refused(raw: bytes):
    """An index needs its version and its list, and has no layers."""
    with pytest.raises(ManifestMalformed):
        parse_index(raw)
