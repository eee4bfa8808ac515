"""``kitfs info`` and ``inspect``: what a ModelKit in the store says about itself, in kit's forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kitfs.cli.output import print_json_text, print_result
from kitfs.cli.references import get_digest
from kitfs.cli.settings import Settings, verb
from kitfs.errors import IntegrityError, KitfsError, NotFoundError

if TYPE_CHECKING:
    from kitfs.digest import Digest
    from kitfs.oci.kitfile import Kitfile
    from kitfs.oci.manifest import Manifest

MANIFEST_KEYS = ("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations")
DESCRIPTOR_KEYS = ("mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType")
"""The order in which kit prints them, the image specification's; keys that it does not know follow."""


class ModelKitUnreadable(IntegrityError):
    """A ModelKit whose manifest or config is lost, rotten or not what kit writes."""

    hint = "kitfs fsck shows what the store has lost; importing the ModelKit again brings it back"

    def __init__(self, digest: Digest, error: KitfsError) -> None:
        super().__init__(f"ModelKit {digest} can not be read: {error}")
        self.digest = digest


class NoKitfile(NotFoundError):
    """A ModelPack artifact that brings no Kitfile."""

    hint = "kitfs inspect shows its manifest"

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"ModelPack {digest} has no Kitfile")
        self.digest = digest


@verb(
    "info",
    examples=["kitfs info myllm:3.1.4", "kitfs info myllm:3.1.4 --filter .model.parts[0].path"],
    short_help="Show a ModelKit's Kitfile.",
)
@click.argument("reference")
@click.option("-f", "--filter", "selector", metavar="SELECTOR", default="",
              help="Only one node: dotted keys, [n] for items of lists.")  # fmt: skip
def info(settings: Settings, reference: str, selector: str) -> None:
    """Print the Kitfile of REFERENCE as YAML, as kit info does; with --format json as JSON, with -q the ModelKitID."""
    from kitfs.oci import kitfile as kitfiles
    from kitfs.oci.kitfile_select import select

    manifest, kitfile = _read(settings, reference)
    if settings.quiet:
        print_result(str(manifest.digest))
        return
    if kitfile is None:
        raise NoKitfile(manifest.digest)
    node = select(kitfile, selector) if selector else kitfile
    if settings.json:
        print_json_text(kitfiles.encode_node_json(node))
    else:
        print_result(kitfiles.encode_node_yaml(node).decode().removesuffix("\n"))


@verb("inspect", examples=["kitfs inspect myllm:3.1.4"], short_help="Show a ModelKit's manifest and config.")
@click.argument("reference")
def inspect(settings: Settings, reference: str) -> None:
    """Print digest, version, Kitfile and manifest of REFERENCE as JSON, as kit inspect does; with -q the ModelKitID.

    A ModelPack artifact without a Kitfile is shown without one. A ModelKit that was committed over another has one more
    key, lineage.
    """
    manifest, kitfile = _read(settings, reference)
    if settings.quiet:
        print_result(str(manifest.digest))
    else:
        print_json_text(encode_inspection(manifest, kitfile))


def encode_inspection(manifest: Manifest, kitfile: Kitfile | None) -> bytes:
    """What kit inspect prints, not yet indented.

    Raises:
        JsonUnsupported: when the Kitfile's ``parameters`` can not be written as JSON.
    """
    from kitfs.oci import go_json, strict_json
    from kitfs.oci.kitfile import encode_kitfile_json
    from kitfs.oci.manifest import ANNOTATION_CLI_VERSION

    shown: dict[str, object] = {
        "digest": str(manifest.digest),
        "cliVersion": manifest.annotations.get(ANNOTATION_CLI_VERSION) or "unknown",
    }
    if kitfile is not None:
        shown["kitfile"] = strict_json.decode(encode_kitfile_json(kitfile))
    shown["manifest"] = _order(strict_json.decode(manifest.raw), MANIFEST_KEYS)
    if lineage := _encode_lineage(manifest):
        shown["lineage"] = lineage
    return go_json.encode(shown)


def _encode_lineage(manifest: Manifest) -> dict[str, object]:
    """Where it was derived from, as the manifest has it; empty for what other programs write."""
    from kitfs.oci import manifest as manifests

    keys = {
        "parent": manifests.ANNOTATION_PARENT,
        "parentReference": manifests.ANNOTATION_PARENT_REFERENCE,
        "message": manifests.ANNOTATION_MESSAGE,
    }
    return {key: manifest.annotations[name] for key, name in keys.items() if name in manifest.annotations}


def _order(value: object, keys: tuple[str, ...]) -> object:
    """An object of the manifest with its keys in kit's order, at any depth."""
    if isinstance(value, list):
        return [_order(item, keys) for item in value]
    if not isinstance(value, dict):
        return value
    known = {key: _inner(key, value[key]) for key in keys if key in value}
    return known | {key: value[key] for key in value if key not in known}


def _inner(key: str, value: object) -> object:
    from kitfs.oci import go_json

    if key in ("config", "layers", "subject"):
        return _order(value, DESCRIPTOR_KEYS)
    return go_json.sort_keys(value) if key == "annotations" else value


def _read(settings: Settings, text: str) -> tuple[Manifest, Kitfile | None]:
    from kitfs.oci.manifest import parse_manifest
    from kitfs.oci.reference import parse_reference
    from kitfs.transfer.parents import read_kitfile

    reference = parse_reference(text)
    with settings.open_store(create=False) as store:
        digest = get_digest(store, reference)
        try:
            manifest = parse_manifest(store.read_blob(digest))
            return manifest, read_kitfile(manifest, store.read_blob(manifest.config.digest))
        except KitfsError as error:
            raise ModelKitUnreadable(digest, error) from error
