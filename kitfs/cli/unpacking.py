"""Verb ``unpack``: a ModelKit's files in a directory."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kitfs.cli.mounts import refresh_from_kit
from kitfs.cli.output import print_json, print_result, warn
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb
from kitfs.errors import UsageError

_DEPRECATED = {"kitfile": "Kitfile", "model": "model", "code": "code", "datasets": "datasets", "docs": "docs"}


class TagsTooMany(UsageError):
    """More than one tag where one is meant."""

    def __init__(self, text: str) -> None:
        super().__init__(f"can not unpack multiple tags: {text}")


class TargetInStore(UsageError):
    """A directory inside the store, where only kitfs's own files are."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} lies in the store")


def _deprecated_switches(function: click.decorators.FC) -> click.decorators.FC:
    for name, what in reversed(_DEPRECATED.items()):
        text = f"Unpack only {what} (deprecated: use --filter={name})"
        function = click.option(f"--{name}", is_flag=True, help=text)(function)
    return function


@verb(
    "unpack",
    examples=["kitfs unpack myllm:3.1.4 -d ./work", "kitfs unpack myllm:3.1.4 -f model -f datasets:validation"],
    short_help="Write a ModelKit's files into a directory.",
)
@click.argument("reference")
@click.option("-d", "--dir", "directory", type=click.Path(path_type=Path), default=Path(), metavar="DIR",
              help="Where to; made when it is not there (default: the current directory).")  # fmt: skip
@click.option("-o", "--overwrite", is_flag=True, help="Replace files that are there.")
@click.option("-i", "--ignore-existing", is_flag=True, help="Leave files that are there as they are.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="TYPES[:NAMES]",
              help="Only what matches; several add up. Types: kitfile, model, datasets, code, docs, prompts, "
              "mcpservers; names: names or paths in the Kitfile; both with commas.")  # fmt: skip
@_deprecated_switches
def unpack(
    settings: Settings,
    reference: str,
    directory: Path,
    overwrite: bool,
    ignore_existing: bool,
    filters: tuple[str, ...],
    **switches: bool,
) -> None:
    """Write the files of REFERENCE into a directory, as kit unpack does.

    A ModelKit that is not in the store is imported from kit's storage first. Files that are there are an error without
    -o or -i. Nothing is written outside of the directory, whatever a ModelKit holds and links there point to.
    """
    from kitfs.modelkit import unpack as unpacking
    from kitfs.modelkit.filters import of_types, parse_filters
    from kitfs.oci.reference import parse_references

    wanted = [name for name in _DEPRECATED if switches[name]]
    for name in wanted:
        warn(f"--{name} is deprecated: use --filter={name}")
    options = unpacking.UnpackOptions(
        filters=parse_filters(filters) if filters else of_types(wanted),
        overwrite=overwrite,
        ignore_existing=ignore_existing,
    )
    references = parse_references(reference)
    if len(references) > 1:
        raise TagsTooMany(reference)
    target = directory.absolute()
    if target.resolve().is_relative_to(settings.home.resolve()):
        raise TargetInStore(target)
    say = (lambda text: None) if settings.quiet or settings.json else print_result
    has_kit_storage = os.access(settings.kitops_home, os.R_OK | os.X_OK)
    with settings.open_store(create=has_kit_storage) as store:
        if has_kit_storage:
            refresh_from_kit(settings, store, references[0])
        say(f"Unpacking to {target}")
        with show_progress(settings.progress) as progress:
            report = unpacking.unpack(store, references[0], target, options, progress=progress, say=say, warn=warn)
    if settings.json:
        print_json({
            "digest": str(report.manifests[0]),
            "parents": [str(digest) for digest in report.manifests[1:]],
            "directory": str(target),
            "files": report.files,
            "skipped": report.skipped,
            "size": report.size,
        })  # fmt: skip
