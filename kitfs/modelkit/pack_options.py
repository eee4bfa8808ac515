"""In which form layers are packed, and what of it a ModelKit's layers can not have.

Used by pack. What is refused is refused before anything is written, with all of it at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from kitfs.layer.compress import PackCompression
from kitfs.modelkit.pack_source import PackUnusable, Source
from kitfs.modelkit.walk import PathsUnpackable
from kitfs.oci.kitfile import Artifact, Kitfile, clean_path, iter_artifacts
from kitfs.oci.mediatype import Family, LayerFormat, LayerKind, LayerType


@dataclass(frozen=True, slots=True)
class PackOptions:
    """The form of what is packed.

    Attributes:
        compression: Of all layers but MCP bundles.
        layer_format: Tar, or raw: a layer is the bytes of its one file.
        model_pack: Write a ModelPack artifact instead of a ModelKit; its Kitfile goes into an annotation.
    """

    compression: PackCompression = PackCompression.NONE
    layer_format: LayerFormat = LayerFormat.TAR
    model_pack: bool = False


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer as it is to be packed.

    Attributes:
        artifact: Its entry in the Kitfile.
        path: The entry's cleaned path.
        type: Its media type.
        compression: How it is compressed.
        size: Bytes of all its files.
        entry_count: Files and directories.
        prefix: Directory that the names in a tar are relative to (kit before 0.5).
    """

    artifact: Artifact
    path: str
    type: LayerType
    compression: PackCompression
    size: int
    entry_count: int
    prefix: str = ""

    @property
    def name(self) -> str:
        """What people see."""
        return f"{self.artifact.kind} {self.path}"


def check_options(kitfile: Kitfile, options: PackOptions) -> None:
    """Look at what can be known without the directory.

    Raises:
        PackUnusable: when a ModelPack can not hold it.
    """
    if not options.model_pack:
        return
    if kitfile.mcp_servers:
        names = ", ".join(server.name or server.path for server in kitfile.mcp_servers)
        raise PackUnusable(f"a ModelPack can not hold mcpServers ({names}); pack without --use-model-pack")
    check_raw(options.layer_format, options.compression)


def check_raw(layer_format: LayerFormat, compression: PackCompression) -> None:
    """Refuse what model-spec has no media type for.

    Raises:
        PackUnusable: when a layer would be raw and compressed.
    """
    if layer_format is LayerFormat.RAW and compression is not PackCompression.NONE:
        raise PackUnusable(
            f"a ModelPack can not hold raw layers compressed by {compression}; "
            "use --layer-format tar or --compression none"
        )


def plan_layers(source: Source, kitfile: Kitfile, options: PackOptions) -> list[LayerPlan]:
    """All layers, in the order of the manifest.

    Raises:
        PathsUnpackable: when some are to be raw and are no single file, with all of them.
        PathUnreadable: when the directory can not be read.
    """
    plans, problems = [], []
    for artifact in iter_artifacts(kitfile):
        path = clean_path(artifact.path)
        size, entry_count = source.measure(path, str(artifact.kind))
        layer_type, compression = _form(artifact, options)
        problem = source.find_raw_problem(path) if layer_type.format is LayerFormat.RAW else None
        if problem is not None:
            problems.append(problem)
        plans.append(LayerPlan(artifact, path, layer_type, compression, size, entry_count))
    if problems:
        raise PathsUnpackable(problems)
    return plans


def _form(artifact: Artifact, options: PackOptions) -> tuple[LayerType, PackCompression]:
    if artifact.kind is LayerKind.MCPB:
        return LayerType(artifact.kind, LayerFormat.RAW), PackCompression.NONE
    family = Family.MODELPACK if options.model_pack else Family.KITOPS
    compression = options.compression
    return LayerType(artifact.kind, options.layer_format, compression.compression, family), compression
