"""Verb ``commit``: a staging directory, or any folder with a Kitfile, into a new derived ModelKit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.environment import source_date_epoch
from kitfs.cli.output import format_size, print_json, print_result, warn
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb
from kitfs.errors import KitfsError

if TYPE_CHECKING:
    from kitfs.digest import Digest
    from kitfs.modelkit.derive import Derived
    from kitfs.modelkit.derive_plan import DerivedLayer
    from kitfs.modelkit.resolve import ResolvedTree
    from kitfs.oci.reference import Reference
    from kitfs.store.store import Store


@verb("commit", short_help="Make a new ModelKit of what changed.",
      examples=["kitfs commit /mnt/model myllm:3.1.5 -m 'fine-tuned on support tickets'",
                "kitfs commit ./work myllm:3.1.5 --parent myllm:3.1.4"],
)  # fmt: skip
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("reference")
@click.option("-m", "--message", default="", help="What is new in it; kitfs log shows it.")
@click.option("--parent", metavar="REF", help="What a folder was made from; a staging directory knows.")
@click.option(
    "--compression",
    type=click.Choice(["none", "gzip", "gzip-fastest", "zstd"]),
    help="Of layers that are written; default: as in the parent, none for new ones.",
)
@click.option("--ignore-untracked", is_flag=True, help="Leave out files that no entry of the Kitfile claims.")
@click.option("--force", is_flag=True, help="Move REFERENCE when it is there already.")
@click.option("--rebase", is_flag=True, help="Afterwards move the staging directory onto the new ModelKit, emptied.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, layer by layer, and do nothing.")
def commit(
    settings: Settings,
    directory: Path,
    reference: str,
    message: str,
    parent: str | None,
    compression: str | None,
    ignore_untracked: bool,
    force: bool,
    rebase: bool,
    dry_run: bool,
) -> None:
    """Make a new ModelKit of DIRECTORY and tag it; its parent stays as it is.

    DIRECTORY is a writable mount, its staging directory, or any folder with a Kitfile. Layers without a change are the
    parent's own, and are not read. Prints the new ModelKitID and its parent. SOURCE_DATE_EPOCH sets the creation time.
    With --rebase work goes on over the new ModelKit; its Kitfile is shown as kit writes it then, without comments.
    """
    from kitfs.layer.compress import PackCompression
    from kitfs.modelkit.derive import DeriveOptions, derive
    from kitfs.oci.reference import parse_reference

    target = parse_reference(reference)
    options = DeriveOptions(
        message=message,
        compression=PackCompression(compression) if compression is not None else None,
        ignores_untracked=ignore_untracked,
        moves_tag=force,
        created_s=source_date_epoch(),
        dry_run=dry_run,
        rebases=rebase,
    )
    with settings.open_store() as store, show_progress(settings.progress) as progress:
        named = _resolve(store, parent) if parent is not None else None
        derived = derive(store, directory, target, parent=named, options=options, progress=progress, warn=warn)
    _show(settings, derived, target)
    if rebase and derived.is_new and derived.manifest is not None:
        _rebase(settings, derived, derived.manifest, target)


def _rebase(settings: Settings, derived: Derived, child: Digest, target: Reference) -> None:
    from kitfs.cli import writable
    from kitfs.modelkit.resolve import reopen
    from kitfs.modelkit.staging import StagingChanged, open_staging

    staging = derived.staging
    assert staging is not None  # derive refuses anything else

    def check() -> None:
        if not derived.is_as_read():
            raise StagingChanged(staging.path)

    with settings.open_store() as store:
        moved = reopen(store, target.display, [child, *store.get_manifest(child).parents])
    try:
        writable.rebase(settings, staging, moved, check)
    except KitfsError as error:
        error.hint = (
            f"{target.display} is committed; {staging.path} is over {open_staging(staging.path).record.reference}"
        )
        raise


def _resolve(store: Store, reference: str) -> ResolvedTree:
    from kitfs.modelkit.resolve import resolve
    from kitfs.oci.reference import parse_reference

    return resolve(store, parse_reference(reference))


def _show(settings: Settings, derived: Derived, target: Reference) -> None:
    parent = derived.parent
    if settings.json:
        print_json(
            {
                "digest": str(derived.manifest) if derived.manifest is not None else None,
                "parent": str(parent.digests[0]) if parent is not None else None,
                "parentReference": parent.reference if parent is not None else None,
                "reference": str(target) if derived.is_new and derived.manifest is not None else None,
                "committed": derived.is_new and derived.manifest is not None,
                "layers": [_layer_json(layer) for layer in derived.layers],
            }
        )
        return
    if derived.manifest is None:
        for layer in derived.layers:
            print_result(f"{layer.state.value:<10} {layer.artifact.kind} {layer.path}{_size(layer)}")
        return
    if settings.quiet:
        print_result(str(derived.manifest))
        return
    if not derived.is_new:
        assert parent is not None  # nothing is new only against a parent
        print_result(f"Nothing to commit: {derived.manifest} ({parent.reference})")
        return
    print_result(f"Model saved: {derived.manifest}")
    if parent is not None:
        print_result(f"Parent: {parent.digests[0]} ({parent.reference})")


def _size(layer: DerivedLayer) -> str:
    return f" ({format_size(layer.plan.size)})" if layer.plan is not None else ""


def _layer_json(layer: DerivedLayer) -> dict[str, object]:
    return {"state": layer.state.value, "kind": layer.artifact.kind.value, "path": layer.path,
            "size": layer.plan.size if layer.plan is not None else None}  # fmt: skip
