"""``kitfs staging list|remove``: the staging directories of a store. Parse, call, print; nothing else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import format_size, print_json, print_result, print_table
from kitfs.cli.settings import Settings, verb

if TYPE_CHECKING:
    from kitfs.modelkit.staging_list import Listed
    from kitfs.store.layout import Layout


@verb("staging", short_help="List staging directories, or remove some.",
      examples=["kitfs staging list", "kitfs staging remove ./work"])  # fmt: skip
@click.argument("action", type=click.Choice(["list", "remove"]))
@click.argument("names", nargs=-1, metavar="[DIRECTORY|NAME]...")
def staging(settings: Settings, action: str, names: tuple[str, ...]) -> None:
    """List staging directories, or remove some with all that was changed in them.

    They are named by their path, or as in the list.
    """
    if (action == "remove") != bool(names):
        raise click.UsageError("staging wants list, or remove and at least one DIRECTORY or NAME")
    with settings.open_store(create=False) as store:
        layout = store.layout
    if action == "list":
        _list(settings, layout)
        return
    for name in names:
        _remove(settings, layout, name)


def _list(settings: Settings, layout: Layout) -> None:
    from kitfs.modelkit.staging_list import list_staging

    found = list_staging(layout)
    if settings.json:
        print_json([_encode(one) for one in found])
    elif settings.quiet:
        for one in found:
            print_result(one.name)
    else:
        headers = ["NAME", "REFERENCE", "PARENT", "MOUNTED ON", "SIZE", "DIRECTORY"]
        print_table(headers, [_row(one) for one in found])


def _encode(one: Listed) -> dict[str, object]:
    return {
        "name": one.name,
        "path": str(one.path),
        "reference": one.reference,
        "parent": one.parent,
        "mountpoint": one.mountpoint,
        "size": one.size,
        "problem": one.problem,
    }


def _row(one: Listed) -> list[str]:
    parent = one.parent.removeprefix("sha256:")[:12]
    state = one.mountpoint or (f"({one.problem})" if one.problem else "-")
    size = "-" if one.size is None else format_size(one.size)
    return [one.name, one.reference, parent, state, size, str(one.path)]


def _remove(settings: Settings, layout: Layout, name: str) -> None:
    from kitfs.cli.writable import refuse_mounted
    from kitfs.modelkit.staging import StagingMalformed, StagingNotFound, open_staging, remove_staging
    from kitfs.modelkit.staging_list import list_staging

    known = {one.name: one.path for one in list_staging(layout)}
    path = known.get(name) or Path(os.path.realpath(name))
    if path not in known.values() and not (path / "staging.json").exists():
        raise StagingNotFound(path)
    with contextlib.suppress(StagingNotFound, StagingMalformed):
        refuse_mounted(settings, open_staging(path))
    remove_staging(layout, path)
    print_result(str(path))
