"""``kitfs prefetch``: materialise what a ModelKit or a mount shows, before anybody reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.config import read_cache_settings
from kitfs.cli.mounts import refresh_from_kit
from kitfs.cli.output import format_size, print_json, print_result
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb

if TYPE_CHECKING:
    from kitfs.modelkit.prefetch import PrefetchReport, Wanted
    from kitfs.modelkit.targets import Target
    from kitfs.mounting import KitfsMount
    from kitfs.store.sessions import SessionRecord
    from kitfs.store.store import Store


@verb("prefetch", short_help="Materialise a ModelKit's files ahead of their readers.")
@click.argument("what", metavar="REFERENCE|DIRECTORY")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def prefetch(settings: Settings, what: str, paths: tuple[str, ...]) -> None:
    """Materialise the files of a ModelKit, or of what is mounted on DIRECTORY, ahead of their readers.

    As for a mount, what kit's storage has anew of REFERENCE is imported first.

    PATH is relative to the ModelKit's root, or to the mount; a directory means everything below it. Files that do not
    fit cache.size_max are named (exit code 1); what somebody has open is never evicted for them.
    """
    from kitfs.modelkit.prefetch import Prefetch, plan
    from kitfs.store.quota import parse_quota

    quota = parse_quota(read_cache_settings().size_max)
    with settings.open_store(create=_has_kit_storage(settings)) as store:
        store.quota = quota
        targets = _find_targets(settings, store, what, paths)
        with show_progress(settings.progress) as progress, Prefetch(store, progress) as run:
            run.hold(digest for target in targets for digest in target.manifests)
            run.run([member for target in targets for member in plan(target.tree, target.paths, target.reference)])
        _print_report(settings, run.report)
        run.check()


def _find_targets(settings: Settings, store: Store, what: str, paths: tuple[str, ...]) -> list[Target]:
    from kitfs import mounting
    from kitfs.modelkit import targets
    from kitfs.oci.reference import parse_reference

    mounted = mounting.find_shown(Path(what))
    if mounted is not None:
        return targets.of_session(store, _find_session(settings, store, mounted), _inside(mounted, paths))
    if what.startswith(("/", ".")):
        raise mounting.MountNotFound(what)
    reference = parse_reference(what)
    if _has_kit_storage(settings):
        refresh_from_kit(settings, store, reference)
    return targets.of_reference(store, reference, [os.fsencode(path) for path in paths])


def _has_kit_storage(settings: Settings) -> bool:
    return os.access(settings.kitops_home, os.R_OK | os.X_OK)


def _inside(mounted: KitfsMount, paths: tuple[str, ...]) -> list[bytes]:
    """Paths relative to the mount; absolute ones that lie below it may be given too."""
    prefix = os.fsencode(mounted.mountpoint)
    encoded = [os.fsencode(path) for path in paths]
    return [path.removeprefix(prefix) if path.startswith(prefix + b"/") else path for path in encoded]


def _find_session(settings: Settings, store: Store, mounted: KitfsMount) -> SessionRecord:
    """The session behind a mount: by its device, as the daemon knows it, else by the place where it was mounted.

    Raises:
        MountNotFound: when it is no mount of this store.
    """
    from kitfs import client, mounting

    daemon = client.find_daemon(settings.home, settings.socket)
    ids = {state.session for state in (daemon.list_mounts() if daemon else []) if state.device == mounted.device}
    alive = [record for record, is_alive in store.iter_sessions() if is_alive]
    found = [record for record in alive if record.id in ids]
    found += [record for record in alive if record.mountpoint == str(mounted.mountpoint)]
    if not found:
        raise mounting.MountNotFound(f"{mounted.mountpoint} is not a mount of the store {store.home}")
    return found[0]


def _print_report(settings: Settings, report: PrefetchReport) -> None:
    groups = {"made": report.made, "present": report.present, "inPlace": report.in_place, "unfit": report.unfit}
    if settings.json:
        print_json({name: [_encode(member) for member in members] for name, members in groups.items()})
        return
    if settings.quiet:
        for member in report.made:
            print_result(_shown(member))
        return
    parts = [f"materialised {_count(report.made)}"]
    parts += [f"{_count(report.present)} there before"] if report.present else []
    parts += [f"{_count(report.in_place)} read in place"] if report.in_place else []
    parts += [f"{_count(report.unfit)} did not fit"] if report.unfit else []
    text = "; ".join(parts)
    print_result(text[0].upper() + text[1:])


def _count(members: list[Wanted]) -> str:
    size = format_size(sum(member.size for member in members))
    return f"{len(members)} {'file' if len(members) == 1 else 'files'} ({size})"


def _encode(member: Wanted) -> dict[str, str | int]:
    return {"path": _shown(member), "layer": str(member.layer), "size": member.size}


def _shown(member: Wanted) -> str:
    return member.path.decode("utf-8", "backslashreplace")
