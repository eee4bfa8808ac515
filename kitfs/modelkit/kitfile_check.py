"""Whether a Kitfile can be packed: its notation, its rules, and the paths it names, judged at once.

Used by pack and derive before anything is read or written. A directory is looked at without following a symbolic link,
and only at paths that lead into it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kitfs.modelkit import walk
from kitfs.oci.kitfile import Artifact, Kitfile, Problem, clean_path, read_kitfile_source
from kitfs.oci.mediatype import LayerKind

FindProblem = Callable[[Artifact], str | None]
"""Why a layer can not be made of an entry, or None when it can."""


def check_kitfile(raw: bytes, find_problem: FindProblem) -> Kitfile:
    """Read a Kitfile that is to be packed.

    Args:
        raw: Its bytes.
        find_problem: Asked of each entry that breaks no rule.

    Raises:
        KitfileMalformed: with all problems of notation, rules and paths, each with its line.
        PathsUnpackable: when only paths are wrong, with all of them and their lines.
    """
    source = read_kitfile_source(raw)
    problems = [
        Problem(text, (artifact.place,))
        for artifact in source.iter_sound_artifacts()
        if (text := find_problem(artifact)) is not None
    ]
    source.check(problems)
    if problems:
        raise walk.PathsUnpackable(source.describe(problems))
    return source.kitfile


@contextmanager
def looking_into(context: Path, *, raw_layers: bool = False) -> Iterator[FindProblem]:
    """What to ask about the entries of a directory's Kitfile; of one that can not be opened nothing is said.

    Args:
        context: The directory.
        raw_layers: Whether every layer is to be the bytes of one file; those of MCP bundles always are.
    """
    try:
        context_fd = os.open(context, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield lambda _artifact: None
        return

    def find_problem(artifact: Artifact) -> str | None:
        wants_file = raw_layers or artifact.kind is LayerKind.MCPB
        return walk.find_problem(context_fd, clean_path(artifact.path), wants_file=wants_file)

    try:
        yield find_problem
    finally:
        os.close(context_fd)
