"""What a child is made of: a staging directory over its parent, or any folder with a Kitfile.

Used by derive. Open it with ``open_staged`` or ``open_folder``; reading it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kitfs.modelkit import walk
from kitfs.modelkit.ignore import IGNORE_NAME, IGNORE_SIZE_MAX, IgnoreRules, iter_entry_paths, parse_ignore
from kitfs.modelkit.kitfile_check import check_kitfile, looking_into
from kitfs.modelkit.merged import MergedTree
from kitfs.modelkit.merged_source import MergedFolder, MergedSource, Readers, find_mode
from kitfs.modelkit.nodes import InlineContent
from kitfs.modelkit.pack import KitfileNotFound, read_kitfile
from kitfs.modelkit.pack_source import Source, open_source
from kitfs.modelkit.parentage import Parents
from kitfs.modelkit.resolve import ResolvedTree
from kitfs.modelkit.staging import Staging
from kitfs.modelkit.tree import build_tree
from kitfs.oci.kitfile import KITFILE_NAMES, KITFILE_SIZE_MAX, Artifact, Kitfile, clean_path
from kitfs.oci.mediatype import LayerKind
from kitfs.store.store import Store

FindParents = Callable[[Kitfile], Parents]
"""Follows ``model.path``."""


@dataclass(frozen=True, slots=True)
class DeriveSource:
    """A tree with its Kitfile.

    Attributes:
        kitfile: As it is now.
        parents: Of its ``model.path``.
        layers: Gives the files of each layer.
        is_as_read: Whether the tree still has the names and sizes that it had at first.
        is_staged: Whether it lies over the parent.
    """

    kitfile: Kitfile
    parents: Parents
    layers: Source
    is_as_read: Callable[[], bool]
    is_staged: bool


@contextmanager
def open_staged(
    store: Store, staging: Staging, parent: ResolvedTree, find_parents: FindParents, warn: Callable[[str], None]
) -> Iterator[DeriveSource]:
    """A staging directory over its parent; whether it is mounted does not matter.

    Raises:
        KitfileNotFound, KitfileMalformed, PathsUnpackable, IgnoreMalformed: when they can not be used.
        UpperMalformed, UpperUnreadable: when the upper directory is.
        ModelKitNotFound, ParentChainMalformed, PathTaken: what following ``model.path`` raises.
    """
    tree = build_tree(parent, store.open_outline)
    merged = MergedTree(tree, staging.upper, shown=staging.shown_modes, overlay=staging.record.overlay)
    with Readers(store) as readers:
        top = MergedFolder(merged, readers, b"")
        kitfile = _read_kitfile(merged, top, staging.path, parent)
        parents = find_parents(kitfile)
        ignored = _read_file(top, IGNORE_NAME, IGNORE_SIZE_MAX) if merged.find(IGNORE_NAME.encode()) else b""
        rules = IgnoreRules(parse_ignore(ignored), [*iter_entry_paths(kitfile), *parents.paths])
        yield DeriveSource(kitfile, parents, MergedSource(merged, readers, rules, warn), merged.is_current, True)


def _read_kitfile(merged: MergedTree, top: MergedFolder, path: Path, parent: ResolvedTree) -> Kitfile:
    """The Kitfile; an untouched one is the parent's config, whatever its YAML can not say."""
    for name in KITFILE_NAMES:
        entry = merged.find(name.encode())
        if entry is None:
            continue
        own = parent.kits[0].kitfile
        if entry.node is not None and isinstance(entry.node.content, InlineContent) and own is not None:
            return own
        raw = _read_file(top, name, KITFILE_SIZE_MAX)
        return check_kitfile(raw, lambda artifact: _find_problem(merged, artifact))
    raise _without_kitfile(path, "none of " + ", ".join(KITFILE_NAMES))


def _without_kitfile(path: Path, reason: str) -> KitfileNotFound:
    error = KitfileNotFound(path, reason)
    error.hint = "write one; kitfs init DIRECTORY makes a first, of a mount too"
    return error


def _find_problem(merged: MergedTree, artifact: Artifact) -> str | None:
    path = clean_path(artifact.path)
    return walk.describe_problem(path, find_mode(merged, path), wants_file=artifact.kind is LayerKind.MCPB)


def _read_file(top: MergedFolder, name: str, size_max: int) -> bytes:
    """A file at the root; a byte more than the limit at most, for whoever parses it to refuse."""
    data = bytearray()
    with top.get(name).open(lambda _size: None) as reading:
        for piece in reading.pieces:
            data += piece
            if len(data) > size_max:
                break
    return bytes(data[: size_max + 1])


@contextmanager
def open_folder(folder: Path, find_parents: FindParents, warn: Callable[[str], None]) -> Iterator[DeriveSource]:
    """Any folder with a Kitfile.

    Raises:
        KitfileNotFound, KitfileMalformed, PathsUnpackable, IgnoreMalformed: when they can not be used.
        PackUnusable: when it is no directory.
        ModelKitNotFound, ParentChainMalformed, PathTaken: what following ``model.path`` raises.
    """
    try:
        raw = read_kitfile(folder, None)
    except KitfileNotFound as error:
        raise _without_kitfile(folder, error.reason) from error
    with looking_into(folder) as find_problem:
        kitfile = check_kitfile(raw, find_problem)
    parents = find_parents(kitfile)
    model_link = clean_path(kitfile.model.path) if kitfile.model is not None else ""
    with open_source(folder, [*iter_entry_paths(kitfile), *parents.paths], model_link, warn) as source:
        yield DeriveSource(kitfile, parents, source, lambda: True, False)
