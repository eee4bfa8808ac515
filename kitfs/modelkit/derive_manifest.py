"""Config and manifest of a child: as pack writes them, with its lineage; or in the form of a parent before kit 0.5.

Used by derive. Pure: bytes out; storing them is the caller's. A parent of a legacy era names no digests in its config,
so kit maps its layers by their order; a child with digests beside layers without the newer annotations would be read
otherwise by the kit that made the parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from kitfs.digest import Digest
from kitfs.modelkit.pack_manifest import ManifestForm, describe
from kitfs.modelkit.resolve import Kit, ResolvedTree
from kitfs.oci import strict_json
from kitfs.oci.kitfile import Kitfile, encode_kitfile_json, iter_artifacts
from kitfs.oci.manifest import (
    ANNOTATION_MESSAGE,
    ANNOTATION_PARENT,
    ANNOTATION_PARENT_REFERENCE,
    Descriptor,
    Manifest,
    encode_manifest,
)


def lineage(parent: ResolvedTree | None, message: str) -> dict[str, str]:
    """What a child records of where it came from."""
    annotations = {}
    if parent is not None:
        annotations[ANNOTATION_PARENT] = str(parent.digests[0])
        if parent.reference:
            annotations[ANNOTATION_PARENT_REFERENCE] = parent.reference
    if message:
        annotations[ANNOTATION_MESSAGE] = message
    return annotations


def is_legacy(kit: Kit) -> bool:
    """Whether a ModelKit is of a kit before 0.5: no entry of its config has a digest."""
    artifacts = list(iter_artifacts(kit.kitfile)) if kit.kitfile is not None else []
    return bool(artifacts) and not kit.manifest.is_modelpack and not any(entry.digest for entry in artifacts)


def without_digests(kitfile: Kitfile) -> Kitfile:
    """What a person can say in a Kitfile: a copy without digests."""
    entries: dict[str, object] = {
        name: tuple(_bare(entry) for entry in getattr(kitfile, name))
        for name in ("code", "datasets", "docs", "prompts", "mcp_servers")
    }
    if kitfile.model is not None:
        model = _bare(kitfile.model)
        entries["model"] = msgspec.structs.replace(model, parts=tuple(_bare(part) for part in kitfile.model.parts))
    return msgspec.structs.replace(kitfile, **entries)


def _bare(entry: msgspec.Struct) -> msgspec.Struct:
    return msgspec.structs.replace(entry, digest=None, diff_id=None)


@dataclass(frozen=True, slots=True)
class LegacyForm:
    """The form of a parent before kit 0.5.

    Attributes:
        kitfile: As it was read.
        manifest: The parent's.
        created_s: Seconds since the epoch.
        lineage: Annotations.
    """

    kitfile: Kitfile
    manifest: Manifest
    created_s: float
    lineage: Mapping[str, str]

    @property
    def config_type(self) -> str:
        """Media type of the config."""
        return self.manifest.config.media_type

    def encode_config(self) -> bytes:
        """The Kitfile, no digests in it."""
        return encode_kitfile_json(without_digests(self.kitfile))

    def encode_manifest(self, config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
        """The manifest."""
        annotations = {**describe(self.kitfile, self.created_s), **self.lineage}
        form = self.manifest
        return encode_manifest(
            config, layers, annotations, artifact_type=form.artifact_type, media_type=form.media_type
        )


def choose_form(
    kitfile: Kitfile,
    digests: Sequence[tuple[Digest, Digest]],
    created_s: float,
    parent: ResolvedTree | None,
    message: str,
    carried: Sequence[Digest] = (),
) -> ManifestForm | LegacyForm:
    """The form of a child.

    Args:
        kitfile: As it was read.
        digests: Digest and diff_id of each layer, in the order of the manifest.
        created_s: Seconds since the epoch.
        parent: What it was made from.
        message: What its maker says of it.
        carried: The diff_id of each layer that comes after those and has no entry.

    Raises:
        JsonMalformed: when the config of a ModelPack is no JSON.
    """
    annotations = lineage(parent, message)
    if parent is not None and is_legacy(parent.kits[0]):
        return LegacyForm(kitfile, parent.kits[0].manifest, created_s, annotations)
    if parent is None or not parent.kits[0].manifest.is_modelpack:
        return ManifestForm(kitfile, digests, created_s, model_pack=False, extra=annotations, carried=carried)
    config = strict_json.decode(parent.kits[0].config)
    inherited = config if isinstance(config, dict) else {}
    return ManifestForm(
        kitfile, digests, created_s, model_pack=True, extra=annotations, carried=carried, inherited=inherited
    )
