"""Patterns of .kitignore. Expected answers were given by moby's patternmatcher 0.6.0."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.modelkit.pattern import PatternMalformed, PatternMatcher

# pattern list → paths that match, paths that do not
CASES: list[tuple[list[str], list[str], list[str]]] = [
    (["*.key"], ["a.key", ".key", "x.key/inside"], ["src/a.key", "a.keys"]),
    (["**/*.key"], ["a.key", "src/a.key", "a/b/c.key/d"], ["a.keys"]),
    (["__pycache__"], ["__pycache__", "__pycache__/x.pyc"], ["src/__pycache__", "__pycache__2"]),
    (["**/ignored"], ["ignored", "a/ignored", "a/ignored/b"], ["a/ignored2", "xignored"]),
    (["**foo"], ["foo", "xfoo", "a/xfoo/b"], ["foox"]),
    (["dir/**"], ["dir/a", "dir/a/b"], ["dir", "dir2/a"]),
    (["dir**"], ["dir", "dir/a", "dirty"], ["adir"]),
    (["**"], ["a", "a/b"], []),
    (["a/**/b"], ["a/b", "a/x/b", "a/x/y/b/c"], ["a/bc", "xa/b"]),
    (["dir4/*/x.txt"], ["dir4/a/x.txt"], ["dir4/x.txt", "dir4/a/b/x.txt"]),
    (["ignored-?.txt"], ["ignored-a.txt", "ignored-é.txt"], ["ignored-.txt", "ignored-ab.txt", "x/ignored-a.txt"]),
    (["[a-c]x"], ["ax", "cx/y"], ["dx", "x"]),
    (["a[^b]c"], ["axc", "a/c"], ["abc", "ac"]),
    (["[!a]x"], ["!x", "ax"], ["bx"]),
    ([r"\*x"], ["*x"], ["ax"]),
    ([r"a\[b"], ["a[b"], ["ab"]),
    (["./a//b/"], ["a/b", "a/b/c"], ["a"]),
    (["dir", "!dir/keep"], ["dir", "dir/x"], ["dir/keep", "dir/keep/x"]),
    (["!dir/keep", "dir"], ["dir/keep"], []),
    (["*", "!a", "a/b"], ["x", "a/b", "a/b/c"], ["a", "a/c"]),
    (["**/*.md", "!README.md"], ["x.md", "d/README.md"], ["README.md"]),
    ([" spaced \t"], ["spaced"], [" spaced"]),
    (["", "."], [], ["a", ".a"]),
    (["a|b", "c^d", "e{f}"], ["a|b", "c^d", "e{f}"], ["a", "b"]),
    (["a+b(c).d$"], ["a+b(c).d$"], ["aab(c).d$"]),
    (["*a*a*b"], ["aab", "xaxaxb"], ["ab", "aa/b"]),
]


@pytest.mark.parametrize(("patterns", "matching", "others"), CASES, ids=lambda value: str(value)[:40])
def test_paths_match_as_moby_matches_them(patterns: list[str], matching: list[str], others: list[str]):
    """Wildcards, sets, exclusions and parents as in .dockerignore."""
    matcher = PatternMatcher(patterns)
    assert [path for path in matching + others if matcher.matches(path)] == matching


def test_exclusions_are_known():
    """Only a list with a ! pattern can take something back."""
    assert PatternMatcher(["a", "!a/b"]).has_exclusions
    assert not PatternMatcher(["a", r"\!b"]).has_exclusions


@pytest.mark.parametrize(
    "pattern",
    [
        "!",
        "[",
        "a[b",
        "[]",
        "[^]",
        "[a-]",
        "[-a]",
        "[z-a]",
        "a\\",
        r"a\d",
        r"[\w]",
        "[*]",
        "[[:alpha:]]",
        "*|a",
        "*{2}",
        "*^a",
        "x" * 4097,
    ],
    ids=lambda pattern: pattern[:20],
)
def test_pattern_that_can_not_be_understood_is_refused(pattern: str):
    """What moby refuses, and what it takes for a piece of a regular expression, is an error with the pattern."""
    with pytest.raises(PatternMalformed) as caught:
        PatternMatcher(["fine", pattern])
    assert caught.value.pattern == pattern


@pytest.mark.parametrize("pattern", ["*a" * 40 + "b", "**/a/" * 40 + "b", "*" + "?" * 200, "[^b]" * 50 + "*" * 3 + "b"])
def test_wildcards_do_not_multiply(pattern: str):
    """A pattern made to backtrack costs milliseconds on a path of 4 000 characters."""
    matcher = PatternMatcher([pattern])
    start = time.perf_counter()
    matcher.matches("a/" * 2000 + "a")
    matcher.matches("a" * 4000)
    assert time.perf_counter() - start < 1


@given(st.text(alphabet="ab*?[]!^-/\\.", max_size=12), st.text(alphabet="ab/.", min_size=1, max_size=10))
def test_any_pattern_answers_or_is_refused(pattern: str, path: str):
    """No pattern raises anything but our error, and a match holds for everything below it."""
    try:
        matcher = PatternMatcher([pattern])
    except PatternMalformed:
        return
    if matcher.matches(path):
        assert matcher.matches(f"{path}/b")
