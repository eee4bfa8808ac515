"""Config and manifest of what was packed, as a ModelKit (kitops.md 2.1, form b) or as a ModelPack (form c).

Used by pack. Pure: bytes out; storing them is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from kitfs import __version__
from kitfs.digest import Digest
from kitfs.oci import go_json
from kitfs.oci.kitfile import Kitfile, encode_kitfile_json, replace_digests
from kitfs.oci.manifest import (
    ANNOTATION_AUTHORS,
    ANNOTATION_CLI_VERSION,
    ANNOTATION_CREATED,
    ANNOTATION_KITFILE,
    Descriptor,
    encode_manifest,
)
from kitfs.oci.mediatype import ARTIFACT_KITOPS, ARTIFACT_MODELPACK, CONFIG_KITOPS, CONFIG_MODELPACK


def describe(kitfile: Kitfile, created_s: float) -> dict[str, str]:
    """Who wrote a manifest, when, and the authors: what the specification asks for.

    Args:
        kitfile: Whose package names the authors.
        created_s: Seconds since the epoch.
    """
    annotations = {ANNOTATION_CLI_VERSION: f"kitfs {__version__}", ANNOTATION_CREATED: _format_time(created_s)}
    if kitfile.package.authors:
        annotations[ANNOTATION_AUTHORS] = ", ".join(kitfile.package.authors)
    return annotations


def _format_time(created_s: float) -> str:
    return f"{datetime.fromtimestamp(int(created_s), UTC):%Y-%m-%dT%H:%M:%SZ}"


class ManifestForm:
    """Which of the two is written, with the Kitfile that names its layers' digests.

    Attributes:
        config_type: Media type of the config.
    """

    def __init__(
        self,
        kitfile: Kitfile,
        digests: Sequence[tuple[Digest, Digest]],
        created_s: float,
        *,
        model_pack: bool,
        extra: Mapping[str, str] | None = None,
        carried: Sequence[Digest] = (),
        inherited: Mapping[str, object] | None = None,
    ) -> None:
        """Begin.

        Args:
            kitfile: As it was read.
            digests: Digest and diff_id of each layer, in the order of the manifest.
            created_s: Seconds since the epoch.
            model_pack: Whether it is a ModelPack.
            extra: Further annotations of the manifest.
            carried: The diff_id of each layer that comes after those and has no entry.
            inherited: A ModelPack's config of which to keep what no Kitfile can say.

        Raises:
            JsonUnsupported: when the Kitfile's parameters hold what JSON can not.
        """
        self._kitfile = kitfile
        self._diff_ids = [*(diff_id for _, diff_id in digests), *carried]
        self._created = _format_time(created_s)
        self._annotations = {**describe(kitfile, created_s), **(extra or {})}
        self._model_pack = model_pack
        self._inherited = inherited or {}
        self._raw_kitfile = encode_kitfile_json(replace_digests(kitfile, digests))
        self.config_type = CONFIG_MODELPACK if model_pack else CONFIG_KITOPS

    def encode_config(self) -> bytes:
        """The config blob: the Kitfile, or what a ModelPack has instead."""
        return self._encode_model_config() if self._model_pack else self._raw_kitfile

    def encode_manifest(self, config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
        """The manifest, with who wrote it and when."""
        annotations = dict(self._annotations)
        if self._model_pack:
            annotations[ANNOTATION_KITFILE] = self._raw_kitfile.decode()
        artifact_type = ARTIFACT_MODELPACK if self._model_pack else ARTIFACT_KITOPS
        return encode_manifest(config, layers, annotations, artifact_type=artifact_type)

    def _encode_model_config(self) -> bytes:
        """model-spec's ``Model``, filled in as kit does; keys in the order of its structs, empty ones left out."""
        package, model = self._kitfile.package, self._kitfile.model
        descriptor = {
            "createdAt": self._created,
            "authors": list(package.authors),
            "name": package.name,
            "version": package.version,
            "licenses": sorted(set(_iter_licenses(self._kitfile))),
            "title": package.name,
            "description": package.description,
        }
        config = {"format": model.format if model is not None else ""}
        value = {
            "descriptor": self._with_inherited("descriptor", descriptor),
            "modelfs": {"type": "layers", "diffIds": [str(digest) for digest in self._diff_ids]},
            "config": self._with_inherited("config", config),
        }
        return go_json.encode(value)

    def _with_inherited(self, key: str, own: Mapping[str, object]) -> dict[str, object]:
        """What the Kitfile says where it can say anything, and the rest as it was."""
        inherited = self._inherited.get(key)
        rest = inherited if isinstance(inherited, dict) else {}
        return {name: item for name, item in own.items() if item} | {
            name: item for name, item in rest.items() if name not in own
        }


def _iter_licenses(kitfile: Kitfile) -> Iterable[str]:
    licenses = [kitfile.package.license]
    if kitfile.model is not None:
        licenses += [kitfile.model.license, *(part.license for part in kitfile.model.parts)]
    licenses += [dataset.license for dataset in kitfile.datasets] + [code.license for code in kitfile.code]
    return filter(None, licenses)
