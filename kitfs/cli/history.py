"""``kitfs log``: where a ModelKit comes from, one ModelKit after another, as git log shows commits."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import format_text, print_json, print_result
from kitfs.cli.references import get_digest
from kitfs.cli.settings import Settings, verb

if TYPE_CHECKING:
    from kitfs.modelkit.lineage import Ancestor

INDENT = "    "


@verb(
    "log",
    short_help="Show what a ModelKit was derived from.",
    examples=["kitfs log myllm:3.1.5", "kitfs log -n 3 myllm:3.1.5"],
)
@click.argument("reference")
@click.option("-n", "--max-count", "count", type=click.IntRange(min=1), metavar="N", help="At most N ModelKits.")
def log(settings: Settings, reference: str, count: int | None) -> None:
    """Show REFERENCE, the ModelKit that it was committed over, and so on to the first.

    Each with its ModelKitID, the tags that it has now, its parent with the reference that it had then, the time, and
    the message. An ancestor that is not in the store is shown as that, and ends the list. With -q the ModelKitIDs
    alone.
    """
    from kitfs.modelkit.lineage import iter_ancestry
    from kitfs.oci.reference import parse_reference

    parsed = parse_reference(reference)
    with settings.open_store(create=False) as store:
        ancestry = islice(iter_ancestry(store, get_digest(store, parsed)), count)
        if settings.json:
            print_json([_encode(ancestor) for ancestor in ancestry])
            return
        for number, ancestor in enumerate(ancestry):
            if settings.quiet:
                print_result(str(ancestor.digest))
            else:
                print_result(("\n" if number else "") + "\n".join(_lines(ancestor)))


def _encode(ancestor: Ancestor) -> dict[str, object]:
    lineage = ancestor.lineage
    return {
        "digest": str(ancestor.digest),
        "tags": ancestor.references,
        "created": _created(ancestor),
        "message": lineage.message,
        "parent": str(lineage.parent) if lineage.parent else None,
        "parentReference": lineage.parent_reference,
        "stored": ancestor.manifest is not None,
    }


def _lines(ancestor: Ancestor) -> list[str]:
    names = ", ".join(ancestor.references) if ancestor.manifest else "not in the store"
    lines = [f"modelkit {ancestor.digest}" + (f" ({names})" if names else "")]
    lineage = ancestor.lineage
    if lineage.parent is not None:
        name = format_text(lineage.parent_reference)
        lines.append(f"Parent:  {lineage.parent}" + (f" ({name})" if name else ""))
    if created := _created(ancestor):
        lines.append(f"Date:    {created}")
    message = [format_text(line.expandtabs()) for line in lineage.message.strip().splitlines()]
    return [*lines, "", *(f"{INDENT}{line}".rstrip() for line in message)] if message else lines


def _created(ancestor: Ancestor) -> str:
    """When it was made, in UTC; empty when its manifest does not say so."""
    seconds = ancestor.manifest.created_s if ancestor.manifest else 0
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""
