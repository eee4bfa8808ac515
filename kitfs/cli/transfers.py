"""``kitfs import``: ModelKits of an OCI layout or of kit's local storage come into the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import print_json, print_result, warn
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb

if TYPE_CHECKING:
    from kitfs.transfer.importer import ImportReport


@verb("import", short_help="Import ModelKits from an OCI layout or from kit's storage.",
      examples=["kitfs import ~/.local/share/kitops", "kitfs import ./layout.tar --as registry.example.com/acme/myllm"],
)  # fmt: skip
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("references", nargs=-1, metavar="[REFERENCE]...")
@click.option("--copy", is_flag=True, help="Copy every blob, where kit's files could be hard-linked.")
@click.option("--as", "repository", metavar="REPOSITORY", help="Repository of a layout's bare tags.")
@click.option(
    "--expansion-max",
    type=click.IntRange(min=0),
    default=8,
    metavar="GIB",
    envvar="KITFS_EXPANSION_MAX",
    help="What compressed layers may decode to beyond 256 times their size, together (default: 8).",
)
def import_(settings: Settings, source: Path, references: tuple[str, ...], copy: bool,
            repository: str | None, expansion_max: int) -> None:  # fmt: skip
    """Import ModelKits from SOURCE: all of them, or those named by REFERENCE with their parents.

    SOURCE is an OCI layout (a folder, or a tar archive that is read in place), kit's home or its storage folder,
    or the folder of one repository in it. Bare tags of a layout become <name of the folder>:<tag>, or
    REPOSITORY:<tag> with --as. Everything is verified; a ModelKit appears whole or not at all.
    """
    from kitfs.oci.reference import parse_reference, parse_repository
    from kitfs.transfer.detect import open_source
    from kitfs.transfer.importer import import_source

    wanted = [parse_reference(text) for text in references] or None
    opened = open_source(source.absolute(), repository=parse_repository(repository) if repository else None)
    try:
        with settings.open_store() as store, show_progress(settings.progress) as progress:
            report = import_source(store, opened, references=wanted, copy=copy, progress=progress,
                                   expansion_max=expansion_max << 30)  # fmt: skip
    finally:
        opened.close()
    _print_report(settings, report)


def _print_report(settings: Settings, report: ImportReport) -> None:
    for warning in report.warnings:
        warn(warning)
    rows = [(repository, tag, digest) for repository, tag, digest in report.tags]
    rows += [("", "", kit.manifest) for kit in report.kits if not kit.names]
    if settings.json:
        print_json(
            [{"repo": _shown(repository), "tag": tag, "digest": str(digest)} for repository, tag, digest in rows]
        )
    elif settings.quiet:
        for digest in dict.fromkeys(digest for _, _, digest in rows):
            print_result(str(digest))
    else:
        for repository, tag, digest in rows:
            print_result(f"Imported {_shown(repository)}:{tag} ({digest})" if tag else f"Imported {digest}")
    for name, error in report.failures[1:]:
        warn(f"{name} was not imported: {error}")
    if report.failures:
        raise report.failures[0][1]


def _shown(repository: str) -> str:
    return repository.removeprefix("localhost/")
