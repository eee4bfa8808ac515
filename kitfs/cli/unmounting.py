"""``kitfs umount``: what lies at a place or what a reference names, overlays before what they lie over."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.mounts import clear_dead, has_wanted
from kitfs.cli.output import say
from kitfs.cli.ps import iter_dead
from kitfs.cli.settings import Settings, verb
from kitfs.errors import KitfsError

if TYPE_CHECKING:
    from kitfs.calls import MountState
    from kitfs.client import Client
    from kitfs.mountinfo import Overlay
    from kitfs.mounting import KitfsMount


@verb("umount", short_help="Unmount a ModelKit.", examples=["kitfs umount /mnt/model", "kitfs umount --all"])
@click.argument("what", required=False, metavar="DIRECTORY|REFERENCE")
@click.option("--all", "everything", is_flag=True, help="Unmount everything that this store's daemon serves.")
@click.option("--lazy", is_flag=True, help="Detach at once; files that are open stay readable.")
def umount(settings: Settings, what: str | None, everything: bool, lazy: bool) -> None:
    """Unmount a ModelKit; returns when nothing of it is left. What was written stays in its staging directory.

    What was mounted with --wanted is forgotten, mounted or not.
    """
    from kitfs import client, overlay
    from kitfs.mountinfo import find_overlays
    from kitfs.mounting import MountNotFound

    if (what is None) != everything:
        raise click.UsageError("umount wants DIRECTORY, REFERENCE or --all")
    daemon = client.find_daemon(settings.home, settings.socket)
    states = daemon.list_mounts() if daemon else []
    if what is not None:
        states += iter_dead(settings.home, states)
    failure: KitfsError | None = None
    overlays = find_overlays()
    try:
        found = [] if what and overlay.clear_dead_overlay(Path(what)) else _find_mounts(what, states, overlays)
    except MountNotFound:
        if not _forget(settings, what):
            raise
        say(f"{what} was not mounted; it is not wanted any more")
        return
    if everything:
        _clear_unserved(settings)
    for mounted, above in found:
        try:
            unmount(daemon, states, mounted, above, lazy=lazy)
        except KitfsError as error:
            failure = failure or error
    with contextlib.suppress(KitfsError):  # what is left of others is not this command's to fail for
        overlay.sweep_lowers(overlay.lower_folder(settings.home))
    _forget(settings, what)
    if failure is not None:
        raise failure


def _clear_unserved(settings: Settings) -> None:
    """Unmount what sessions of this store left that nobody serves any more; the daemon does not know of them."""
    from kitfs.store.layout import Layout
    from kitfs.store.sessions import iter_sessions

    for record, is_served in iter_sessions(Layout(settings.home)):
        if not is_served and clear_dead(Path(record.mountpoint)):
            say(f"what was mounted on {record.mountpoint} was dead and is unmounted")


def _forget(settings: Settings, what: str | None) -> bool:
    """Forget that what is not mounted any more is wanted. True when something was."""
    if not has_wanted(settings.home):
        return False
    from kitfs.cli.wanting import forget_unmounted

    return bool(forget_unmounted(settings, what))


def _find_mounts(
    what: str | None, states: list[MountState], overlays: list[Overlay]
) -> list[tuple[KitfsMount | None, list[Overlay]]]:
    """The mounts that ``what`` names, the topmost first, and the overlays over each that go with it.

    The mount below an overlay is None where only other namespaces have it.
    None and a reference mean those of this store's daemon, and all overlays over them.
    """
    from kitfs import mounting
    from kitfs.mountinfo import find_at
    from kitfs.oci.reference import parse_reference

    if what is not None:
        above = find_at(Path(what), ((one.mount.mountpoint, one) for one in overlays))
        mounted = mounting.find_mount(Path(what) if above is None else above.lower)
        if mounted is not None or (above is not None and above.session is not None):
            return [(mounted, [] if above is None else [above])]
        names = {what}
        with contextlib.suppress(KitfsError):
            names.add(parse_reference(what).display)
        states = [state for state in states if state.reference in names]
    found = _mounts_of(states)
    if what is not None and not found:
        raise mounting.MountNotFound(what)
    return [(mounted, [one for one in overlays if one.lower == mounted.mountpoint]) for mounted in found]


def _mounts_of(states: list[MountState]) -> list[KitfsMount]:
    """The mounts of sessions, bind mounts of them too, the topmost first.

    A device number is given to another mount as soon as it is free, so the place must be the right one as well: for
    the lower layer of an overlay that is named after its session.
    """
    from kitfs import mounting

    mounts = mounting.find_mounts()
    places = {(state.device, state.session if state.is_writable else state.mountpoint) for state in states}
    devices = {
        mounted.device
        for mounted in mounts
        if places & {(mounted.device, str(mounted.mountpoint)), (mounted.device, mounted.mountpoint.name)}
    }
    return [mounted for mounted in reversed(mounts) if mounted.device in devices]


def unmount(
    daemon: Client | None, states: list[MountState], mounted: KitfsMount | None, above: list[Overlay], *, lazy: bool
) -> None:
    """Unmount overlays, then the mount that they lie over, unless others do too; returns when the daemon has let go.

    Raises:
        MountBusy: when it is in use; it is mounted as before then.
        MountFailed: when it can not be unmounted for another reason.
    """
    from kitfs import mounting, overlay
    from kitfs.mountinfo import find_lower_session, find_overlays

    for one in reversed(above):
        overlay.unmount_overlay(one, lazy=lazy)
    if mounted is None or any(one.lower == mounted.mountpoint for one in find_overlays()):
        return
    others = {one for one in mounting.find_mounts() if one.device == mounted.device and one != mounted}
    if find_lower_session(mounted.mountpoint) is not None:
        overlay.drop_lower(mounted.mountpoint)
    else:
        mounting.unmount(mounted.mountpoint, lazy=lazy)
    ended = [state for state in states if state.device == mounted.device]
    for state in ended:
        if state.is_writable:
            overlay.clear_dead_overlay(Path(state.mountpoint))
    if daemon is None or lazy or others & set(mounting.find_mounts()):
        return
    for state in ended:
        daemon.wait_ended(state.session)
