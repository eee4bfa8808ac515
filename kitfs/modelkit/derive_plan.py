"""Which layers a child has: the parent's where nothing changed, and those that are written.

Used by derive. A changed layer keeps its parent's form (tar or raw, compression, family, names relative to the same
directory), but what was one file and is a directory now becomes a tar; a new one is plain tar, or gzip in a child of a
parent that has gzip alone and no digests in its config.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kitfs.layer.compress import PackCompression
from kitfs.modelkit.derive_parent import Comparison, Parent, ParentLayer
from kitfs.modelkit.derive_source import DeriveSource
from kitfs.modelkit.pack_options import LayerPlan, check_raw
from kitfs.modelkit.walk import PathsUnpackable
from kitfs.oci.kitfile import Artifact, clean_path, iter_artifacts
from kitfs.oci.mediatype import Compression, Family, LayerFormat, LayerKind, LayerType, has_kind


class LayerState(StrEnum):
    """What became of a layer."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    NEW = "new"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class DerivedLayer:
    """One layer of a child.

    Attributes:
        state: Against the parent.
        artifact: Its entry in the child's Kitfile, or the parent's of one that is removed.
        path: The entry's cleaned path.
        parent: The parent's layer there; None for a new one.
        plan: How it is written; None when it is not.
    """

    state: LayerState
    artifact: Artifact
    path: str
    parent: ParentLayer | None
    plan: LayerPlan | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """How layers of a child are written that its parent does not have.

    Attributes:
        family: Of their media types.
        compression: Of layers that are new.
        forced: What was asked for, for changed ones too; None keeps the parent's.
        is_legacy: Whether names in a tar are relative to the directory above the entry's path.
    """

    family: Family
    compression: PackCompression
    forced: PackCompression | None
    is_legacy: bool

    def of(self, artifact: Artifact, parent: ParentLayer | None, *, is_file: bool) -> tuple[LayerType, PackCompression]:
        """Media type and compression of a layer.

        Args:
            artifact: Its entry.
            parent: What the parent has there.
            is_file: Whether the entry's path is a file.

        Raises:
            PackUnusable: when a ModelPack can not hold what was asked for.
        """
        if artifact.kind is LayerKind.MCPB:
            return LayerType(artifact.kind, LayerFormat.RAW), PackCompression.NONE
        is_raw = is_file and parent is not None and parent.layer.type.format is LayerFormat.RAW
        layer_format = LayerFormat.RAW if is_raw else LayerFormat.TAR
        family = parent.layer.type.family if parent is not None else self.family
        if not has_kind(family, artifact.kind):
            family = Family.KITOPS
        compression = self.forced or (_kept(parent) if parent is not None else self.compression)
        if family is Family.MODELPACK:
            check_raw(layer_format, compression)
        return LayerType(artifact.kind, layer_format, compression.compression, family), compression


def _kept(parent: ParentLayer) -> PackCompression:
    """isal level 1 for gzip: 389 MB of weights per CPU-second, where kit's own takes 49."""
    if parent.layer.type.compression is Compression.GZIP:
        return PackCompression.GZIP_FASTEST
    return PackCompression(parent.layer.type.compression.value)


def plan_layers(source: DeriveSource, parent: Parent, form: Form) -> list[DerivedLayer]:
    """All layers of a child in the order of its manifest, then those that are gone.

    Raises:
        PathsUnpackable: when some must be the bytes of one file and are not, with all of them.
        PackUnusable: when a ModelPack can not hold what was asked for.
        PathUnreadable, FileChanged, UpperUnreadable, FileOpenForWriting: when files can not be compared.
        LayerNotIndexed, RecordCorrupt: when the store does not know what a parent's layer holds.
    """
    layers, problems = [], []
    for artifact in iter_artifacts(source.kitfile):
        path = clean_path(artifact.path)
        layer = _plan_layer(source, parent, artifact, path, form)
        if layer.plan is not None and layer.plan.type.format is LayerFormat.RAW:
            problem = source.layers.find_raw_problem(path)
            problems += [problem] if problem is not None else []
        layers.append(layer)
    if problems:
        raise PathsUnpackable(problems)
    return [*layers, *_iter_removed(parent.layers.values(), {layer.path for layer in layers})]


def _plan_layer(source: DeriveSource, parent: Parent, artifact: Artifact, path: str, form: Form) -> DerivedLayer:
    before = parent.layers.get(path)
    if before is not None and _is_same(source, parent, artifact, before):
        return DerivedLayer(LayerState.UNCHANGED, artifact, path, before)
    size, entry_count = source.layers.measure(path, str(artifact.kind))
    layer_type, compression = form.of(artifact, before, is_file=not source.layers.has_directory(path))
    prefix = path.rpartition("/")[0] if form.is_legacy and layer_type.format is LayerFormat.TAR else ""
    plan = LayerPlan(artifact, path, layer_type, compression, size, entry_count, prefix)
    state = LayerState.CHANGED if before is not None else LayerState.NEW
    return DerivedLayer(state, artifact, path, before, plan)


def _is_same(source: DeriveSource, parent: Parent, artifact: Artifact, layer: ParentLayer) -> bool:
    if not _is_kind_kept(artifact, layer):
        return False
    files = source.layers
    return Comparison(parent, layer).is_same(lambda: files.iter_entries(layer.path), files.has_directory)


def _is_kind_kept(artifact: Artifact, layer: ParentLayer) -> bool:
    """A ModelPack may have many layers of weights, where a Kitfile has one model and its parts."""
    layer_type = layer.layer.type
    if artifact.kind is LayerKind.MODELPART and layer_type.family is Family.MODELPACK:
        return layer_type.kind in (LayerKind.MODEL, LayerKind.MODELPART)
    return (artifact.kind, artifact.subtype) == (layer.artifact.kind, layer.artifact.subtype)


def _iter_removed(parents: Iterable[ParentLayer], kept: set[str]) -> Iterable[DerivedLayer]:
    for parent in parents:
        if parent.path not in kept:
            yield DerivedLayer(LayerState.REMOVED, parent.artifact, parent.path, parent)
