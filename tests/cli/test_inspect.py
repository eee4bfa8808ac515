"""``kitfs info`` and ``inspect``: kit 1.7.0's output, byte by byte, and what kit has no answer to."""

import hashlib
import json

import pytest

TAR = "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316"
KITS = ["myllm:3.1.4", "registry.example.com:8080/acme/team_a/tuned:1"]


@pytest.mark.parametrize("verb", ["info", "inspect"])
@pytest.mark.parametrize("reference", KITS)
def test_output_is_kits(filled, shared_fixtures, verb, reference):
    """What kit 1.7.0 printed for a ModelKit is printed, byte for byte."""
    name = reference.replace(":", "_").replace("/", "_")
    expected = (shared_fixtures / f"kit-v1.7.0/output/{verb}-{name}.txt").read_text()
    assert filled(verb, reference).out == expected


@pytest.mark.parametrize("verb", ["info", "inspect"])
def test_reference_may_be_a_digest_or_without_tag(filled, verb):
    """A ModelKitID with or without repository names the ModelKit, and no tag means latest."""
    expected = filled(verb, "myllm:3.1.4").out
    assert [filled(verb, text).out for text in (TAR, f"myllm@{TAR}", "myllm")] == [expected] * 3


@pytest.mark.parametrize("verb", ["info", "inspect"])
def test_quiet_is_the_id(filled, verb):
    """-q prints the ModelKitID alone."""
    assert filled(verb, "-q", "myllm").out == f"{TAR}\n"


@pytest.mark.parametrize("verb", ["info", "inspect"])
def test_not_found(filled, verb):
    """What is not there is 3, in kit's words; what is no reference is 1."""
    done = filled(verb, "nope:1")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("kitfs: could not find modelkit nope:1\n")
    assert filled(verb, "X//y").code == 1


@pytest.mark.parametrize("version", ["v0.1.0", "v0.1.3", "v0.2.3", "v0.2.5", "v0.4.0", "v1.7.0"])
def test_every_fixture(kitfs, shared_fixtures, version):
    """Of every ModelKit of every kit info prints the Kitfile that kit 1.7.0 unpacked; inspect has kit's four keys."""
    folder = shared_fixtures / f"kit-{version}"
    kitfs("import", folder, "--copy", "--progress", "none")
    kits = [item for item in kitfs("list", "--format", "json").json for _ in item["tags"]]
    assert len(kits) == len(list((folder / "expected").iterdir())) + (version == "v1.7.0")  # latest is 3.1.4
    for item in kits:
        reference = f"{item['repo']}:{item['tags'][0]}"
        expected = folder / "expected" / f"{reference.replace(':', '_').replace('/', '_')}.json"
        (kitfile,) = [entry for entry in json.loads(expected.read_text()) if entry["path"] == "Kitfile"]
        assert hashlib.sha256(kitfs("info", reference).out.encode()).hexdigest() == kitfile["sha256"]
        shown = kitfs("inspect", reference).json
        assert list(shown) == ["digest", "cliVersion", "kitfile", "manifest"]
        assert shown["digest"] == item["digest"]


def test_empty_kitfile(filled):
    """An empty Kitfile has its package and null layers, as kit 1.7.0 prints them."""
    done = filled("inspect", "empty:0")
    assert '    "package": {}\n' in done.out and '    "layers": null,\n' in done.out


SELECTED = {
    ".model.name": "slice\n",
    "model.name": "slice\n",
    "package.authors": "- kitfs\n",
    "code": "- path: ./src\n  description: serving code\n",
    ".model.digest": "sha256:5e38e80ddcaa48a108f7a60f836ed82f52b1ab7876f0d0517b31f2a1583c1167\n",
    "model.format": '""\n',
    "prompts": "[]\n",
    "dataSets": "- name: train\n  path: ./data/train.jsonl\n  description: made sentences\n"
    "- name: eval\n  path: ./eval\n",
}
SELECTED_ONLY_HERE = {
    ".model.parts[0].path": "./adapters/lora.safetensors\n",
    "datasets[1].name": "eval\n",
    "model.parameters.nested.a[4]": "x<y\n",
    "package.authors[0]": "kitfs\n",
}


def test_selector_is_kits(filled):
    """A selector prints the node that kit prints for it; what is left out is an empty string or list."""
    assert {text: filled("info", "myllm", "--filter", text).out for text in SELECTED} == SELECTED


def test_selector_is_more_than_kits(filled):
    """Items of lists, keys of parameters and keys as the Kitfile spells them, which kit refuses, are found."""
    assert {text: filled("info", "myllm", "-f", text).out for text in SELECTED_ONLY_HERE} == SELECTED_ONLY_HERE


@pytest.mark.parametrize(
    ("code", "message", "selectors"),
    [
        (2, "invalid filter", ["a b", ".", "model..name", "code[x]", "code[0"]),
        (3, "cannot find required node", ["nope", "code[9]", "model.name.x", "model.parameters.nope"]),
    ],
)
def test_selector_fails(filled, code, message, selectors):
    """What is no selector is 2, what leads nowhere 3; nothing is printed as a result."""
    for selector in selectors:
        done = filled("info", "myllm", "-f", selector)
        assert (done.code, done.out) == (code, "") and message in done.err
    assert filled("info", "empty:0", "-f", "model").out == "null\n"
    assert filled("info", "empty:0", "-f", "model.name").code == 3


def test_info_as_json(filled):
    """--format json gives the Kitfile or the selected node as JSON, digests included, as inspect shows it."""
    kitfile = filled("inspect", "myllm").json["kitfile"]
    assert filled("info", "myllm", "--format", "json").json == kitfile
    assert filled("info", "myllm", "--format", "json", "-f", "model.parts").json == kitfile["model"]["parts"]
    assert filled("info", "myllm", "--format", "json", "-f", "model.name").json == "slice"


def test_modelpack(kitfs, shared_fixtures):
    """A ModelPack artifact without a Kitfile is inspected without one; info says that it has none."""
    assert kitfs("import", shared_fixtures / "modctl/layout", "--copy", "--as", "pack", "--progress", "none").code == 0
    shown = kitfs("inspect", "pack:raw").json
    assert list(shown) == ["digest", "cliVersion", "manifest"]
    assert list(shown["manifest"])[:4] == ["schemaVersion", "mediaType", "artifactType", "config"]
    done = kitfs("info", "pack:raw")
    assert done.code == 3 and "has no Kitfile" in done.err


@pytest.mark.parametrize("verb", ["info", "inspect"])
@pytest.mark.parametrize("damage", ["rotten", "lost"])
def test_unreadable_config(kitfs, shared_fixtures, tmp_path, verb, damage):
    """A ModelKit whose config is rotten or lost is 6, with its ModelKitID in the message."""
    kitfs("import", shared_fixtures / "kit-v1.7.0", "--copy", "--progress", "none")
    config = tmp_path / "home/blobs/sha256/14/140e17e620f62380c7801047d14343caddbbfc87d97a2788f77e9a210843826c"
    config.chmod(0o644)
    config.write_bytes(b"x" * 40) if damage == "rotten" else config.unlink()
    done = kitfs(verb, "empty:0")
    assert (done.code, done.out) == (6, "")
    assert "ModelKit sha256:2ae55d09" in done.err and "can not be read" in done.err
