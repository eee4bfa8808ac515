"""What a child is made of: a staging directory over its parent, or any folder with a Kitfile.

Used by derive. Open it with ``open_staged`` or ``open_folder``; reading it changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kitfs.modelkit import walk
from kitfs.modelkit.borrowed import Borrowed
from kitfs.modelkit.derive_parent import Parent
from kitfs.modelkit.entries import PathUnreadable
from kitfs.modelkit.ignore import IGNORE_NAME, IGNORE_SIZE_MAX, IgnoreRules, iter_entry_paths, parse_ignore
from kitfs.modelkit.kitfile_check import check_kitfile, looking_into
from kitfs.modelkit.merged import MergedTree
from kitfs.modelkit.merged_source import MergedFolder, MergedSource, Readers, find_mode
from kitfs.modelkit.nodes import NodeNotFound
from kitfs.modelkit.pack import KitfileNotFound, read_kitfile
from kitfs.modelkit.pack_source import Source, open_source
from kitfs.modelkit.parentage import Parents
from kitfs.modelkit.resolve import ResolvedTree, reopen
from kitfs.modelkit.staging import Staging
from kitfs.modelkit.tree import build_tree
from kitfs.oci.kitfile import (
    KITFILE_NAMES,
    KITFILE_SIZE_MAX,
    Artifact,
    Kitfile,
    clean_path,
    encode_kitfile_yaml,
    iter_artifacts,
)
from kitfs.oci.mediatype import LayerKind
from kitfs.store.store import Store

FindParents = Callable[[Kitfile], Parents]
"""Follows ``model.path``."""


_INIT_HINT = "write one; kitfs init DIRECTORY makes a first, of a mount too"


@dataclass(frozen=True, slots=True)
class DeriveSource:
    """A tree with its Kitfile.

    Attributes:
        kitfile: As it is now.
        parent: What the tree was made from.
        parents: Of its ``model.path``.
        borrowed: The files that those show.
        layers: Gives the files of each layer.
        is_as_read: Whether the tree still has the names and sizes that it had at first.
    """

    kitfile: Kitfile
    parent: Parent
    parents: Parents
    borrowed: Borrowed
    layers: Source
    is_as_read: Callable[[], bool]


@contextmanager
def open_staged(
    store: Store, staging: Staging, resolved: ResolvedTree, find_parents: FindParents, warn: Callable[[str], None]
) -> Iterator[DeriveSource]:
    """A staging directory over its parent; whether it is mounted does not matter.

    Raises:
        KitfileNotFound, KitfileMalformed, PathsUnpackable, IgnoreMalformed: when they can not be used.
        UpperMalformed, UpperUnreadable: when the upper directory is.
        ModelKitNotFound, ParentChainMalformed, PathTaken: what following ``model.path`` raises.
    """
    tree = build_tree(resolved, store.open_outline)
    merged = MergedTree(tree, staging.upper, shown=staging.shown_modes, overlay=staging.record.overlay)
    parent = Parent(store, resolved, tree)
    with Readers(store) as readers:
        top = MergedFolder(merged, readers)
        kitfile = _find_kitfile(merged, top, staging, resolved)
        parents = find_parents(kitfile)
        rules = IgnoreRules(parse_ignore(_read_ignore(merged, top)), [*iter_entry_paths(kitfile), *parents.paths])
        source = MergedSource(merged, readers, rules, warn)
        borrowed = _borrow(store, parent, parents, resolved, is_staged=True)
        yield DeriveSource(kitfile, parent, parents, borrowed, source, merged.is_current)


def _borrow(
    store: Store, parent: Parent, parents: Parents, resolved: ResolvedTree | None, *, is_staged: bool
) -> Borrowed:
    kits = reopen(store, "", parents.manifests).kits
    former = resolved.kits[1:] if resolved is not None else ()
    return Borrowed(parent, kits, parents.paths, former=former, is_staged=is_staged)


def _find_kitfile(merged: MergedTree, top: MergedFolder, staging: Staging, parent: ResolvedTree) -> Kitfile:
    def find_problem(artifact: Artifact) -> str | None:
        return _find_problem(merged, artifact)

    def find_lost(artifact: Artifact) -> str | None:
        """A path that the parent's tree has not either is one of a layer without files."""
        try:
            merged.tree.get_path(os.fsencode(clean_path(artifact.path)).removeprefix(b"."))
        except NodeNotFound:
            return None
        return find_problem(artifact)

    modes = {name: mode for name in KITFILE_NAMES if (mode := find_mode(merged, name)) is not None}
    for name, mode in modes.items():
        if stat.S_ISREG(mode):
            raw = _read_file(top, name, KITFILE_SIZE_MAX)
            return _judge_kitfile(raw, parent.kits[0].kitfile, find_problem, find_lost)
    reason = "none of " + ", ".join(KITFILE_NAMES)
    error = KitfileNotFound(staging.path, f"{next(iter(modes))} is no file" if modes else reason)
    error.hint = f"kitfs info {staging.record.reference} prints the parent's"
    if parent.kits[0].kitfile is None:
        error.hint = _INIT_HINT
    raise error


def _read_ignore(merged: MergedTree, top: MergedFolder) -> bytes:
    mode = find_mode(merged, IGNORE_NAME)
    if mode is None:
        return b""
    if not stat.S_ISREG(mode):
        raise PathUnreadable(IGNORE_NAME, "it is no file")
    return _read_file(top, IGNORE_NAME, IGNORE_SIZE_MAX)


def _judge_kitfile(
    raw: bytes,
    own: Kitfile | None,
    find_problem: Callable[[Artifact], str | None],
    find_lost: Callable[[Artifact], str | None],
) -> Kitfile:
    """A Kitfile that may be used; an untouched one is the parent's config, whatever its YAML can not say.

    Args:
        raw: As it lies there.
        own: The parent's.
        find_problem: Why a layer can not be made of an entry.
        find_lost: The same, for entries of the parent's Kitfile.
    """
    is_untouched = own is not None and raw == encode_kitfile_yaml(own)
    if own is not None and is_untouched and not any(map(find_lost, iter_artifacts(own))):
        return own
    return check_kitfile(raw, find_lost if is_untouched else find_problem)


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
def open_folder(
    store: Store,
    folder: Path,
    resolved: ResolvedTree | None,
    find_parents: FindParents,
    warn: Callable[[str], None],
) -> Iterator[DeriveSource]:
    """Any folder with a Kitfile.

    Raises:
        KitfileNotFound, KitfileMalformed, PathsUnpackable, IgnoreMalformed: when they can not be used.
        PackUnusable: when it is no directory.
        ModelKitNotFound, ParentChainMalformed, PathTaken: what following ``model.path`` raises.
    """
    try:
        raw = read_kitfile(folder, None)
    except KitfileNotFound as error:
        error.hint = f"{_INIT_HINT}; kitfs staging list shows staging directories"
        raise
    with looking_into(folder) as find_problem:
        kitfile = _judge_kitfile(raw, resolved.kits[0].kitfile if resolved else None, find_problem, find_problem)
    parent = Parent(store, resolved)
    parents = find_parents(kitfile)
    model_link = clean_path(kitfile.model.path) if kitfile.model is not None else ""
    paths = [*iter_entry_paths(kitfile), *parents.paths]
    borrowed = _borrow(store, parent, parents, resolved, is_staged=False)
    with open_source(folder, paths, model_link, warn, check=walk.refuse_writers) as source:
        yield DeriveSource(kitfile, parent, parents, borrowed, source, lambda: True)
