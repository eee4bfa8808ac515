"""``kitfs export``: ModelKits of the store go into an OCI layout, a tar archive of one, or kit's local storage."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import print_json, print_result, say, warn
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb

if TYPE_CHECKING:
    from kitfs.progress import Progress
    from kitfs.store.store import Store
    from kitfs.transfer.export_plan import ExportedKit, ExportPlan

STANDARD_OUTPUT = Path("-")


@verb("export", short_help="Export a ModelKit as an OCI layout, or into kit's storage.",
      examples=["kitfs export myllm:3.1.4 ./layout", "kitfs export myllm:3.1.4 -", "kitfs export --kit myllm:3.1.4"],
)  # fmt: skip
@click.argument("reference", metavar="REF[,TAG]...")
@click.argument("destination", required=False, type=click.Path(path_type=Path))
@click.option("--kit", "into_kit", is_flag=True, help="Export into kit's storage; DESTINATION is kit's home.")
@click.option("-f", "--force", is_flag=True, help="Move names that are taken; replace an archive; give kit ModelPacks.")
@click.option("--full-name", is_flag=True, help="Name it in the layout by repository and tag, not by its tag alone.")
def export(settings: Settings, reference: str, destination: Path | None, into_kit: bool, force: bool,
           full_name: bool) -> None:  # fmt: skip
    """Export the ModelKit REF, under one or more tags, and its parents to DESTINATION.

    DESTINATION is a folder (new, empty, or an OCI layout that is added to), a tar archive when its name ends with
    .tar, or - for an archive on standard output. With --kit it is kit's home, by default $KITOPS_HOME or where kit
    has it without. Every blob is verified on its way.
    """
    from kitfs.oci.reference import parse_references
    from kitfs.transfer.export_plan import plan_export

    if destination is None and not into_kit:
        raise click.UsageError("DESTINATION is missing: a folder, an archive that ends with .tar, or - for a pipe")
    if into_kit and full_name:
        raise click.UsageError("--full-name is for layouts; kit's storage has full names")
    if destination == STANDARD_OUTPUT and not into_kit and os.isatty(sys.stdout.fileno()):
        raise click.UsageError("- writes an archive to standard output, which is a terminal")
    references = parse_references(reference)
    with settings.open_store(create=False) as store, store.lease("export") as lease:
        plan = plan_export(store, lease, references)
        for parent in plan.missing:
            warn(f"the parent {parent.display} is not in the store, so it is not exported")
        with show_progress(settings.progress) as progress:
            if into_kit:
                place = (destination or settings.kitops_home).absolute()
                _export_to_kit(store, plan, place, progress, force=force)
            else:
                assert destination is not None  # asked above
                _export_layout(store, plan, destination, progress, force=force, full_name=full_name)
    _print_plan(settings, plan, to_standard_output=destination == STANDARD_OUTPUT and not into_kit)


def _export_to_kit(store: Store, plan: ExportPlan, place: Path, progress: Progress, *, force: bool) -> None:
    from kitfs.transfer.export_kit import export_kit_storage, iter_unread

    for name, form in iter_unread(plan):
        warn(f"{name} has {form} layers, which kit up to 1.7 lists and does not unpack")
    export_kit_storage(store, plan, place, progress=progress, force=force)


def _export_layout(store: Store, plan: ExportPlan, destination: Path, progress: Progress, *, force: bool,
                   full_name: bool) -> None:  # fmt: skip
    from kitfs.transfer.export_archive import export_archive, export_stream
    from kitfs.transfer.export_layout import export_layout

    if destination == STANDARD_OUTPUT:
        export_stream(store, plan, sys.stdout.fileno(), progress=progress, full_name=full_name)
    elif destination.suffix == ".tar" and not destination.is_dir():
        export_archive(store, plan, destination.absolute(), progress=progress, full_name=full_name, force=force)
    else:
        export_layout(store, plan, destination.absolute(), progress=progress, full_name=full_name, force=force)


def _print_plan(settings: Settings, plan: ExportPlan, *, to_standard_output: bool) -> None:
    """What was exported; to standard error where standard output has the archive."""
    if to_standard_output:
        for kit in plan.kits if not settings.quiet else ():
            say(f"Exported {kit.reference.display} ({kit.manifest.digest})")
    elif settings.json:
        print_json([_describe(kit) for kit in plan.kits])
    elif settings.quiet:
        for digest in dict.fromkeys(str(kit.manifest.digest) for kit in plan.kits):
            print_result(digest)
    else:
        for kit in plan.kits:
            print_result(f"Exported {kit.reference.display} ({kit.manifest.digest})")


def _describe(kit: ExportedKit) -> dict[str, str]:
    reference = kit.reference
    repository = reference.repository.removeprefix("localhost/")
    return {"repo": repository, "tag": reference.tag or "", "digest": str(kit.manifest.digest)}
