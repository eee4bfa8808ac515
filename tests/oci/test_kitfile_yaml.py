"""Kitfiles as people write them, good and bad."""

import contextlib
import random
import time
from pathlib import Path

import pytest

from kitfs.oci.kitfile import Kitfile, KitfileMalformed, encode_kitfile_json, encode_kitfile_yaml, parse_kitfile_yaml

MALFORMED = {
    "empty": ("", "it is empty"),
    "comments only": ("# a\n", "it is empty"),
    "not a mapping": ("- a\n", "line 1: the Kitfile: expected a mapping, found a list"),
    "unknown key": ("manifestVersion: 1\nmodle: x\n", "line 2: unknown key 'modle'"),
    "unknown nested key": (
        "model:\n  parts:\n    - path: a\n      size: 3\n",
        r"line 4: unknown key 'model.parts\[0\].size'",
    ),
    "digest key": ("model:\n  digest: sha256:x\n", "line 2: unknown key 'model.digest'"),
    "duplicate key": ("model: {}\nmodel: {}\n", "line 2: duplicate key 'model', first at line 1"),
    "duplicate by spelling": ("model:\n  parameters:\n    a: 1\n    'a': 2\n", "line 4: duplicate key"),
    "key not text": ("model:\n  parameters:\n    1: a\n", "line 3: model.parameters: a key is not text"),
    "key a list": ("model:\n  ? [a]\n  : b\n", "a key is not text"),
    "list for text": ("model:\n  name: [a]\n", "line 2: model.name: expected text, found a list"),
    "text for list": ("code: src\n", "line 1: code: expected a list, found a single value"),
    "text for mapping": ("model: ''\n", "line 1: model: expected a mapping"),
    "nan": ("model:\n  parameters: [.nan]\n", "line 2: model.parameters: JSON has no .nan"),
    "wrong explicit type": ("model:\n  parameters: !!int x\n", "line 2: 'x' is not int"),
    "python tag": ("model: !!python/object:os.system [ls]\n", "line 1: tag .*python/object.* is not supported"),
    "local tag": ("model:\n  name: !x y\n", "line 2: tag '!x' is not supported"),
    "binary tag": ("model:\n  name: !!binary aGk=\n", "line 2: tag .*binary.* is not supported"),
    "two documents": ("model: {}\n---\nmodel: {}\n", "line 2: more than one document"),
    "long tag": ("model:\n  name: " + "!" * 300_000, "line 2: a tag of more than 200"),
    "alias of nothing": ("model: *a\n", "line 1: alias 'a' of nothing"),
    "alias inside itself": ("model:\n  parameters: &a [*a]\n", "line 2: alias 'a' lies inside itself"),
    "merge of a list": ("model:\n  <<: [1]\n", "line 2: model: <<: expected a mapping"),
    "unclosed": ("model: {name: a\n", "line"),
    "tab": ("model:\n\tname: a\n", "line 2"),
    "not UTF-8": ("model:\n  name: \udcff\n", "line 2: not UTF-8"),
    "NUL": ("model: \0\n", "line 1: a character that YAML does not allow"),
    "depth 3000": ("model:\n  parameters: " + "[" * 3000, "line 2: nested deeper than 64"),
    "block depth 3000": (
        "model:\n parameters:\n" + "\n".join(" " * n + "- " for n in range(2, 1000)),
        "nested deeper than 64",
    ),
    "above 1 MiB": ("#" * (1 << 19) + "\n\n", "at most 524288"),
    "many values": ("model:\n  parameters: [" + "a," * 50_001 + "]\n", "line 2: more than 50000 values"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_kitfile_is_refused_with_its_line(name: str):
    """Each kind of bad Kitfile is refused, and the message names the line where there is one."""
    text, message = MALFORMED[name]
    with pytest.raises(KitfileMalformed, match=message):
        parse_kitfile_yaml(text.encode(errors="surrogateescape"))


def test_all_problems_are_reported_together():
    """Problems of several lines come in one error."""
    with pytest.raises(KitfileMalformed) as caught:
        parse_kitfile_yaml(b"a: 1\nmodel:\n  b: 2\n  name: []\ncode: {}\n")
    assert [problem[:6] for problem in caught.value.problems] == ["line 1", "line 3", "line 4", "line 5"]


def test_many_problems_do_not_make_a_long_message():
    """The message shows the first fifty and counts the rest."""
    with pytest.raises(KitfileMalformed) as caught:
        parse_kitfile_yaml("".join(f"k{number}: 1\n" for number in range(2000)).encode())
    assert len(caught.value.problems) == 2000
    assert "and 1950 more" in str(caught.value)
    assert len(str(caught.value)) < 10_000


def test_alias_bomb_is_refused_at_once():
    """Nine levels of nine aliases, 387 million values, are refused within two seconds."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    text = "model:\n  parameters:\n" + "".join(f"    {line}\n" for line in lines)
    start = time.perf_counter()
    with pytest.raises(KitfileMalformed, match="aliases included"):
        parse_kitfile_yaml(text.encode())
    assert time.perf_counter() - start < 2


def test_merge_bomb_is_refused_at_once():
    """Mappings that merge each other nine times nine deep are refused within two seconds."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)]
    text = "model:\n  parameters:\n" + "".join(f"    {line}\n" for line in lines)
    start = time.perf_counter()
    with pytest.raises(KitfileMalformed, match="aliases included"):
        parse_kitfile_yaml(text.encode())
    assert time.perf_counter() - start < 2


def test_text_keys_take_scalars_as_they_are_written():
    """A version 1.10 is not a number, a date not a date, yes not a boolean."""
    raw = b"manifestVersion: 1.10\npackage:\n  version: 0x1F\n  name: yes\n  license: 2001-01-01\n  description: ~\n"
    kitfile = parse_kitfile_yaml(raw)
    assert kitfile.manifest_version == "1.10"
    assert (kitfile.package.version, kitfile.package.name) == ("0x1F", "yes")
    assert (kitfile.package.license, kitfile.package.description) == ("2001-01-01", "")


def test_anchors_and_merges_work():
    """Explicit keys win over merged ones, earlier merges over later."""
    raw = b"""
datasets:
  - &a {name: one, license: MIT}
  - &b {name: two, path: p, description: d}
  - <<: [*a, *b]
    name: three
model:
  parameters: {base: &c {x: 1, y: 2}, more: {<<: *c, y: 3}}
"""
    kitfile = parse_kitfile_yaml(raw)
    third = kitfile.datasets[2]
    assert (third.name, third.license, third.path, third.description) == ("three", "MIT", "p", "d")
    assert kitfile.model is not None
    assert kitfile.model.parameters["more"] == {"x": 1, "y": 3}


def test_nothing_is_nothing():
    """null and empty values leave keys out; null items of lists are dropped, as kit drops them."""
    kitfile = parse_kitfile_yaml(b"package:\nmodel: ~\ncode: null\ndocs: [null, {path: a}]\n")
    assert kitfile == parse_kitfile_yaml(b"docs:\n  - path: a\n")
    assert parse_kitfile_yaml(b"model: {}\n").model is not None
    assert parse_kitfile_yaml(b"\xef\xbb\xbfmodel: {}\n") == parse_kitfile_yaml(b"model: {}\n")


def test_mutated_kitfile_is_read_or_refused(shared_fixtures: Path):
    """2 000 damaged Kitfiles raise nothing but our error, each within a second, and what is read can be written."""
    source = (shared_fixtures / "source/myllm/Kitfile.full").read_bytes()
    pieces = [
        b"",
        b"\xff",
        b'"',
        b"[",
        b"}",
        b": ",
        b"- ",
        b"\n",
        b"  ",
        b"\t",
        b"&a ",
        b"*a",
        b"|",
        b"!!int ",
        b"%",
        b"#",
        b"\\",
        b"<<: ",
        b"---\n",
        b"\0",
    ]
    rng = random.Random(3)
    read = 0
    for _ in range(2_000):
        raw = bytearray(source)
        for _ in range(rng.randrange(1, 3)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(2)] = rng.choice(pieces)
        start = time.perf_counter()
        try:
            kitfile = parse_kitfile_yaml(bytes(raw))
            read += 1
            encode_kitfile_json(kitfile)
            encode_kitfile_yaml(kitfile)
        except KitfileMalformed:
            pass
        assert time.perf_counter() - start < 1
    assert 200 < read < 1_800


def test_random_text_is_read_or_refused():
    """20 000 short texts of YAML's special characters raise nothing but our error."""
    rng = random.Random(4)
    alphabet = [
        "a",
        "b",
        ":",
        " ",
        "-",
        "\n",
        "[",
        "]",
        "{",
        "}",
        "&",
        "*",
        "!",
        "|",
        ">",
        "'",
        '"',
        "%",
        "@",
        "#",
        ",",
        "?",
        "\\",
        "\t",
        "~",
        "<",
        "x41",
        "u00e9",
        "model",
        "é",
        "\0",
    ]
    for _ in range(20_000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 15)))
        with contextlib.suppress(KitfileMalformed):
            assert isinstance(parse_kitfile_yaml(text.encode()), Kitfile)
