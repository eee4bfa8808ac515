"""``kitfs ps``: mounts with their state, and what this store has mounted or wants that nobody serves.

With a daemon that serves all that is mounted here, and nothing wanted, the store is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs.cli.mounts import has_wanted
from kitfs.cli.output import format_size, print_json, print_result, print_table, warn
from kitfs.cli.settings import Settings, verb

if TYPE_CHECKING:
    from kitfs.calls import MountState
    from kitfs.mounting import KitfsMount
    from kitfs.store.sessions import SessionRecord

DEAD = "dead"
ABSENT = "absent"


@verb("ps", short_help="List mounts with their state.")
def ps(settings: Settings) -> None:
    """List mounts: reference, directory, worker, uptime, bytes read, state.

    STATE is lazy, partial or native; starting while no worker answers; dead for what is mounted and can not be served
    any more (kitfs umount, or mounting there again, clears it); absent for what is wanted and not mounted.
    """
    from kitfs import client

    daemon = client.find_daemon(settings.home, settings.socket)
    if daemon is not None and daemon.note:
        warn(daemon.note)
    states = complete(settings, daemon.list_mounts() if daemon else [])
    if settings.json:
        print_json(states)
    elif settings.quiet:
        for state in states:
            print_result(state.session)
    else:
        headers = ["REFERENCE", "DIRECTORY", "MODE", "WANTED", "PID", "UPTIME", "READ", "STATE", "NATIVE"]
        print_table(*with_reasons(headers, [_row(state) for state in states], states))


def with_reasons(
    headers: list[str], rows: list[list[str]], states: Sequence[MountState]
) -> tuple[list[str], list[list[str]]]:
    """A table of mounts, with a column more when any has a reason for its state."""
    if not any(state.reason for state in states):
        return headers, rows
    return [*headers, "WHY"], [[*row, state.reason] for row, state in zip(rows, states, strict=True)]


def complete(settings: Settings, served: Sequence[MountState]) -> list[MountState]:
    """What the daemon serves, ``dead`` where its overlay is, and what nobody serves.

    That is ``dead`` where it is mounted here, and ``absent`` where it is wanted and not mounted.
    """
    states = [*served]
    _mark_dead_overlays([state for state in states if state.is_writable])
    states += iter_dead(settings.home, served)
    if has_wanted(settings.home):
        from kitfs.cli.wanting import iter_absent

        states += iter_absent(settings.home, {state.session for state in states})
    return states


def _mark_dead_overlays(writable: Sequence[MountState]) -> None:
    """An overlay of fuse-overlayfs ends with its process, whoever serves what it lies over."""
    if not writable:
        return
    from kitfs import mounting
    from kitfs.mountinfo import FUSE_OVERLAY, read_mounts

    places = {str(line.mountpoint): line.mountpoint for line in read_mounts() if line.kind == FUSE_OVERLAY}
    for state in writable:
        place = places.get(state.mountpoint)
        if place is not None and mounting.is_dead(place):
            state.state, state.reason = DEAD, "its fuse-overlayfs has ended"


def iter_dead(home: Path, served: Sequence[MountState]) -> Iterator[MountState]:
    """Mounts of this store's sessions whose connection is gone, or that nothing but the dead kept."""
    from kitfs import mounting

    devices = {state.device for state in served}
    mounts = [mounted for mounted in mounting.find_mounts() if mounted.device not in devices]
    records = {path.stem for path in (home / "sessions").glob("*.json")}
    if not mounts or records <= {state.session for state in served}:
        return  # before the store is imported: 25 ms
    from kitfs.calls import MountState
    from kitfs.store.layout import Layout
    from kitfs.store.sessions import find_lost, iter_sessions
    from kitfs.store.wanted import is_wanted

    layout = Layout(home)
    for record, is_served in iter_sessions(layout):
        mounted = None if is_served else _find_mount(record, mounts)
        if mounted is not None and mounting.is_dead(mounted.mountpoint):
            state = MountState(record.id, record.mountpoint, record.reference, mounted.device, state=DEAD)
            state.reason = find_lost(layout, record.id)
            state.is_writable, state.wanted = bool(record.staging), is_wanted(layout, record.id)
            yield state


def _find_mount(record: SessionRecord, mounts: Sequence[KitfsMount]) -> KitfsMount | None:
    """The mount of a session: the lower layer of an overlay is named after it, others lie where the record says."""
    for mounted in reversed(mounts):
        if mounted.mountpoint.name == record.id if record.staging else str(mounted.mountpoint) == record.mountpoint:
            return mounted
    return None


def _row(state: MountState) -> list[str]:
    return [
        state.reference,
        state.mountpoint,
        "rw" if state.is_writable else "ro",
        "yes" if state.wanted else "-",
        str(state.pid or "-"),
        format_duration(int(state.uptime_s)),
        format_size(state.bytes_read),
        state.state,
        f"{int(state.native * 100)}%",
    ]


def format_duration(seconds: int) -> str:
    """``42s``, ``3m07s``, ``5h02m``, ``12d03h``."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"
