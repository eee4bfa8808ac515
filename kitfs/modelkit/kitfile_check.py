"""Whether a Kitfile can be packed from a directory: its notation, its rules, and the paths it names, judged at once.

Used by pack before anything is read or written. Looks at the directory without following a symbolic link, and only at
paths that lead into it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kitfs.modelkit import walk
from kitfs.oci.kitfile import Kitfile, KitfileSource, Problem, clean_path, read_kitfile_source
from kitfs.oci.mediatype import LayerKind


def check_kitfile(raw: bytes, context: Path, *, raw_layers: bool = False) -> Kitfile:
    """Read a Kitfile that is to be packed.

    Args:
        raw: Its bytes.
        context: The directory; where it can not be opened, nothing is said of its paths.
        raw_layers: Whether every layer is to be the bytes of one file; those of MCP bundles always are.

    Raises:
        KitfileMalformed: with all problems of notation, rules and paths, each with its line.
        PathsUnpackable: when only paths on disk are wrong, with all of them and their lines.
    """
    source = read_kitfile_source(raw)
    problems = list(_iter_disk_problems(source, context, raw_layers=raw_layers))
    source.check(problems)
    if problems:
        raise walk.PathsUnpackable(source.describe(problems))
    return source.kitfile


def _iter_disk_problems(source: KitfileSource, context: Path, *, raw_layers: bool) -> Iterator[Problem]:
    try:
        context_fd = os.open(context, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for artifact in source.iter_sound_artifacts():
            wants_file = raw_layers or artifact.kind is LayerKind.MCPB
            text = walk.find_problem(context_fd, clean_path(artifact.path), wants_file=wants_file)
            if text is not None:
                yield Problem(text, (artifact.place,))
    finally:
        os.close(context_fd)
