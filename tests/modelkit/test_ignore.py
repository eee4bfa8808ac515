"""Which layer a file belongs to, and what stays out of all of them."""

import pytest

from kitfs.modelkit.ignore import (
    IGNORE_PATTERNS_MAX,
    IgnoreMalformed,
    IgnoreRules,
    is_within,
    iter_entry_paths,
    parse_ignore,
)
from kitfs.oci.kitfile import Code, Dataset, Kitfile, McpServer, Model, ModelPart, Prompt


def test_lines_are_read_as_moby_reads_them():
    """Comments and empty lines go, spaces and slashes are cleaned, ! stays in front."""
    raw = b"\xef\xbb\xbf# comment\r\n\r\n  /a//b/ \n! /c\n #d\n\\#e\n./\n"
    assert parse_ignore(raw) == ["a/b", "!c", "#d", "\\#e", "."]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"ok\n[a\n", "kitignore line 2: malformed pattern"),
        (b"ok\n!\n", "kitignore line 2: .*nothing follows"),
        (b"\n\n\xff\n", "kitignore line 3: not UTF-8"),
        (b"a\n" * (IGNORE_PATTERNS_MAX + 1), "line 10001: more than 10000 patterns"),
        (b"#" * (1 << 20) + b"\n", "at most 1048576"),
    ],
)
def test_malformed_file_is_refused_with_its_line(raw: bytes, message: str):
    """Each kind of bad .kitignore is refused, and the message names the line."""
    with pytest.raises(IgnoreMalformed, match=message):
        parse_ignore(raw)


# kitops' own cases (pkg/lib/filesystem/ignore_test.go): patterns, layer paths, path, its layer, whether it stays out.
KIT_CASES = [
    (["dir1"], [], "dir1/subdir1/subdir2/file.txt", ".", True),
    (["dir1/*.txt"], [], "dir1/testfile.txt", ".", True),
    (["**/testfile.txt"], [], "dir1/subdir1/subdir2/testfile.txt", ".", True),
    (["dir1", "!dir1/testfile.txt"], [], "dir1/testfile.txt", ".", False),
    ([], ["main", "main/subdir"], "main/subdir/testfile.txt", "main", True),
    ([], ["main", "main/subdir"], "main/subdir/testfile.txt", "main/subdir", False),
    (["**/testfile.txt"], ["main", "main/subdir"], "main/subdir/testfile.txt", "main/subdir", True),
    ([], ["data", "."], "data-v2/x", ".", False),
    ([], ["data", "."], "data/x", ".", True),
    ([], ["model", "."], ".hidden", ".", False),
    ([], ["model", "."], "model/x", "model", False),
    ([], [".", "a/b"], "a", "a/b", False),
    ([], ["a/b/c"], "a/b", "a", False),
]


@pytest.mark.parametrize(("patterns", "paths", "path", "layer", "expected"), KIT_CASES)
def test_file_belongs_to_one_layer(patterns: list[str], paths: list[str], path: str, layer: str, expected: bool):
    """Patterns and other entries' paths decide; data-v2 does not lie inside data."""
    assert IgnoreRules(patterns, paths).layer(layer).leaves_out(path) is expected


def test_kitfile_is_never_packed():
    """The names of a Kitfile and .kitignore stay out at the root, and only there."""
    rules = IgnoreRules([], []).layer(".")
    assert [
        name for name in ("Kitfile", "kitfile", ".kitfile", ".kitignore", "a/Kitfile") if not rules.leaves_out(name)
    ] == ["a/Kitfile"]
    assert rules.prunes
    assert not IgnoreRules(["!a"], []).layer(".").prunes


def test_white_space_at_the_ends_of_a_path_hides_nothing_from_a_pattern():
    """Patterns are trimmed, and so are the paths they are matched with; whose file it is depends on the very name."""
    rules = IgnoreRules(["*.tmp"], ["data"]).layer(".")
    names = ("a.tmp", "a.tmp ", " b.tmp", "data", "data ", " ", "x/ ")
    assert [name for name in names if rules.leaves_out(name)] == ["a.tmp", "a.tmp ", " b.tmp", "data"]


def test_entries_claim_their_cleaned_paths():
    """Every entry's path counts, remote datasets included."""
    kitfile = Kitfile(
        model=Model(path="./m/", parts=(ModelPart(path="m/p"),)),
        code=(Code(path="."),),
        datasets=(Dataset(path="d", remote_path="x:1"),),
        prompts=(Prompt(path="p//q"),),
        mcp_servers=(McpServer(name="s", path="s.mcpb"),),
    )
    assert list(iter_entry_paths(kitfile)) == ["m", "m/p", ".", "d", "p/q", "s.mcpb"]


def test_inside_is_a_matter_of_components():
    """A path lies inside itself, its parents and the root; never inside a name it merely begins with."""
    assert is_within("a/b", "a") and is_within("a", "a") and is_within("a", ".")
    assert not is_within("ab", "a") and not is_within("a", "a/b")
