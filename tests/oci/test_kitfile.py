"""The Kitfile in both notations, against what kit wrote."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from kitfs.digest import Digest
from kitfs.oci.kitfile import (
    Code,
    Dataset,
    Docs,
    Kitfile,
    McpServer,
    Model,
    ModelPart,
    Package,
    Prompt,
    encode_kitfile_json,
    encode_kitfile_yaml,
    iter_artifacts,
    parse_kitfile_json,
    parse_kitfile_yaml,
    replace_digests,
)
from kitfs.oci.mediatype import LayerKind

A, B = Digest("a" * 64), Digest("b" * 64)


def test_regenerated_kitfile_is_what_kit_unpacks(real_kitfiles: list[Any]):
    """For every ModelKit of six versions of kit, the YAML has the digest of the file that kit's unpack wrote."""
    for real in real_kitfiles:
        regenerated = encode_kitfile_yaml(parse_kitfile_json(real.config))
        assert hashlib.sha256(regenerated).hexdigest() == real.unpacked_sha256, real.name


def test_config_survives_being_read_and_written(real_kitfiles: list[Any]):
    """Configs in today's field order are written back byte for byte; older ones say the same."""
    for real in real_kitfiles:
        kitfile = parse_kitfile_json(real.config)
        if real.name >= "kit-v0.4":
            assert encode_kitfile_json(kitfile) == real.config, real.name
        assert parse_kitfile_json(encode_kitfile_json(kitfile)) == kitfile


@pytest.mark.parametrize(
    ("folder", "file", "name"),
    [
        ("myllm", "Kitfile.full", "kit-v1.7.0 myllm_3.1.4"),
        ("one-file", "Kitfile", "kit-v1.7.0 one-file_1"),
        ("whole", "Kitfile", "kit-v1.7.0 whole_dot"),
        ("tuned", "Kitfile", "kit-v1.7.0 registry.example.com_8080_acme_team_a_tuned_1"),
        ("myllm", "Kitfile.02", "kit-v0.2.3 myllm_3.1.4"),
        ("myllm", "Kitfile.v0.1", "kit-v0.1.0 myllm_3.1.4"),
    ],
)
def test_source_kitfile_gives_kits_config(
    shared_fixtures: Path, real_kitfiles: list[Any], folder: str, file: str, name: str
):
    """The YAML that was packed, with the layers' digests, is kit's config blob (kit 0.4 and newer: its bytes)."""
    config = next(real.config for real in real_kitfiles if real.name == name)
    expected = parse_kitfile_json(config)
    source = parse_kitfile_yaml((shared_fixtures / "source" / folder / file).read_bytes())
    digests = [(artifact.digest, artifact.diff_id) for artifact in iter_artifacts(expected)]
    packed = replace_digests(source, [(d, i) for d, i in digests if d and i]) if digests[0][0] else source
    if name >= "kit-v0.4":
        assert encode_kitfile_json(packed) == config
    elif expected.model and packed.model:  # these versions did not know parameters yet
        packed = msgspec.structs.replace(packed, model=msgspec.structs.replace(packed.model, parameters=None))
        assert packed == expected


def test_parameters_become_the_json_that_kit_makes(corpora: Path):
    """kitops' own cases: YAML to exact JSON, and back to the same YAML."""
    paths = sorted((corpora / "kitops/parameters").glob("*.yaml"))
    assert len(paths) == 5
    for path in paths:
        case = YAML(typ="safe", pure=True).load(path.read_text())
        kitfile = parse_kitfile_yaml(case["kitfileYaml"].encode())
        assert encode_kitfile_json(kitfile).decode() == case["kitfileJson"]
        assert encode_kitfile_yaml(kitfile).decode() == case["kitfileYaml"]


FULL = Kitfile(
    manifest_version="1.0.0",
    package=Package(name="p", authors=("a", "b, c")),
    model=Model(
        path="m", parts=(ModelPart(path="q", type="lora"),), parameters={"b": 2.5, "a": [None]}, digest=A, diff_id=B
    ),
    code=(Code(path="c", license="MIT"),),
    datasets=(Dataset(name="d", path="d"), Dataset(path="r", remote_path="s3://b/k", remote_hash="h")),
    docs=(Docs(),),
    prompts=(Prompt(path="prompts"),),
    mcp_servers=(McpServer(name="s", path="s.mcpb"),),
)


def test_every_key_has_its_place():
    """Both notations hold all keys in kit's order; digests are in JSON only; docs.path is written when empty."""
    assert encode_kitfile_json(FULL).decode() == (
        '{"manifestVersion":"1.0.0","package":{"name":"p","authors":["a","b, c"]},'
        '"model":{"path":"m","parts":[{"path":"q","type":"lora"}],"parameters":{"a":[null],"b":2.5},'
        f'"digest":"{A}","diffId":"{B}"}},"code":[{{"path":"c","license":"MIT"}}],'
        '"datasets":[{"name":"d","path":"d"},{"path":"r","remotePath":"s3://b/k","remoteHash":"h"}],'
        '"docs":[{"path":""}],"prompts":[{"path":"prompts"}],"mcpServers":[{"name":"s","path":"s.mcpb"}]}'
    )
    assert encode_kitfile_yaml(FULL).decode() == (
        "manifestVersion: 1.0.0\npackage:\n  name: p\n  authors: [a, 'b, c']\nmodel:\n  path: m\n  parts:\n"
        "    - path: q\n      type: lora\n  parameters:\n    a:\n      - null\n    b: 2.5\n"
        "code:\n  - path: c\n    license: MIT\ndatasets:\n  - name: d\n    path: d\n  - path: r\n"
        '    remotePath: s3://b/k\n    remoteHash: h\ndocs:\n  - path: ""\nprompts:\n  - path: prompts\n'
        "mcpServers:\n  - name: s\n    path: s.mcpb\n"
    )


def test_artifacts_come_in_the_order_of_layers():
    """What has a layer, in the manifest's order; prompts are code layers, remote datasets have none."""
    assert [(artifact.kind, artifact.subtype, artifact.path) for artifact in iter_artifacts(FULL)] == [
        (LayerKind.MODEL, "", "m"),
        (LayerKind.MODELPART, "", "q"),
        (LayerKind.CODE, "", "c"),
        (LayerKind.DATASET, "", "d"),
        (LayerKind.DOCS, "", ""),
        (LayerKind.CODE, "prompt", "prompts"),
        (LayerKind.MCPB, "", "s.mcpb"),
    ]
    assert list(iter_artifacts(Kitfile(model=Model(path="myllm:1")))) == []
    assert list(iter_artifacts(Kitfile(model=Model(name="no path")))) == []


def test_digests_land_where_the_artifacts_are():
    """Every entry with a layer gets its pair, in order, and a wrong number is a caller's mistake."""
    pairs = [(Digest(f"{n:064x}"), Digest(f"{n + 100:064x}")) for n in range(7)]
    replaced = replace_digests(FULL, pairs)
    assert [(artifact.digest, artifact.diff_id) for artifact in iter_artifacts(replaced)] == pairs
    assert replaced.datasets[1].digest is None
    for wrong in (pairs[:6], [*pairs, pairs[0]]):
        with pytest.raises(ValueError, match="digests than entries"):
            replace_digests(FULL, wrong)


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=12)
PARAMETERS = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KITFILES = st.builds(
    Kitfile,
    manifest_version=TEXT,
    package=st.builds(Package, name=TEXT, description=TEXT, authors=st.lists(TEXT, max_size=3).map(tuple)),
    model=st.none()
    | st.builds(
        Model, name=TEXT, path=TEXT, parameters=PARAMETERS, digest=st.none() | st.just(A), diff_id=st.just(None)
    ),
    datasets=st.lists(st.builds(Dataset, name=TEXT, path=TEXT, parameters=PARAMETERS), max_size=2).map(tuple),
    docs=st.lists(st.builds(Docs, path=TEXT, description=TEXT), max_size=2).map(tuple),
)


@given(KITFILES)
def test_kitfile_survives_json(kitfile: Kitfile):
    """What is written as a config is read as the same Kitfile."""
    assert parse_kitfile_json(encode_kitfile_json(kitfile)) == kitfile


@given(KITFILES)
def test_kitfile_survives_yaml(kitfile: Kitfile):
    """What is regenerated as YAML says the same when it is read, where go-yaml itself can read what it writes."""
    raw = encode_kitfile_yaml(kitfile)
    if b"|" in raw or b"<<" in raw:  # it loses a block's leading line feed, and writes a key << as a merge
        return
    again = parse_kitfile_yaml(raw)
    assert encode_kitfile_yaml(again) == raw
    model = msgspec.structs.replace(kitfile.model, digest=None) if kitfile.model else None
    assert encode_kitfile_json(again) == encode_kitfile_json(msgspec.structs.replace(kitfile, model=model))
