"""Staging directories: where changes of a ModelKit are written, over its mount, until they are committed.

Used by the commands that mount writable, show changes and commit. On disk::

    DIR/staging.json    StagingRecord, written whole, last: it makes DIR a staging directory
    DIR/upper/          what was changed, as an overlay's upper directory; never written to by kitfs
    DIR/work/           the overlay's own

A staging directory belongs to one store, which keeps its ModelKit and every parent for it (``kitfs.store.staging``).
It outlives mounts, daemons and boots. ``hold_staging`` orders those who change it; an overlay over it is known by its
session, which lives as long as anything of the overlay does, in whatever namespace, detached or not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kitfs import mountinfo
from kitfs.modelkit.nodes import Modes
from kitfs.modelkit.staging_record import (
    SCRATCH_NAME,
    UPPER_NAME,
    WORK_NAME,
    OverlayKind,
    Staging,
    StagingChanged,
    StagingHeld,
    StagingMalformed,
    StagingMounted,
    StagingNotFound,
    StagingRecord,
    StagingUnusable,
    read_record,
    write_record,
)
from kitfs.store import durable
from kitfs.store.layout import Layout
from kitfs.store.sessions import iter_sessions
from kitfs.store.staging import RECORD_NAME, forget, register
from kitfs.store.stamp import find_status

if TYPE_CHECKING:
    from kitfs.digest import Digest
    from kitfs.modelkit.resolve import ResolvedTree
    from kitfs.store.sessions import SessionRecord
    from kitfs.store.store import Store

__all__ = [
    "OverlayKind",
    "Staging",
    "StagingChanged",
    "StagingHeld",
    "StagingMalformed",
    "StagingMounted",
    "StagingNotFound",
    "StagingRecord",
    "StagingUnusable",
    "adopt_staging",
    "create_staging",
    "find_mountpoint",
    "find_staging",
    "hold_staging",
    "is_mounted",
    "iter_mounts",
    "measure_upper",
    "open_staging",
    "rebase_held",
    "rebase_staging",
    "remove_staging",
]

_STALE = "stale-"
_UNFINISHED = frozenset({UPPER_NAME, WORK_NAME, SCRATCH_NAME})
"""What a directory may hold that is to become a staging directory: a killed command made it."""


def open_staging(path: Path) -> Staging:
    """The staging directory ``path``. What a crash left half moved onto another ModelKit is finished first.

    Raises:
        StagingNotFound: when it is none.
        StagingMalformed: when its record can not be read, or ``upper`` or ``work`` is missing.
        StagingHeld: when another command is moving it.
        StoreWriteFailed: when what a crash left can not be finished.
    """
    real = Path(os.path.realpath(path))
    staging = Staging(real, read_record(real))
    if staging.record.is_stale:
        with hold_staging(real):
            staging = _finish_rebase(Staging(real, read_record(real)))
    for part in (staging.upper, staging.work):
        if not part.is_dir() or part.is_symlink():
            raise StagingMalformed(real, f"it has no directory {part.name!r}")
    return staging


def find_staging(path: Path) -> Staging | None:
    """The staging directory ``path``, or the one behind the writable mount whose mount point it is; None for neither.

    Raises:
        StagingMalformed, StagingHeld, StoreWriteFailed: as ``open_staging``.
    """
    overlays = mountinfo.find_overlays()
    overlay = mountinfo.find_at(path, ((overlay.mount.mountpoint, overlay) for overlay in overlays))
    if overlay is not None:
        path = overlay.upper.parent
    try:
        return open_staging(path)
    except StagingNotFound:
        if overlay is None or overlay.session is None:
            return None
        error = StagingMalformed(path, f"it was moved or removed while it is mounted on {overlay.mount.mountpoint}")
        error.hint = f"kitfs umount {overlay.mount.mountpoint}"
        raise error from None


@contextlib.contextmanager
def hold_staging(path: Path) -> Iterator[None]:
    """Keep other commands from mounting, moving or removing a staging directory.

    Raises:
        StagingHeld: when another does so.
        StagingNotFound: when there is no such directory.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise StagingNotFound(path) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StagingHeld(path) from None
        yield
    finally:
        os.close(fd)


def find_mountpoint(staging: Staging) -> str | None:
    """Where a staging directory is mounted, or None: also in another namespace, or detached while files are open.

    Raises:
        StoreWriteFailed: when that can not be found out.
    """
    return next((record.mountpoint for record in iter_mounts(staging)), None)


def iter_mounts(staging: Staging) -> Iterator[SessionRecord]:
    """The sessions that serve the lower layer of a staging directory; one at most.

    Raises:
        StoreWriteFailed: when that can not be found out.
    """
    identity = staging.identity
    return (record for record, alive in iter_sessions(staging.layout) if alive and record.staging == identity)


def adopt_staging(layout: Layout, staging: Staging) -> Staging:
    """Make a staging directory whose store was moved one of the store as it lies now.

    Raises:
        StagingUnusable: when its store is where it was, or this one lacks its ModelKit or a parent.
        StoreWriteFailed: when its record can not be written.
    """
    former = staging.record.store
    if staging.layout.version.exists() or not all(layout.blob(manifest).exists() for manifest in staging.manifests):
        raise StagingUnusable(staging.path, f"it belongs to the store {former}", f"--home {former}")
    record = msgspec.structs.replace(staging.record, store=os.path.realpath(layout.home))
    with hold_staging(staging.path):
        write_record(Staging(staging.path, record))
    return Staging(staging.path, record)


def is_mounted(staging: Staging) -> bool:
    """Whether a staging directory is mounted anywhere.

    Raises:
        StoreWriteFailed: when that can not be found out.
    """
    return find_mountpoint(staging) is not None


def create_staging(
    store: Store, path: Path, resolved: ResolvedTree, *, overlay: OverlayKind, uid: int, gid: int
) -> Staging:
    """Make a directory a staging directory over a ModelKit, and the store keep that for it.

    Args:
        store: Where the ModelKit is.
        path: The directory; made when it is not there, empty otherwise.
        resolved: The ModelKit and its parents.
        overlay: What will be mounted over it.
        uid: Who will write there.
        gid: That user's group.

    Raises:
        StagingUnusable: when ``path`` holds other things, or lies in the store where staging directories do not.
        StagingHeld: when another command makes it at this moment.
        ManifestNotFound: when the ModelKit or a parent went meanwhile.
        StoreWriteFailed: when writing failed.
    """
    real = _make_directory(store.layout, path)
    record = StagingRecord(
        id=os.urandom(8).hex(),
        reference=resolved.reference or str(resolved.digests[0]),
        manifests=[str(digest) for digest in resolved.digests],
        uid=uid,
        gid=gid,
        overlay=overlay,
        store=os.path.realpath(store.home),
        modes=Modes.WRITABLE.value,
        created_s=int(time.time()),
    )
    staging = Staging(real, record)
    with hold_staging(real), store.lease("staging") as lease:
        strangers = sorted(entry.name for entry in real.iterdir() if entry.name not in _UNFINISHED)
        if strangers:
            raise StagingUnusable(real, f"it holds other things ({strangers[0]!r})", "name a new or empty directory")
        for digest in resolved.digests:
            lease.hold(digest)
        _make_parts(staging)
        write_record(staging)
        register(store.layout, real, record.reference, resolved.digests)
    return staging


def _make_directory(layout: Layout, path: Path) -> Path:
    home = Path(os.path.realpath(layout.home))
    real = Path(os.path.realpath(path))
    if (real == home or home in real.parents) and real.parent != home / layout.staging.name:
        raise StagingUnusable(real, f"it lies inside the store {home}")
    with durable.naming(real, "making"):
        if real.parent == home / layout.staging.name:
            layout.staging.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            real.mkdir(mode=0o700)
    if not real.is_dir():
        raise StagingUnusable(real, "it is not a directory")
    return real


def _make_parts(staging: Staging) -> None:
    """An empty ``upper``, with the mode that the lower layer's root shows, and a ``work``; nothing is kept of them."""
    with durable.naming(staging.path, "making folders in"):
        for part, mode in ((staging.upper, 0o755), (staging.work, 0o700)):
            part.mkdir(exist_ok=True)
            part.chmod(mode)
            if any(part.iterdir()):
                raise StagingUnusable(staging.path, f"its directory {part.name!r} is not empty")


def rebase_staging(store: Store, staging: Staging, resolved: ResolvedTree) -> Staging:
    """Move a staging directory that is not mounted onto another ModelKit; what was changed goes.

    Killed at any moment it leaves the staging directory as it was, or one that the next ``open_staging`` finishes.

    Raises:
        StagingMounted: when it is mounted.
        StagingHeld: when another command is busy with it.
        ManifestNotFound: when the ModelKit or a parent is not in the store.
        StoreWriteFailed: when writing failed.
    """
    with hold_staging(staging.path):
        return rebase_held(store.layout, staging, resolved.reference, resolved.digests)


def rebase_held(layout: Layout, staging: Staging, reference: str, manifests: Sequence[Digest]) -> Staging:
    """What ``rebase_staging`` does, for who holds the staging directory.

    Raises:
        StagingMounted, ManifestNotFound, StoreWriteFailed: as there.
    """
    mountpoint = find_mountpoint(staging)
    if mountpoint is not None:
        raise StagingMounted(staging.path, mountpoint)
    register(layout, staging.path, staging.record.reference, [*manifests, *staging.manifests])
    record = msgspec.structs.replace(
        staging.record, reference=reference, manifests=[str(digest) for digest in manifests], is_stale=True
    )
    moved = Staging(staging.path, record)
    write_record(moved)
    return _finish_rebase(moved)


def _finish_rebase(staging: Staging) -> Staging:
    """Put what belongs to the former ModelKit away, then say so; every step may be done again."""
    if not staging.record.is_stale:
        return staging
    with durable.naming(staging.path, "emptying"):
        for part in (staging.upper, staging.work):
            if find_status(part) is not None:
                part.rename(staging.path / f"{_STALE}{os.urandom(8).hex()}")
        _make_parts(staging)
        _remove_stale(staging.path)
    durable.sync_directory(staging.path)
    register(staging.layout, staging.path, staging.record.reference, staging.manifests)
    done = Staging(staging.path, msgspec.structs.replace(staging.record, is_stale=False))
    write_record(done)
    return done


def remove_staging(layout: Layout, path: Path) -> None:
    """Remove a staging directory and all that was changed in it, or the rest of one; the store forgets it.

    Other things in the directory stay, and so it does.

    Raises:
        StagingMounted: when it is mounted.
        StagingHeld: when another command is busy with it.
        StoreWriteFailed: when something of it can not be removed.
    """
    real = Path(os.path.realpath(path))
    if find_status(real) is None:
        forget(layout, real)
        return
    with hold_staging(real):
        with contextlib.suppress(StagingNotFound, StagingMalformed):
            staging = Staging(real, read_record(real))
            mountpoint = find_mountpoint(staging) if staging.upper.exists() else None
            if mountpoint is not None:
                raise StagingMounted(real, mountpoint)
        with durable.naming(real, "removing"):
            for name in (UPPER_NAME, WORK_NAME):
                if find_status(real / name) is not None:
                    (real / name).rename(real / f"{_STALE}{os.urandom(8).hex()}")
            _remove_stale(real)
            for name in (SCRATCH_NAME, RECORD_NAME):
                (real / name).unlink(missing_ok=True)
            if not any(real.iterdir()):
                real.rmdir()
        forget(layout, real)


def _remove_stale(path: Path) -> None:
    """Remove what was put away; a directory that its owner may not write to is made writable first."""
    for stale in path.glob(f"{_STALE}*"):
        folders = [stale]
        while folders:
            folder = folders.pop()
            if os.lstat(folder).st_mode & stat.S_IRWXU != stat.S_IRWXU:
                folder.chmod(0o700)
            with os.scandir(folder) as entries:
                folders += (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
        shutil.rmtree(stale)


def measure_upper(staging: Staging) -> int:
    """Bytes on disk of what was changed; what may not be looked at is not counted."""
    size = 0
    for folder, _, names in os.walk(staging.upper):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return size
