"""``kitfs diff``: what was changed in a staging directory; two ModelKits in kit's words, with the files that differ."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import format_path, format_size, print_json, print_result, warn
from kitfs.cli.references import get_digest
from kitfs.cli.settings import Settings, verb
from kitfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kitfs.modelkit.changes import Change
    from kitfs.modelkit.compare import Comparison, MemberChange
    from kitfs.modelkit.resolve import Kit
    from kitfs.modelkit.staging import Staging
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


@verb(
    "diff",
    short_help="Show what was changed, or compare two ModelKits.",
    examples=["kitfs diff ./work", "kitfs diff ./work --stat", "kitfs diff myllm:3.1.4 myllm:3.1.5"],
)
@click.argument("modelkit1", metavar="DIRECTORY|MODELKIT1")
@click.argument("modelkit2", required=False)
@click.option(
    "--stat", "with_sizes", is_flag=True, help="Sizes before and after, and how much in all (DIRECTORY only)."
)
def diff(settings: Settings, modelkit1: str, modelkit2: str | None, with_sizes: bool) -> None:
    """Show what was changed over a ModelKit, or compare two ModelKits of the store.

    DIRECTORY is where a ModelKit is mounted writable, or a staging directory, mounted or not. What a child would have
    otherwise is listed as A (added), M (modified) or D (deleted); directories end in a slash. One that is deleted is
    one line; one that is renamed is deleted and added. A file that was written to and holds what it held is no change.

    Two ModelKits are compared by config, annotations, layers, and the files in layers that they do not share, listed as
    A (only in the second), D (only in the first) or M (other bytes or permissions). A reference may be prefixed with
    local://, as with kit.

    With -q paths alone are printed.
    """
    if modelkit2 is None:
        _diff_staging(settings, modelkit1, with_sizes=with_sizes)
    elif with_sizes:
        raise click.UsageError("--stat is for a DIRECTORY; sizes are shown whenever two ModelKits are compared")
    else:
        _diff_kits(settings, modelkit1, modelkit2)


def _diff_kits(settings: Settings, modelkit1: str, modelkit2: str) -> None:
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


def _diff_staging(settings: Settings, directory: str, *, with_sizes: bool) -> None:
    from kitfs.modelkit.changes import Digests
    from kitfs.modelkit.merged import MergedTree
    from kitfs.modelkit.resolve import reopen
    from kitfs.modelkit.staging import StagingUnusable
    from kitfs.modelkit.tree import build_tree

    staging = _get_staging(directory)
    record = staging.record
    if record.store != os.path.realpath(settings.home):
        raise StagingUnusable(staging.path, f"it belongs to the store {record.store}", f"--home {record.store}")
    with settings.open_store(create=False) as store:
        tree = build_tree(reopen(store, record.reference, staging.manifests), store.open_outline)
        merged = MergedTree(tree, staging.upper, shown=staging.shown_modes, overlay=record.overlay)
        changes = list(merged.iter_changes(Digests(store)))
    for path, mode in merged.others:
        what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
        warn(f"{format_path(path)} is {what}; a ModelKit can not hold it")
    if settings.json:
        print_json(_encode_changes(staging, changes, merged.others))
    elif settings.quiet or not with_sizes:
        for change in changes:
            print_result(_format_change(change, quiet=settings.quiet))
    else:
        _print_sizes(changes)


def _get_staging(directory: str) -> Staging:
    """The staging directory that a word means.

    Raises:
        StagingNotFound: when it is another directory.
    """
    from kitfs.modelkit.staging import StagingNotFound, find_staging

    path = Path(directory)
    staging = find_staging(path)
    if staging is not None:
        return staging
    if not path.is_dir():
        raise click.UsageError(f"{directory} is no directory; to compare two ModelKits, name both")
    raise StagingNotFound(path)


def _format_change(change: Change, *, quiet: bool = False) -> str:
    path = format_path(change.path) + ("/" if change.is_directory else "")
    return path if quiet else f"{change.kind} {path}"


def _print_sizes(changes: Sequence[Change]) -> None:
    """A line for each change, with sizes before and after, and the sums."""

    def size(value: int | None) -> str:
        return "-" if value is None else format_size(value)

    for change in changes:
        sizes = f"{size(change.size_before):>10} {size(change.size_after):>10}"
        print_result(f"{change.kind} {sizes}  {_format_change(change, quiet=True)}")
    sums = _sum(changes)
    counts = ", ".join(f"{sums[name]} {name}" for name in ("added", "modified", "deleted"))
    print_result(f"{counts}; {format_size(sums['sizeBefore'])} before, {format_size(sums['sizeAfter'])} after")


def _sum(changes: Sequence[Change]) -> dict[str, int]:
    kinds = [change.kind for change in changes]
    return {
        "added": kinds.count("A"),
        "modified": kinds.count("M"),
        "deleted": kinds.count("D"),
        "sizeBefore": sum(change.size_before or 0 for change in changes),
        "sizeAfter": sum(change.size_after or 0 for change in changes),
    }


def _encode_changes(
    staging: Staging, changes: Sequence[Change], others: Sequence[tuple[bytes, int]]
) -> dict[str, object]:
    return {
        "staging": str(staging.path),
        "reference": staging.record.reference,
        "parent": staging.record.manifests[0],
        "changes": [
            {
                "status": change.kind,
                "path": format_path(change.path),
                "directory": change.is_directory,
                "sizeBefore": change.size_before,
                "sizeAfter": change.size_after,
            }
            for change in changes
        ],
        "others": [format_path(path) for path, _ in others],
        "sum": _sum(changes),
    }
