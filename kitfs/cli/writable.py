"""``kitfs mount --writable``: a ModelKit's own mount, out of sight, and an overlay of a staging directory over it.

In this order: the staging directory, a session for its ModelKits by digest, the lower mount, the overlay. Whatever
fails takes with it what was made before, the staging directory too when it was made here. A command that is killed on
its way leaves at most a lower mount without an overlay, which the next one unmounts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs import client, mounting, overlay
from kitfs.calls import PrepareCall
from kitfs.cli import mounts, unmounting
from kitfs.cli.config import check_materialise
from kitfs.cli.output import say, warn
from kitfs.errors import KitfsError
from kitfs.modelkit import staging as stagings
from kitfs.modelkit.staging import Staging, StagingMounted, StagingUnusable
from kitfs.modelkit.staging_record import read_record
from kitfs.mountinfo import find_overlays
from kitfs.store.layout import Layout
from kitfs.store.sessions import SessionOptions
from kitfs.store.staging import iter_registrations, register
from kitfs.store.wanted import iter_wanted

if TYPE_CHECKING:
    from kitfs.cli.settings import Settings
    from kitfs.modelkit.resolve import ResolvedTree
    from kitfs.mountinfo import Overlay
    from kitfs.oci.reference import Reference

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_SIZE_MAX = 80
_ENDING_S = 2.0


def mount_writable(
    settings: Settings, call: PrepareCall, directory: Path, path: Path | None, options: mounts.MountOptions
) -> None:
    """Mount a ModelKit writable.

    Args:
        settings: Global options.
        call: What is to be mounted.
        directory: Where.
        path: The staging directory, None for one of the store's own.
        options: What ``-o`` says.

    Raises:
        StagingMounted, StagingHeld: when the staging directory is in use.
        StagingUnusable: when it can not be used, or is for another reference.
        KitfsError: as for any mount.
    """
    if options.modes != "kit":
        raise mounts.OptionUnknown("-o modes=tar goes without --writable: the owner could not write everywhere")
    with mounting.check_mountpoint(directory, settings.home) as mountpoint, _staging(settings, call, path) as staging:
        _check_places(staging, mountpoint)
        with stagings.hold_staging(staging.path):
            mount_held(settings, call, staging, mountpoint, options)
    if settings.log_level in ("info", "debug"):
        say(f"{staging.record.reference} is mounted on {mountpoint.path}; changes go to {staging.path}")


def mount_held(
    settings: Settings,
    call: PrepareCall,
    staging: Staging,
    mountpoint: mounting.Mountpoint,
    options: mounts.MountOptions,
) -> None:
    """Mount a staging directory that is held. Nothing is mounted when it raises.

    Raises:
        StagingMounted: when it is mounted.
        KitfsError: when it can not be.
    """
    refuse_mounted(settings, staging)
    folder = overlay.lower_folder(settings.home)
    register(staging.layout, staging.path, staging.record.reference, staging.manifests)
    call.reference, call.mountpoint = staging.record.reference, str(mountpoint.path)
    call.modes, call.manifests, call.staging = staging.record.modes, staging.record.manifests, staging.identity
    with (
        mounts.prepare(settings, call) as prepared,
        mounts.wanted_if_asked(settings, prepared, mountpoint, options, str(staging.path)),
        overlay.hold_lower(folder, prepared.session) as lower,
    ):
        below = mounts.MountOptions()
        below.allow_other = False
        with mounting.check_mountpoint(lower, settings.home) as place:
            mounts.mount_prepared(settings, prepared, staging.record.reference, place, below)
        allow_other = mounting.others_permitted() if options.allow_other is None else options.allow_other
        if not mountpoint.is_still_there():
            raise mounting.MountpointUnusable(mountpoint.path, "it was swapped for something else meanwhile")
        overlay.mount_overlay(staging, lower, mountpoint, allow_other=allow_other, noexec=options.noexec)


def refuse_mounted(settings: Settings, staging: Staging) -> None:
    """Unmount what killed commands left, and see that a staging directory is mounted nowhere.

    What is not mounted here may still be ending: a session ends a moment after its mount.

    Raises:
        StagingMounted: when it is mounted.
    """
    overlay.sweep_lowers(overlay.lower_folder(settings.home))
    deadline = time.monotonic() + _ENDING_S
    while (mountpoint := stagings.find_mountpoint(staging)) is not None:
        if time.monotonic() > deadline or any(one.upper == staging.upper for one in find_overlays()):
            raise StagingMounted(staging.path, mountpoint)
        time.sleep(_ENDING_S / 100)


def rebase(
    settings: Settings, staging: Staging, resolved: ResolvedTree, check: Callable[[], object] = lambda: None
) -> Staging:
    """Move a staging directory onto another ModelKit, with nothing changed; what is mounted is mounted again over that.

    Killed on its way it leaves the directory as it was or moved, mounted or not.

    Args:
        settings: Global options.
        staging: The staging directory.
        resolved: What it is moved onto.
        check: Called when nobody can write any more; what it raises leaves everything as before.

    Raises:
        MountBusy: when somebody uses the mount; everything is as before then.
        StagingChanged: when something was changed meanwhile; everything is as before then.
        StagingHeld, StagingMounted: when another command is busy with it, or it is mounted where we can not see it.
        KitfsError: when it can not be moved, or not mounted again.
    """
    with stagings.hold_staging(staging.path):
        found = [one for one in find_overlays() if one.upper == staging.upper]
        if len(found) > 1:
            raise StagingMounted(staging.path, ", ".join(str(one.mount.mountpoint) for one in found))
        shown = next((record.options for record in stagings.iter_mounts(staging)), SessionOptions())
        for one in found:
            _unmount(settings, one)
        refuse_mounted(settings, staging)
        try:
            check()
            moved = stagings.rebase_held(staging.layout, staging, resolved.reference, resolved.digests)
        except BaseException:
            with contextlib.suppress(KitfsError):
                _mount_again(settings, staging, found, shown)
            raise
        _mount_again(settings, moved, found, shown)
    return moved


def _unmount(settings: Settings, above: Overlay) -> None:
    daemon = client.find_daemon(settings.home, settings.socket)
    states = daemon.list_mounts() if daemon else []
    unmounting.unmount(daemon, states, mounting.find_mount(above.lower), [above], lazy=False)


def _mount_again(settings: Settings, staging: Staging, found: list[Overlay], shown: SessionOptions) -> None:
    """Mount a staging directory where and as it was; nowhere if it was not."""
    call = PrepareCall("", "", meta=shown.meta, size_max=shown.size_max)
    call.materialise = check_materialise(shown.materialise)
    options = mounts.MountOptions()
    options.wanted = any(one.mount.staging == str(staging.path) for one in iter_wanted(staging.layout))
    for mount in (one.mount for one in found):
        options.noexec, options.allow_other = "noexec" in mount.flags, "allow_other" in mount.options.split(",")
        with mounting.check_mountpoint(mount.mountpoint, settings.home) as mountpoint:
            mount_held(settings, call, staging, mountpoint, options)


@contextlib.contextmanager
def _staging(settings: Settings, call: PrepareCall, path: Path | None) -> Iterator[Staging]:
    """The staging directory to mount, made where there is none; one that was made here goes with an error."""
    from kitfs.oci.reference import parse_reference

    reference = parse_reference(call.reference)
    path = path or _default_path(settings, reference)
    staging, is_new = _open_or_create(settings, call, path, reference)
    try:
        yield staging if is_new else _check_record(settings, staging, reference)
    except BaseException:
        if is_new:
            with contextlib.suppress(KitfsError):
                refuse_mounted(settings, staging)
                stagings.remove_staging(staging.layout, staging.path)
        raise


def _open_or_create(settings: Settings, call: PrepareCall, path: Path, reference: Reference) -> tuple[Staging, bool]:
    """A staging directory, and whether it was made here."""
    with contextlib.suppress(stagings.StagingNotFound):
        return stagings.open_staging(path), False
    try:
        return _create(settings, call, path, reference), True
    except StagingUnusable as error:
        with contextlib.suppress(stagings.StagingNotFound):
            return stagings.open_staging(path), False  # another command has made it meanwhile
        raise error from None


def _default_path(settings: Settings, reference: Reference) -> Path:
    """The store's own staging directory for a reference, there or not."""
    folder = Path(os.path.realpath(settings.home), "staging")
    for _, registration in iter_registrations(Layout(settings.home)):
        if registration is not None and registration.reference == reference.display:
            path = Path(registration.path)
            if path.parent == folder and path.is_dir():
                return path
    name = _UNFIT.sub("-", reference.display)[-_NAME_SIZE_MAX:].strip("-.")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.joinpath, names) if _is_free(path, reference))


def _is_free(path: Path, reference: Reference) -> bool:
    """Whether a place in the store is no staging directory, or one that is being made for a reference."""
    try:
        return read_record(path).reference == reference.display
    except stagings.StagingNotFound:
        return True
    except stagings.StagingMalformed:
        return False


def _create(settings: Settings, call: PrepareCall, path: Path, reference: Reference) -> Staging:
    from kitfs.modelkit.resolve import resolve

    mounts.look_for(settings, call)
    with settings.open_store() as store:
        resolved = resolve(store, reference)
        return stagings.create_staging(
            store, path, resolved, overlay=overlay.choose_kind(path), uid=os.geteuid(), gid=os.getegid()
        )


def _check_record(settings: Settings, staging: Staging, reference: Reference) -> Staging:
    """Refuse a staging directory that is for something else; say where the tag points elsewhere now.

    Returns:
        The staging directory, as one of this store if that was moved.

    Raises:
        StagingUnusable: when it is for another store, user or reference.
    """
    from kitfs.modelkit.resolve import find_manifest

    record = staging.record
    home = os.path.realpath(settings.home)
    if record.store != home:
        staging = stagings.adopt_staging(Layout(Path(home)), staging)
    if record.uid != os.geteuid():
        raise StagingUnusable(staging.path, f"it belongs to uid {record.uid}")
    if reference.display != record.reference and reference.digest != staging.manifests[0]:
        hint = f"kitfs mount {record.reference} DIRECTORY --writable --staging {staging.path}"
        raise StagingUnusable(staging.path, f"it was made over {record.reference}, not {reference.display}", hint)
    with settings.open_store(create=False) as store:
        now = find_manifest(store, reference)
    if now != staging.manifests[0]:
        where = f"means {now} now" if now else "is not in the store any more"
        warn(f"{record.reference} {where}; {staging.path} stays over {staging.manifests[0]}")
    return staging


def _check_places(staging: Staging, mountpoint: mounting.Mountpoint) -> None:
    """Refuse a staging directory that the mount would hide, or a mount point inside of it.

    Raises:
        StagingUnusable: when one lies in the other.
    """
    if staging.path == mountpoint.path or mountpoint.path in staging.path.parents:
        raise StagingUnusable(staging.path, f"the mount on {mountpoint.path} would hide it")
    if staging.path in mountpoint.path.parents:
        raise StagingUnusable(staging.path, f"the mount point {mountpoint.path} lies inside of it")
