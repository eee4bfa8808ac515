"""The tree that a ModelKit shows as a file system: architecture in ``docs/architecture.md``, "The tree".

Pure: built from what ``resolve`` found and the layers' outlines, with no mount, no open file and no clock, so the same
input gives the same node numbers in every process (of one ``TREE_VERSION``). A tree holds at most ``NODES_MAX`` nodes.
Its parts (``nodes``) are the reserved files, each layer in the order of the manifests, and the link ``model``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence

from kitfs.digest import Digest
from kitfs.modelkit.filters import EVERYTHING, Filter
from kitfs.modelkit.nodes import (
    InlineContent,
    MemberContent,
    Modes,
    Node,
    NodeKind,
    NodeNotFound,
    Part,
    Tree,
    TreeConflict,
    explicit_path,
    shown_mode,
)
from kitfs.modelkit.resolve import Kit, KitLayer, ResolvedTree, clean_path, find_filepath
from kitfs.modelkit.selection import select
from kitfs.oci.kitfile_regenerate import encode_kitfile_yaml
from kitfs.oci.mediatype import LayerKind
from kitfs.store.outline import Outline
from kitfs.store.records import KIND_DIRECTORY, KIND_FILE, TocMember

__all__ = [
    "InlineContent",
    "MemberContent",
    "Modes",
    "Node",
    "NodeKind",
    "NodeNotFound",
    "Tree",
    "TreeConflict",
    "build_tree",
    "shown_mode",
]

META = b".kitfs"
KITFILE = b"Kitfile"
MODEL = b"model"


def build_tree(
    resolved: ResolvedTree,
    get_outline: Callable[[Digest], Outline],
    *,
    meta: bool = True,
    filters: Sequence[Filter] = EVERYTHING,
) -> Tree:
    """The tree of a ModelKit and its parents.

    Args:
        resolved: The ModelKit, then its parents.
        get_outline: The outline of a layer.
        meta: Whether ``.kitfs/`` is shown.
        filters: What of the ModelKit; none for all.

    Raises:
        TreeConflict: when two layers claim one path, or one claims ``Kitfile`` or ``.kitfs``.
    """
    kit = resolved.kits[0]
    tree = Tree(kit.manifest.created_s)
    selected = select(resolved, filters)
    _add_reserved(tree, resolved, meta, selected[-1].has_kitfile)
    layers = [layer for one in selected for layer in one.layers]
    for layer in layers:
        add_layer(tree, layer, get_outline(layer.digest))
    if any(layer.type.kind is LayerKind.MODEL for layer in layers):
        tree.model = _model_path(resolved.kits)
    _add_model_link(tree)
    return tree


def _add_reserved(tree: Tree, resolved: ResolvedTree, meta: bool, has_kitfile: bool) -> None:
    kit = resolved.kits[0]
    files: list[tuple[bytes, bytes]] = []
    if kit.kitfile is not None and has_kitfile:
        files.append((KITFILE, encode_kitfile_yaml(kit.kitfile)))
    if meta:
        files += [
            (META + b"/manifest.json", kit.manifest.raw),
            (META + b"/config.json", kit.config),
            (META + b"/id", f"{kit.manifest.digest}\n".encode()),
            (META + b"/reference", f"{resolved.reference}\n".encode()),
        ]
    outline = Outline.of([TocMember(path, KIND_FILE, 0o644, len(data), 0) for path, data in files])
    tree.add(outline, None, inline=[data for _, data in files])


def add_layer(tree: Tree, layer: KitLayer, outline: Outline) -> None:
    """Add what a layer shows.

    Raises:
        TreeConflict: when it claims a path that is taken, or ``.kitfs``.
    """
    if layer.raw_path is not None:
        member = TocMember(layer.raw_path, KIND_FILE, layer.raw_mode, outline.size, 0)
        outline = Outline.of([member])
    elif layer.prefix and outline.count > 1:
        above = Outline.of([TocMember(layer.prefix, KIND_DIRECTORY, 0o755, 0, 0)])
        _refuse_reserved(above)
        tree.add(above, None)
    if not layer.prefix:
        _refuse_reserved(outline)
    tree.add(outline, layer.digest, at=layer.prefix if outline.count > 1 else b"")


def _refuse_reserved(outline: Outline) -> None:
    entry = outline.find(0, META)
    if entry is not None:
        part = Part(outline, 0, 0, None)
        raise TreeConflict(explicit_path(part, entry, META), "the name .kitfs is reserved")


def _model_path(kits: Sequence[Kit]) -> bytes | None:
    for kit in kits:
        if kit.kitfile is None:
            return _weights_path(kit)
        model = kit.kitfile.model
        if kit.parent is None:
            has_model = any(layer.type.kind is LayerKind.MODEL for layer in kit.layers)
            return clean_path(model.path) if model and has_model else None
    return None


def _weights_path(kit: Kit) -> bytes | None:
    """Where a ModelPack without a Kitfile keeps its weights: the one file, or the directory of several."""
    weights = {layer.digest for layer in kit.layers if layer.type.kind is LayerKind.MODEL}
    paths = [clean_path(find_filepath(layer) or ".") for layer in kit.manifest.layers if layer.digest in weights]
    if not paths:
        return None
    if len(paths) == 1:
        return paths[0]
    return posixpath.commonpath([posixpath.dirname(path) for path in paths])


def _add_model_link(tree: Tree) -> None:
    if tree.model is None or tree.find_child(0, MODEL) is not None:
        return
    if tree.model:
        try:
            tree.get_path(tree.model)
        except NodeNotFound:
            return
    target = tree.model or b"."
    outline = Outline.of([TocMember(MODEL, KIND_FILE, 0o777, len(target), 0)])
    tree.add(outline, None, inline=[target], is_link=True)
