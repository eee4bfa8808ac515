"""Mounts that are wanted: remembered by ``mount --wanted``, made again by ``mount --restore``, forgotten by ``umount``.

A mount is wanted from before it is there until it is forgotten, so that no crash makes one that is there and not
remembered; one that could not be made is forgotten. What is mounted again shows the ModelKit that was mounted,
wherever its tag points by then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs import mountinfo
from kitfs.calls import MountState, PrepareCall
from kitfs.cli import mounts
from kitfs.cli.config import check_materialise
from kitfs.cli.output import say, warn
from kitfs.errors import KitfsError
from kitfs.store import wanted
from kitfs.store.layout import Layout

if TYPE_CHECKING:
    from kitfs.cli.settings import Settings
    from kitfs.store.wanted import Wanted

_FAILED = 1


@contextlib.contextmanager
def keep_wanted(
    settings: Settings, session: str, mountpoint: Path, options: mounts.MountOptions, staging: str
) -> Iterator[None]:
    """Have a session wanted from now on, in place of whatever was wanted at its place; not when the block raises."""
    layout = Layout(settings.home)
    beside = wanted.WantedMount(
        staging=staging, source=options.source, noexec=options.noexec, allow_other=options.allow_other
    )
    wanted.want(layout, session, beside)
    try:
        yield
    except BaseException:
        wanted.forget(layout, session)
        raise
    for one in wanted.iter_wanted(layout):
        if one.record.mountpoint == str(mountpoint) and one.record.id != session:
            wanted.forget(layout, one.record.id)


def restore_wanted(settings: Settings) -> int:
    """Mount all that this user wants and that is not mounted; what can not be is said, and the others go on.

    Returns:
        The exit code: 0 when all that is wanted is mounted.
    """
    if not mounts.has_wanted(settings.home):
        return 0
    code = 0
    found = list(wanted.iter_wanted(Layout(settings.home)))
    last = {one.record.mountpoint: one for one in found if one.record.uid == os.geteuid()}
    served = {one.record.mountpoint for one in found if one.is_served}
    for one in last.values():
        if one.record.mountpoint in served:
            continue
        try:
            _restore(settings, one)
        except (KitfsError, OSError) as error:
            code = _FAILED
            warn(f"{one.record.reference} is not mounted on {one.record.mountpoint}: {error}")
            if hint := getattr(error, "hint", ""):
                say(f"  {hint}")
    return code


def _restore(settings: Settings, one: Wanted) -> None:
    record, beside = one.record, one.mount
    shown = record.options
    call = PrepareCall(record.reference if record.kind == "kit" else "", "", shown.modes, shown.meta)
    call.materialise, call.size_max = check_materialise(shown.materialise), shown.size_max
    call.filters, call.manifests = record.filter, record.manifests
    options = mounts.MountOptions()
    options.source, options.noexec, options.allow_other = beside.source, beside.noexec, beside.allow_other
    options.wanted = True
    staging = None
    if beside.staging:
        from kitfs.modelkit.staging import open_staging

        staging = Path(beside.staging)
        call.reference = open_staging(staging).record.reference
    mounts.mount_one(settings, call, Path(record.mountpoint), options, staging)


def iter_absent(home: Path, served: set[str]) -> Iterator[MountState]:
    """What is wanted and not served, but for sessions that are ``served``."""
    for one in wanted.iter_wanted(Layout(home)):
        record = one.record
        if record.id not in served and not one.is_served:
            yield MountState(
                record.id,
                record.mountpoint,
                record.reference,
                device="",
                state="absent",
                is_writable=bool(record.staging),
                wanted=True,
            )


def forget_unmounted(settings: Settings, what: str | None) -> list[Path]:
    """Forget what ``what`` names, all for None, as far as nothing is mounted there any more.

    Args:
        settings: Global options.
        what: A directory or a reference.

    Returns:
        Mount points of what was forgotten.
    """
    from kitfs.oci.reference import parse_reference

    layout = Layout(settings.home)
    names = set() if what is None else {what}
    with contextlib.suppress(KitfsError):
        names.add(parse_reference(what or "").display)
    mounted = {line.mountpoint for line in mountinfo.read_mounts()}
    forgotten = []
    for one in wanted.iter_wanted(layout):
        place = Path(one.record.mountpoint)
        is_named = what is None or one.record.reference in names or _is_at(what, place)
        if is_named and place not in mounted:
            wanted.forget(layout, one.record.id)
            forgotten.append(place)
    return forgotten


def _is_at(what: str, place: Path) -> bool:
    return mountinfo.find_at(Path(what), [(place, True)]) is True
