"""All that is wrong with a Kitfile, at once and with lines."""

import random
from pathlib import Path

import pytest

from kitfs.oci.kitfile import KitfileMalformed, Problem, read_kitfile_source

EVERYTHING = b"""\
manifestVersion: 1.0.0
package:
  name: [a, b]
  colour: red
model:
  name: m
  path: /abs/model
  parts:
    - name: p
      path: ../outside
      type: -bad
    - path: nowhere
      size: 12
code:
  - path: src
  - path: ./src/
  - paht: src
  - path: !local x
  - path: *nothing
datasets:
  - name: d
    path: http://x.example/y
    name: e
docs: README.md
mcpServers:
  - name: x
    path: bundle.zip
"""

ALL_PROBLEMS = [
    "line 3: package.name: expected text, found a list",
    "line 4: unknown key 'package.colour'",
    "line 7: model m: absolute paths are not supported in a Kitfile (path '/abs/model')",
    "line 10: modelpart p: path '../outside' leaves the directory that is packed",
    "line 11: modelpart p has invalid type (must be alphanumeric with dots, dashes, and underscores)",
    "line 13: unknown key 'model.parts[1].size'",
    "line 16: code layer 0 and code layer 1 use the same path src",
    "line 17: unknown key 'code[2].paht'",
    "line 18: tag '!local' is not supported",
    "line 19: alias 'nothing' of nothing",
    "line 22: dataset d: path 'http://x.example/y' is a URL",
    "line 23: duplicate key 'datasets[0].name', first at line 21",
    "line 24: docs: expected a list, found a single value",
    "line 27: mcpServer x: path does not end with .mcpb",
]


def problems_of(raw: bytes, found: tuple[Problem, ...] = ()) -> list[str]:
    """What a Kitfile is refused with."""
    with pytest.raises(KitfileMalformed) as caught:
        read_kitfile_source(raw).check(found)
    return caught.value.problems


def test_problems_of_every_kind_come_at_once_in_the_order_of_the_text():
    """Types, unknown and duplicate keys, tags, aliases and rules are one list with lines; no problem comes twice."""
    assert problems_of(EVERYTHING) == ALL_PROBLEMS


def test_what_a_caller_found_is_told_along():
    """A path that is not on disk stands at its line between the others, and alone it refuses nothing."""
    missing = Problem("x does not exist", ("code[0].path",))
    raw = b"model: {name: 1, nme: 2}\ncode:\n  - path: x\ndocs: 1\n"
    assert problems_of(raw, (missing,)) == [
        "line 1: unknown key 'model.nme'",
        "line 3: x does not exist",
        "line 4: docs: expected a list, found a single value",
    ]
    source = read_kitfile_source(b"code:\n  - path: x\n")
    source.check((missing,))
    assert source.describe((missing,)) == ["line 2: x does not exist"]


def test_text_that_ends_being_yaml_is_told_with_what_came_before():
    """The schema's problems up to the place, then YAML's; rules are not judged on half a Kitfile."""
    raw = b"model:\n  nme: a\ncode:\n  - path: /x\n  - path: [a\ndocs:\n - path: q\n"
    assert problems_of(raw) == [
        "line 2: unknown key 'model.nme'",
        "line 5: code[1].path: expected text, found a list",
        "line 6: expected ',' or ']', but got ':'",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model:\n\n  name: x\ncode:\n  - path: .\n", 5),
        ("code:\n  - path: a\n  -\n    description: d\n    path: a\n", 5),
        ("docs:\n  - path: .\n\n  - description: d\n", 4),
        ("datasets:\n  - &a\n    path: >-\n      a\n    name: n\n  - <<: *a\n", 3),
        ("docs: [null, {path: a}, {path: ./a}]\n", 1),
        ("mcpServers:\n  - path: a.mcpb\n", 2),
    ],
)
def test_problem_stands_at_the_key_or_at_what_lacks_it(text: str, line: int):
    """A value's line; where a key is missing, that of its entry; a merged key's is where it was written."""
    assert [problem.partition(":")[0] for problem in problems_of(text.encode())] == [f"line {line}"]


def test_only_paths_that_lead_into_the_directory_are_looked_at():
    """Entries whose path breaks a rule or could not be read are left out, and all of an unfinished text."""
    raw = (
        b"model: {path: ../x}\ncode:\n  - path: [a]\n  - path: good\n  - path: /abs\n  - path: twice\n  - path: twice\n"
    )
    assert [artifact.path for artifact in read_kitfile_source(raw).iter_sound_artifacts()] == ["good"]
    assert list(read_kitfile_source(raw + b"docs: [\n").iter_sound_artifacts()) == []


def test_damaged_kitfile_never_has_a_problem_without_words(shared_fixtures: Path):
    """2 000 damaged Kitfiles: what is refused has a line and a reason for each problem, in the order of the text."""
    source = (shared_fixtures / "source/myllm/Kitfile.full").read_bytes()
    rng = random.Random(12)
    pieces = [b"", b"[", b"}", b": ", b"- ", b"\n", b"  ", b"&a ", b"*a", b"!x ", b"<<: ", b"/", b"../", b"path: a\n"]
    refused = 0
    for _ in range(2_000):
        raw = bytearray(source)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(3)] = rng.choice(pieces)
        try:
            read_kitfile_source(bytes(raw)).check()
        except KitfileMalformed as error:
            refused += 1
            assert all(problem.split(": ", 1)[-1].strip() for problem in error.problems)
            lines = [int(problem.split(":")[0][5:]) for problem in error.problems if problem.startswith("line ")]
            assert lines == sorted(lines) and len(set(error.problems)) == len(error.problems)
    assert 400 < refused < 2_000
