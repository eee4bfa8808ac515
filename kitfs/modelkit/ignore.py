"""What a layer leaves out: what ``.kitignore`` says, the Kitfile itself, and what belongs to other layers.

A file belongs to exactly one layer. While the layer at path L is packed, whatever lies inside another entry's path M
is left out unless L lies inside M (or is M): the most specific entry has the file. ``model: model``, its part
``model/part1`` and ``code: .`` split a tree between them. Of a parent ModelKit all paths count. Pure; used by pack
and by whoever shows what would be packed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

from kitfs.errors import MalformedError
from kitfs.modelkit.pattern import PatternMalformed, PatternMatcher, trim
from kitfs.oci.kitfile import KITFILE_NAMES, Kitfile, clean_path

IGNORE_NAME = ".kitignore"
IGNORE_SIZE_MAX = 1 << 20
IGNORE_PATTERNS_MAX = 10_000

_ALWAYS = (*KITFILE_NAMES, IGNORE_NAME)


class IgnoreMalformed(MalformedError):
    """A ``.kitignore`` that can not be understood.

    Attributes:
        line: Counted from 1; 0 for the whole file.
        reason: What is wrong.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"{IGNORE_NAME}{f' line {line}' if line else ''}: {reason}")
        self.line = line
        self.reason = reason


def parse_ignore(raw: bytes) -> list[str]:
    """The patterns of a ``.kitignore``, comments and empty lines left out, cleaned as moby's ``ignorefile`` does.

    Raises:
        IgnoreMalformed: when it is too large, not UTF-8, or a pattern can not be understood.
    """
    if len(raw) > IGNORE_SIZE_MAX:
        raise IgnoreMalformed(0, f"{len(raw)} bytes, at most {IGNORE_SIZE_MAX} are read")
    patterns: list[str] = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            pattern = _clean_line(line.removesuffix(b"\r").decode())
            PatternMatcher([pattern])
        except UnicodeDecodeError:
            raise IgnoreMalformed(number, "not UTF-8") from None
        except PatternMalformed as error:
            raise IgnoreMalformed(number, str(error)) from None
        if pattern:
            patterns.append(pattern)
        if len(patterns) > IGNORE_PATTERNS_MAX:
            raise IgnoreMalformed(number, f"more than {IGNORE_PATTERNS_MAX} patterns")
    return patterns


def _clean_line(line: str) -> str:
    if line.startswith("#"):
        return ""
    pattern = trim(line)
    inverted = pattern.startswith("!")
    if inverted:
        pattern = trim(pattern[1:])
    if pattern:
        pattern = clean_path(pattern)
        pattern = pattern[1:] if len(pattern) > 1 and pattern.startswith("/") else pattern
    return f"!{pattern}" if inverted else pattern


def is_within(path: str, outer: str) -> bool:
    """Whether a cleaned path is ``outer`` or lies inside it; everything lies inside ``.``."""
    return outer == "." or path == outer or path.startswith(f"{outer}/")


def iter_entry_paths(kitfile: Kitfile) -> Iterator[str]:
    """The cleaned paths that a Kitfile claims, those of remote datasets and of a model elsewhere included."""
    if kitfile.model is not None:
        if kitfile.model.path:
            yield clean_path(kitfile.model.path)
        yield from (clean_path(part.path) for part in kitfile.model.parts)
    for entries in (kitfile.code, kitfile.datasets, kitfile.docs, kitfile.prompts, kitfile.mcp_servers):
        yield from (clean_path(entry.path) for entry in entries)


class LayerRules:
    """What one layer leaves out.

    Attributes:
        prunes: Whether a directory that is left out takes all below it along; not so with ``!`` patterns.
    """

    def __init__(self, matcher: PatternMatcher, foreign: frozenset[str]) -> None:
        self._matcher = matcher
        self._foreign = foreign
        self.prunes = not matcher.has_exclusions

    def leaves_out(self, path: str) -> bool:
        """Whether a path (cleaned, relative to the packed directory) stays out of the layer.

        Patterns have no white space at their ends, so kit matches them with the path's cut off too: ``*.md`` takes
        ``a.md `` along.
        """
        trimmed = trim(path)
        matched = self._matcher.matches(path if trimmed == path else clean_path(trimmed))
        return matched or self._is_foreign(path)

    def _is_foreign(self, path: str) -> bool:
        while path:
            if path in self._foreign:
                return True
            path = path.rpartition("/")[0]
        return False


class IgnoreRules:
    """The rules of one pack."""

    def __init__(self, patterns: Iterable[str], paths: Iterable[str]) -> None:
        """Compile.

        Args:
            patterns: Of ``.kitignore``; the Kitfile's names and ``.kitignore`` are added.
            paths: Cleaned paths of all entries, the parents' included.

        Raises:
            PatternMalformed: when a pattern can not be understood.
        """
        self._matcher = PatternMatcher([*patterns, *_ALWAYS])
        self._paths = frozenset(paths)

    def without_entries(self) -> IgnoreRules:
        """The same patterns for a tree that no entry claims."""
        rules = copy.copy(self)
        rules._paths = frozenset()
        return rules

    def layer(self, path: str) -> LayerRules:
        """The rules for the layer at a cleaned path."""
        return LayerRules(self._matcher, frozenset(other for other in self._paths if not is_within(path, other)))
