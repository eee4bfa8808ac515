"""``kitfs diff``: two ModelKits of the store compared, in kit's words, with the files that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kitfs.cli.output import format_path, format_size, print_json, print_result
from kitfs.cli.references import get_digest
from kitfs.cli.settings import Settings, verb
from kitfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kitfs.modelkit.compare import Comparison, MemberChange
    from kitfs.modelkit.resolve import Kit
    from kitfs.oci.manifest import Descriptor
    from kitfs.oci.reference import Reference

LOCAL, REMOTE = "local://", "remote://"
LINE = "-" * 39
LAYER_TABLE = "Type    | Digest             | Size"
SHORT_DIGEST = 17
"""Characters of a digest that kit prints here: ``sha256:`` and ten more."""


class RemoteUnsupported(UsageError):
    """A ModelKit was to be read from a registry."""

    hint = "kitfs import brings a ModelKit into the store"

    def __init__(self, text: str) -> None:
        super().__init__(f"{text}: kitfs diff compares what is in the store; it can not read a registry yet")
        self.text = text


@verb("diff", short_help="Compare two ModelKits.", examples=["kitfs diff myllm:3.1.4 myllm:3.1.5"])
@click.argument("modelkit1")
@click.argument("modelkit2")
def diff(settings: Settings, modelkit1: str, modelkit2: str) -> None:
    """Compare two ModelKits of the store: config, annotations, layers, and the files in layers that they do not share.

    A reference may be prefixed with local://, as with kit. Files are listed as A (only in the second), D (only in the
    first) or M (other bytes or permissions). With -q their paths alone are printed.
    """
    from kitfs.modelkit import compare
    from kitfs.modelkit.resolve import open_kit

    references = _parse(modelkit1), _parse(modelkit2)
    with settings.open_store(create=False) as store:
        a, b = (open_kit(store, get_digest(store, reference)) for reference in references)
        result = compare.compare_manifests(a.manifest, b.manifest)
        changes = compare.compare_members(store, a, b)
    if settings.json:
        print_json(_encode(result, changes))
    elif settings.quiet:
        for change in changes:
            print_result(format_path(change.path))
    elif a.manifest.digest == b.manifest.digest:
        print_result("ModelKits are identical")
    else:
        _print_comparison(references, (a, b), result)
        _print_section("Members", [_line(change) for change in changes])


def _parse(text: str) -> Reference:
    from kitfs.oci.reference import parse_reference

    if text.startswith(REMOTE):
        raise RemoteUnsupported(text)
    return parse_reference(text.removeprefix(LOCAL))


def _encode(result: Comparison, changes: Sequence[MemberChange]) -> dict[str, object]:
    def layers(descriptors: Sequence[Descriptor]) -> list[dict[str, object]]:
        return [{"mediaType": d.media_type, "digest": str(d.digest), "size": d.size} for d in descriptors]

    return {
        "SameConfig": result.same_config,
        "AnnotationsMatch": result.annotations_match,
        "SharedLayers": layers(result.shared),
        "UniqueLayersA": layers(result.unique_a),
        "UniqueLayersB": layers(result.unique_b),
        "Members": [
            {"status": change.status, "path": format_path(change.path), "size": change.size} for change in changes
        ],
    }


def _print_comparison(references: tuple[Reference, Reference], kits: tuple[Kit, Kit], result: Comparison) -> None:
    """Kit's text, to the letter."""
    first, second = references
    configs = [str(kit.manifest.config.digest)[:SHORT_DIGEST] for kit in kits]
    print_result(f"Comparing:\n  ModelKit1: {first}\n  ModelKit2: {second}\n\nConfigurations:\n{LINE}")
    if result.same_config:
        print_result(f"  Configs are identical (Digest: {configs[0]})\n")
    else:
        print_result("Configs differ:")
        print_result(f"  ModelKit1 Config Digest: {configs[0]}\n  ModelKit2 Config Digest: {configs[1]}\n")
    match = "are identical " if result.annotations_match else "does not match"
    print_result(f"Annotations:\n{LINE}\n  Annotations {match}\n")
    for title, layers in (
        ("Shared Layers", result.shared),
        (f"Unique Layers to ModelKit1 ({first})", result.unique_a),
        (f"Unique Layers to ModelKit2 ({second})", result.unique_b),
    ):
        _print_section(title, [LAYER_TABLE, *map(_layer_line, layers)] if layers else [])


def _print_section(title: str, lines: Sequence[str]) -> None:
    print_result("\n".join((title, LINE, *(lines or ("<none>",)), "")))


def _layer_line(layer: Descriptor) -> str:
    from kitfs.oci.mediatype import parse_layer_type

    kind = parse_layer_type(layer.media_type)
    name = kind.kind.capitalize() if kind else "<unknown>"
    return f"{name:<7} | {str(layer.digest)[:SHORT_DIGEST]:<18} | {format_size(layer.size)}"


def _line(change: MemberChange) -> str:
    return f"{change.status}   {format_size(change.size):>9}   {format_path(change.path)}"
