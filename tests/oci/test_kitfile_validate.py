"""The rules of a Kitfile beyond its notation."""

import pytest

from kitfs.oci.kitfile import KitfileMalformed, clean_path, iter_warnings, parse_kitfile_yaml, validate_kitfile

REFUSED = {
    "model:\n  path: /abs\n": "model: absolute paths",
    "code:\n  - path: ../x\n": "code layer 0: path '../x' leaves",
    "code:\n  - path: a/../../x\n": "leaves the directory",
    "docs:\n  - path: ..\n": "docs layer 0: path '..' leaves",
    "model:\n  path: http://x/y\n": "is a URL",
    'model:\n  path: "a\\0b"\n': "NUL",
    f"model:\n  path: {'x' * 256}\n": "too long",
    f"model:\n  path: {'x/' * 2100}y\n": "too long",
    "model:\n  name: m\n  path: a\ncode:\n  - path: ./a/\n": "model m and code layer 0 use the same path a",
    "model:\n  name: m\ncode:\n  - path: .\n": "use the same path .",
    "model:\n  path: m\n  parts:\n    - {name: p, path: q, type: -x}\n": "modelpart p has invalid type",
    f"model:\n  path: m\n  parts:\n    - {{path: q, type: {'x' * 65}}}\n": "type is too long",
    "datasets:\n  - {name: d, path: a, remotePath: s3://b/k}\n": "no remoteHash",
    "datasets:\n  - {name: d, path: a, remotePath: /x}\n": "neither s3://",
    "datasets:\n  - {path: a, remotePath: 'x:1'}\ncode:\n  - path: a/b\n": "lies inside the path of the remote",
    "mcpServers:\n  - path: a.mcpb\n": "mcpServer 0 has no name",
    "mcpServers:\n  - {name: a, path: a.mcpb}\n  - {name: a, path: b.mcpb}\n": "two mcpServers are named a",
    "mcpServers:\n  - {name: a, path: a.zip}\n": "does not end with .mcpb",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:40]))
def test_broken_rule_is_refused(text: str):
    """Each broken rule is named."""
    with pytest.raises(KitfileMalformed, match=REFUSED[text]):
        validate_kitfile(parse_kitfile_yaml(text.encode()))


@pytest.mark.parametrize(
    "text",
    [
        "manifestVersion: 1.0.0\n",
        "model:\n  path: myllm:3.1.4\n  parts:\n    - path: head\n",
        "model:\n  path: .\ncode:\n  - path: src\n",
        "model:\n  path: a..b\n",
        "datasets:\n  - {remotePath: s3://b/k, remoteHash: x}\n  - {remotePath: 'other:1'}\n",
        "model:\n  path: m\n  parts:\n    - {path: q, type: lora-adapter_1.0}\n",
    ],
)
def test_good_kitfile_passes(text: str):
    """References, nested paths, dots in names and remote datasets are fine."""
    validate_kitfile(parse_kitfile_yaml(text.encode()))


def test_all_problems_come_sorted():
    """Several broken rules are one error."""
    text = b"model:\n  path: /x\ncode:\n  - path: ../a\n  - path: ../a\n"
    with pytest.raises(KitfileMalformed) as caught:
        validate_kitfile(parse_kitfile_yaml(text))
    assert caught.value.problems == sorted(caught.value.problems)
    assert len(caught.value.problems) == 4


def test_other_manifest_version_is_a_warning():
    """kit's own documentation writes 1.0; only a person needs to know."""
    assert list(iter_warnings(parse_kitfile_yaml(b"manifestVersion: 1.0.0\n"))) == []
    assert len(list(iter_warnings(parse_kitfile_yaml(b"manifestVersion: v1.0.0\n")))) == 1


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("", "."),
        (".", "."),
        ("./", "."),
        ("a/", "a"),
        ("./a//b/../c/.", "a/c"),
        ("//a", "/a"),
        ("../a", "../a"),
        (" a", " a"),
    ],
)
def test_path_is_cleaned_as_go_cleans_it(path: str, cleaned: str):
    """The shortest spelling of a path, as filepath.Clean gives it."""
    assert clean_path(path) == cleaned
