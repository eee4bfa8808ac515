"""``kitfs du``: what ModelKits and the rest of the store take on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kitfs.cli.output import format_size, print_json, print_result, print_table, say, warn
from kitfs.cli.references import get_digest
from kitfs.cli.settings import Settings, verb
from kitfs.errors import KitfsError

if TYPE_CHECKING:
    from kitfs.modelkit.usage import KitUsage, Usage
    from kitfs.store.store import Store

HEADERS = ("SIZE", "UNIQUE", "SHARED", "LOGICAL", "MODELKIT")
SHORT_DIGEST = 19
"""Characters of a ModelKitID where there is no name: ``sha256:`` and twelve more."""


@verb("du", examples=["kitfs du", "kitfs du myllm:3.1.4 myllm:3.1.5"], short_help="Show what ModelKits take on disk.")
@click.argument("references", nargs=-1, metavar="[REF…]")
def du(settings: Settings, references: tuple[str, ...]) -> None:
    """Show what each ModelKit takes on disk, and what it shares with others; of the REFs alone when any is given.

    SIZE is UNIQUE and SHARED together: bytes on disk that only this ModelKit needs, and those that others need too.
    LOGICAL is what was published, parents included. The second table counts each byte once and adds up to the store.
    With -q the ModelKitIDs are printed. The ModelKit that has most for itself comes first.
    """
    from kitfs.modelkit.usage import measure_usage
    from kitfs.oci.reference import parse_reference

    parsed = [parse_reference(text) for text in references]
    with settings.open_store(create=False) as store:
        wanted = {get_digest(store, reference) for reference in parsed} or None
        usage = measure_usage(store, wanted)
        reclaimable = None if wanted is not None or settings.quiet else _find_reclaimable(store)
    if settings.json:
        print_json(_encode(usage, reclaimable))
    elif settings.quiet:
        for kit in usage.kits:
            print_result(str(kit.digest))
    else:
        _print_usage(usage, is_whole=wanted is None)
        if reclaimable is not None:
            say(f"kitfs gc would free {format_size(reclaimable)}")


def _find_reclaimable(store: Store) -> int | None:
    from kitfs.store.gc import gc

    try:
        return gc(store, dry_run=True).size
    except KitfsError as error:
        warn(f"what kitfs gc would free can not be told: {error}")
        return None


def _print_usage(usage: Usage, *, is_whole: bool) -> None:
    rows = [
        (*map(format_size, (kit.size, kit.unique, kit.shared, kit.logical)), format_references(kit))
        for kit in usage.kits
    ]
    if not is_whole:
        print_table(HEADERS, [*rows, (format_size(usage.together), "", "", "", "together, each byte once")])
        return
    if rows:
        print_table(HEADERS, rows)
        print_result("")
    content = usage.unique + usage.shared
    index = usage.parts["index"].allocated
    staging = usage.parts["staging"].allocated
    rest = usage.total.allocated - content - usage.loose - index - staging
    parts = f"{format_size(usage.unique)} unique, {format_size(usage.shared)} shared"
    lines = (
        (content, f"ModelKits, each byte once: {parts}"),
        (usage.loose, "content of no ModelKit"),
        (index, "index"),
        *([(staging, "files in staging directories")] if staging else []),
        (rest, "folders and the rest"),
        (usage.total.allocated, "total"),
    )
    print_table(("SIZE", "IN THE STORE"), [(format_size(size), what) for size, what in lines])


def format_references(kit: KitUsage) -> str:
    """Names of a ModelKit, tags of one repository after commas as ``remove`` takes them; its short ID without any."""
    tags: dict[str, list[str]] = {}
    for repository, tag in kit.references:
        tags.setdefault(repository.removeprefix("localhost/"), []).append(tag)
    names = [f"{repository}:{','.join(found)}" for repository, found in tags.items()]
    return " ".join(names) or f"{str(kit.digest)[:SHORT_DIGEST]} (no tag)"


def _encode(usage: Usage, reclaimable: int | None) -> dict[str, object]:
    kits = [
        {
            "digest": str(kit.digest),
            "references": [f"{repository}:{tag}" for repository, tag in kit.references],
            "size": kit.size,
            "unique": kit.unique,
            "shared": kit.shared,
            "logical": kit.logical,
        }
        for kit in usage.kits
    ]
    parts = {
        part: {"allocated": size.allocated, "apparent": size.apparent}
        for part, size in (*usage.parts.items(), ("total", usage.total))
    }
    return {
        "modelKits": kits,
        "together": usage.together,
        "unique": usage.unique,
        "shared": usage.shared,
        "loose": usage.loose,
        "reclaimable": reclaimable,
        "parts": parts,
    }
