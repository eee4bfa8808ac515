"""A Kitfile as a person wrote it, with what is wrong with it and where.

Three kinds of problem meet here: the notation's, found while it was read; the rules', of what could be read; and those
that a caller finds, as paths that are not on disk. All are told at once, each with its line, in the order of the text.
What the notation left unknown is not judged by rules: a path that is a list is one problem, not two. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kitfs.oci.kitfile_schema import Artifact, Kitfile, KitfileMalformed, Problem, iter_artifacts
from kitfs.oci.kitfile_validate import iter_problems


@dataclass(frozen=True, slots=True)
class KitfileSource:
    """What was read of a Kitfile; get it from ``read_kitfile_source``.

    Attributes:
        kitfile: All that could be read.
        lines: The line of each key, as ``code[0].path``, and of each entry, as ``code[0]``.
        unknown: Keys whose value could not be read, and keys that are missing beside one that is not known.
        notation: Line (0 for the whole) and text of what breaks YAML or the schema.
        complete: Whether all of the text could be read.
    """

    kitfile: Kitfile
    lines: Mapping[str, int]
    unknown: frozenset[str]
    notation: tuple[tuple[int, str], ...]
    complete: bool

    def check_notation(self) -> None:
        """Refuse what is not a Kitfile's notation.

        Raises:
            KitfileMalformed: with all problems, each with its line.
        """
        if self.notation:
            raise KitfileMalformed(_lines(self.notation))

    def check(self, found: Iterable[Problem] = ()) -> None:
        """Refuse what breaks the notation or the rules; what a caller found is told along, and refuses nothing.

        Raises:
            KitfileMalformed: with all problems, each with its line.
        """
        rules = list(self._iter_broken_rules())
        if self.notation or rules:
            raise KitfileMalformed(_lines([*self.notation, *self._locate([*rules, *found])]))

    def iter_sound_artifacts(self) -> Iterator[Artifact]:
        """The entries with a layer whose path could be read and breaks no rule: it leads into the directory."""
        bad = {place for problem in self._iter_broken_rules() for place in problem.places}
        if self.complete:
            yield from (
                artifact
                for artifact in iter_artifacts(self.kitfile)
                if artifact.place not in bad and not self._is_unknown(artifact.place)
            )

    def describe(self, found: Iterable[Problem]) -> list[str]:
        """Problems as lines for a person, in the order of the text."""
        return _lines(self._locate(found))

    def _iter_broken_rules(self) -> Iterator[Problem]:
        for problem in iter_problems(self.kitfile) if self.complete else ():
            if not any(self._is_unknown(place) for place in problem.places):
                yield problem

    def _is_unknown(self, place: str) -> bool:
        return any(above in self.unknown for above in _iter_above(place))

    def _locate(self, found: Iterable[Problem]) -> Iterator[tuple[int, str]]:
        for problem in found:
            lines = [self.lines[above] for above in _iter_above(problem.places[-1]) if above in self.lines]
            yield (lines[0] if lines else 0), problem.text


def _iter_above(place: str) -> Iterator[str]:
    """A key and what it is inside of: ``code[0].path``, ``code[0]``, ``code``."""
    while place:
        yield place
        place = place[: max(place.rfind("."), place.rfind("["), 0)]


def _lines(problems: Iterable[tuple[int, str]]) -> list[str]:
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem[0])
    return [f"line {line}: {text}" if line else text for line, text in ordered]
