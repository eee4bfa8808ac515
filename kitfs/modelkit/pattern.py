"""Patterns of ``.kitignore``: those of ``.dockerignore``, matched as kit matches them (moby's ``patternmatcher``).

A pattern is relative to the directory that is packed. ``*`` is any run without a slash, ``?`` one character that is
not a slash, ``[a-z]`` one of a set (``[^a-z]`` one outside it, a slash included), ``**`` any number of directories,
a backslash takes the next character as it is. ``!`` in front takes back what earlier patterns matched; the last
pattern that says something wins. A path matches when it or one of its parent directories does.

One pass over the path serves a pattern, whatever it looks like: states are bits of an integer, so ``*a*a*a*b`` costs
what ``*b`` costs. The same pass sees the parents, which end at the path's slashes. Names that are not UTF-8 come in
as ``os.fsdecode`` makes them. Pure; used by ``ignore``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from kitfs.errors import MalformedError
from kitfs.oci.kitfile import clean_path

LENGTH_MAX = 4096
"""Characters of a pattern; no path is longer."""

_SPACE = (
    " \t\n\v\f\r\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""White space as Go's ``strings.TrimSpace`` knows it."""


_AMBIGUOUS = re.compile(r"\||\{(?=[0-9])")


class PatternMalformed(MalformedError):
    """A pattern that can not be understood.

    Attributes:
        pattern: As it was written.
        reason: What is wrong.
    """

    def __init__(self, pattern: str, reason: str) -> None:
        super().__init__(f"malformed pattern {pattern[:200]!r}: {reason}")
        self.pattern = pattern
        self.reason = reason


class PatternMatcher:
    """A list of patterns.

    Attributes:
        has_exclusions: Whether a pattern begins with ``!``, so that ignored directories may hold what is not ignored.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        """Compile.

        Raises:
            PatternMalformed: for the first pattern that can not be understood.
        """
        self._patterns = [_compile(pattern) for pattern in map(trim, patterns) if pattern]
        self.has_exclusions = any(pattern.exclusion for pattern in self._patterns)

    def matches(self, path: str) -> bool:
        """Whether a path, or a directory it lies in, is matched and not taken back; ``path`` is cleaned."""
        matched = False
        for pattern in self._patterns:
            if pattern.exclusion == matched and pattern.matches(path):
                matched = not pattern.exclusion
        return matched


def trim(text: str) -> str:
    """Without white space at both ends, as Go trims."""
    return text.strip(_SPACE)


class _Kind(Enum):
    CHARACTER = 1
    CARET = 2
    SET = 3
    NO_SLASH = 4
    STAR = 5
    ANYTHING = 6
    DIRECTORIES = 7


@dataclass(frozen=True, slots=True)
class _Token:
    kind: _Kind
    text: str = ""
    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False

    def accepts(self, character: str) -> bool:
        """Whether it takes a character and is done."""
        if self.kind is _Kind.CHARACTER:
            return character == self.text
        if self.kind is _Kind.NO_SLASH:
            return character != "/"
        if self.kind is _Kind.SET:
            return self.negated != any(low <= character <= high for low, high in self.ranges)
        return False

    def repeats(self, character: str) -> bool:
        """Whether it takes a character and goes on."""
        if self.kind is _Kind.STAR:
            return character != "/"
        return self.kind in (_Kind.ANYTHING, _Kind.DIRECTORIES) and character != "\n"


@dataclass(frozen=True, slots=True)
class _Pattern:
    exclusion: bool
    matches: Callable[[str], bool]


def _compile(pattern: str) -> _Pattern:
    cleaned = clean_path(pattern)
    exclusion = cleaned.startswith("!")
    cleaned = cleaned.removeprefix("!")
    if not cleaned:
        raise PatternMalformed(pattern, "nothing follows the !")
    if len(cleaned) > LENGTH_MAX:
        raise PatternMalformed(pattern, f"longer than {LENGTH_MAX} characters")
    parser = _Parser(pattern, cleaned)
    tokens = parser.tokens()
    if parser.is_plain:
        return _Pattern(exclusion, _plain_match(cleaned, tokens))
    return _Pattern(exclusion, _Automaton(tokens).matches)


def _plain_match(cleaned: str, tokens: list[_Token]) -> Callable[[str], bool]:
    """What moby matches without a regular expression: text, text before ``**``, or text after ``**``."""
    if tokens[-1].kind is _Kind.ANYTHING:
        start = cleaned.removesuffix("/").removesuffix("**")
        return lambda path: path.startswith(start)
    if tokens[0].kind is _Kind.DIRECTORIES:
        end = cleaned[2:]
        return lambda path: any(part.endswith(end) or part == end.removeprefix("/") for part in _iter_parts(path))
    below = cleaned + "/"
    return lambda path: path == cleaned or path.startswith(below)


def _iter_parts(path: str) -> Iterator[str]:
    """A path's parents, outermost first, and the path."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)
    yield path


class _Parser:
    """Reads a cleaned pattern.

    Attributes:
        is_plain: Whether moby would not need a regular expression for it.
    """

    def __init__(self, pattern: str, cleaned: str) -> None:
        self._pattern = pattern
        self._text = cleaned
        self._at = 0
        self.is_plain = True

    def tokens(self) -> list[_Token]:
        tokens: list[_Token] = []
        while self._at < len(self._text):
            token = self._token(first=not tokens)
            if not (token.kind is _Kind.DIRECTORIES and tokens and tokens[-1].kind is _Kind.DIRECTORIES):
                tokens.append(token)
        if any(token.kind is _Kind.CARET for token in tokens) and not self.is_plain:
            raise self._malformed("a ^ beside a wildcard means other things to kit")
        if not self.is_plain and (odd := _AMBIGUOUS.search(self._text)):
            # patternmatcher 0.6.0 leaves these unescaped in its regular expression: `*|a` ignores everything.
            raise self._malformed(f"{odd.group()!r} beside a wildcard means other things to kit")
        return tokens

    def _token(self, *, first: bool) -> _Token:
        character = self._take()
        if character == "*":
            return self._stars(first=first)
        if character in "?[]\\":
            self.is_plain = False
        if character == "?":
            return _Token(_Kind.NO_SLASH)
        if character == "[":
            return self._set()
        if character == "\\":
            return _Token(_Kind.CHARACTER, self._escaped())
        return _Token(_Kind.CARET if character == "^" else _Kind.CHARACTER, character)

    def _stars(self, *, first: bool) -> _Token:
        if not self._skip("*"):
            self.is_plain = False
            return _Token(_Kind.STAR)
        self._skip("/")
        if self._at < len(self._text):
            self.is_plain = self.is_plain and first
            return _Token(_Kind.DIRECTORIES)
        self.is_plain = self.is_plain and (first or not self._text.startswith("**"))
        return _Token(_Kind.ANYTHING)

    def _set(self) -> _Token:
        negated = self._skip("^")
        ranges: list[tuple[str, str]] = []
        while not (ranges and self._skip("]")):
            low = self._set_character()
            high = self._set_character() if self._skip("-") else low
            if low > high:
                raise self._malformed(f"the range {low}-{high} runs backwards")
            ranges.append((low, high))
        return _Token(_Kind.SET, "", tuple(ranges), negated)

    def _set_character(self) -> str:
        character = self._take() if self._at < len(self._text) else "]"
        if character in "]-":
            raise self._malformed("a [ is not closed, or holds nothing where a character belongs")
        if character in "*?" or (character == "[" and self._text.startswith(":", self._at)):
            raise self._malformed(
                f"{character!r} between brackets means other things to kit; put a backslash before it"
            )
        return self._escaped() if character == "\\" else character

    def _escaped(self) -> str:
        if self._at == len(self._text):
            raise self._malformed("it ends with a backslash")
        character = self._take()
        if character.isalnum() or not character.isascii():
            raise self._malformed(f"a backslash before {character!r} means other things to kit")
        return character

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _skip(self, character: str) -> bool:
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _malformed(self, reason: str) -> PatternMalformed:
        return PatternMalformed(self._pattern, reason)


class _Automaton:
    """All states of a pattern as bits: bit i is set while tokens before i are done and token i is next."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens: list[_Token | None] = []
        self._free = 0  # bits whose token may take nothing: to the next bit
        self._entry = 0  # bits where **/ begins: to its inside, which is the next bit, and past it
        for token in tokens:
            bit = 1 << len(self._tokens)
            if token.kind is _Kind.DIRECTORIES:
                self._entry |= bit
                self._tokens.append(None)
            elif token.kind in (_Kind.STAR, _Kind.ANYTHING):
                self._free |= bit
            self._tokens.append(token)
        self._done = 1 << len(self._tokens)
        self._moves: dict[str, tuple[int, int]] = {}

    def matches(self, path: str) -> bool:
        """Whether the path or one of its parents is matched."""
        states = self._close(1)
        for character in path:
            if character == "/" and states & self._done:
                return True
            advance, repeat = self._moves.get(character) or self._learn(character)
            states = self._close((states & advance) << 1 | (states & repeat))
            if not states:
                return False
        return bool(states & self._done)

    def _close(self, states: int) -> int:
        while True:
            entered = states & self._entry
            reached = states | (states & self._free) << 1 | entered << 1 | entered << 2
            if reached == states:
                return states
            states = reached

    def _learn(self, character: str) -> tuple[int, int]:
        advance = repeat = 0
        for number, token in enumerate(self._tokens):
            if token is not None:
                slash = token.kind is _Kind.DIRECTORIES and character == "/"
                advance |= (token.accepts(character) or slash) << number
                repeat |= token.repeats(character) << number
        self._moves[character] = advance, repeat
        return advance, repeat
