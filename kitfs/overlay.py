"""Overlays: the kernel's, or fuse-overlayfs', over a mount of kitfs, made and unmade in the caller's mount namespace.

The mount of kitfs below one lies at ``<runtime directory>/lower/<session>``, so an overlay's lower directory names its
session. Whoever makes one holds the flock of ``lower/<session>.lock`` until the overlay is there: a mount below
``lower/`` that has neither lock nor overlay was left by a client that died, and ``sweep_lowers`` unmounts it.

Used by ``kitfs.cli``. Like ``kitfs.mounting`` it looks at no mount but at mountinfo, and imports nothing of the store.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs import mounting
from kitfs.control import make_socket_folder, socket_path
from kitfs.errors import KitfsError
from kitfs.mountinfo import FUSE_OVERLAY, KERNEL_OVERLAY, LOWER_FOLDER, Overlay, find_at, find_overlays, read_mounts

if TYPE_CHECKING:
    from kitfs.modelkit.staging_record import OverlayKind, Staging

FEATURES = "index=off,metacopy=on,redirect_dir=on,xino=on"
"""How the kernel's overlay works, whatever its module's defaults are.

``metacopy``: chmod or rename of a file of 4 GB copies no byte. ``redirect_dir``: a directory can be renamed (else
EXDEV, and mv copies it). ``xino``: one st_dev for all, or ``tar --one-file-system`` leaves out what was not changed.
``index`` is for hard links of the lower layer, which has none, and ties the upper one to the identity of one mount.
"""

_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_DETACH, _NOFOLLOW = 2, 8
"""``sys/mount.h``."""

_DATA_SIZE_MAX = 4095
"""What mount(2) takes of options: a page with its NUL."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_FUSE_PROGRAM = "fuse-overlayfs"


def lower_folder(home: Path) -> Path:
    """The folder of lower layers' mounts of a store: 0700, made when it is not there.

    Raises:
        SocketUntrusted: when the runtime directory is not ours alone.
        DaemonUnreachable: when it can not be made.
    """
    socket = socket_path(home)
    make_socket_folder(socket)
    folder = socket.parent / LOWER_FOLDER
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return folder


@contextlib.contextmanager
def hold_lower(folder: Path, session: str) -> Iterator[Path]:
    """The mount point of a session's lower layer, held while the overlay is made; gone when that fails."""
    path = folder / session
    lock = path.with_name(f"{session}.lock")
    fd = _lock(lock)
    try:
        path.mkdir(mode=0o700)
        yield path
    except BaseException:
        drop_lower(path)
        raise
    finally:
        lock.unlink(missing_ok=True)
        os.close(fd)


def _lock(path: Path) -> int:
    """A descriptor that holds the flock of the file at ``path``, and not of one that was removed meanwhile."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        os.close(fd)


def sweep_lowers(folder: Path) -> None:
    """Unmount lower layers without an overlay that nobody is making, and remove their mount points."""
    with contextlib.suppress(FileNotFoundError):
        for name in {entry.name.removesuffix(".lock") for entry in folder.iterdir()}:
            _sweep(folder / name)


def _sweep(path: Path) -> None:
    lock = path.with_name(f"{path.name}.lock")
    was_begun = lock.exists()
    with contextlib.suppress(OSError), open(lock, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_here = any(line.mountpoint == path for line in read_mounts())
        is_needed = any(overlay.lower == path for overlay in find_overlays())
        if not is_needed and (is_here or was_begun):  # what is neither may be mounted in another namespace
            drop_lower(path)
        lock.unlink(missing_ok=True)


def drop_lower(path: Path) -> None:
    """Unmount a lower layer and remove its mount point; an overlay that still uses it goes on."""
    with contextlib.suppress(KitfsError):
        while any(line.mountpoint == path for line in read_mounts()):
            mounting.unmount(path, lazy=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def choose_kind(upper: Path) -> OverlayKind:
    """What this user can mount with an upper directory at ``upper``, there or not.

    An overlay takes none that lies on another one, as the root of a container does; fuse-overlayfs does.
    """
    while not upper.exists():
        upper = upper.parent
    number = upper.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    is_overlay = any(line.device == device and line.kind == KERNEL_OVERLAY for line in read_mounts())
    return "fuse-overlayfs" if os.geteuid() != 0 or is_overlay else "overlay"


def mount_overlay(
    staging: Staging, lower: Path, mountpoint: mounting.Mountpoint, *, allow_other: bool, noexec: bool
) -> None:
    """Mount an overlay of a staging directory over a lower layer; it is there when this returns.

    Raises:
        MountFailed: when it can not be mounted.
        MountpointUnusable: when the mount point was swapped meanwhile; nothing is mounted then.
    """
    if staging.record.overlay == "overlay":
        _mount_kernel(staging, lower, mountpoint, noexec)
    else:
        _mount_fuse(staging, lower, mountpoint, allow_other, noexec)
    ours = [overlay for overlay in find_overlays() if overlay.lower == lower]
    if any(overlay.mount.mountpoint == mountpoint.path for overlay in ours):
        return
    for overlay in ours:
        unmount_overlay(overlay, lazy=True)
    raise mounting.MountpointUnusable(mountpoint.path, "it was swapped for something else meanwhile")


def _options(staging: Staging, lower: Path) -> list[str]:
    layers = {"lowerdir": lower, "upperdir": staging.upper, "workdir": staging.work}
    return [f"{name}={_escape(os.fspath(path))}" for name, path in layers.items()]


def _escape(path: str) -> str:
    for character in "\\,:":
        path = path.replace(character, f"\\{character}")
    return path


def _mount_kernel(staging: Staging, lower: Path, mountpoint: mounting.Mountpoint, noexec: bool) -> None:
    data = os.fsencode(",".join([*_options(staging, lower), FEATURES]))
    if len(data) > _DATA_SIZE_MAX:
        raise mounting.MountFailed(f"{mountpoint.path} can not be mounted: the path {staging.path} is too long")
    target = f"/proc/self/fd/{mountpoint.directory}".encode()  # the very directory that was checked
    source = os.fsencode(staging.record.reference)
    flags = _NOSUID | _NODEV | (_NOEXEC if noexec else 0)
    if _LIBC.mount(source, target, KERNEL_OVERLAY.encode(), ctypes.c_ulong(flags), data) != 0:
        reason = os.strerror(ctypes.get_errno())
        error = mounting.MountFailed(f"{mountpoint.path} can not be mounted: an overlay of {staging.upper}: {reason}")
        error.hint = "the kernel's log (dmesg) says more; an overlay's upper directory needs a local file system"
        raise error


def _mount_fuse(
    staging: Staging, lower: Path, mountpoint: mounting.Mountpoint, allow_other: bool, noexec: bool
) -> None:
    if any(":" in os.fspath(path) for path in (staging.path, lower)):
        error = mounting.MountFailed(f"{mountpoint.path} can not be mounted: {_FUSE_PROGRAM} takes no ':' in a path")
        error.hint = f"choose another staging directory than {staging.path}"
        raise error
    wanted = {"nosuid": True, "nodev": True, "noexec": noexec, "allow_other": allow_other}
    options = [*_options(staging, lower), *(option for option, is_wanted in wanted.items() if is_wanted)]
    try:
        status, said = mounting.Program(_FUSE_PROGRAM, ["-o", ",".join(options), str(mountpoint.path)]).wait()
    except mounting.MountFailed as error:
        error.hint = f"a writable mount of a user needs the package {_FUSE_PROGRAM}"
        raise
    if status != 0:
        reason = said or f"{_FUSE_PROGRAM} ended with {status}"
        raise mounting.MountFailed(f"{mountpoint.path} can not be mounted: {reason}")


def unmount_overlay(overlay: Overlay, *, lazy: bool) -> None:
    """Unmount an overlay; its lower layer stays mounted.

    Raises:
        MountBusy: when it is in use.
        MountNotFound: when it is not mounted any more.
        MountFailed: for every other reason.
    """
    if overlay.mount.kind != KERNEL_OVERLAY:
        mounting.unmount(overlay.mount.mountpoint, lazy=lazy)
        return
    path = overlay.mount.mountpoint
    if _LIBC.umount2(os.fsencode(path), _NOFOLLOW | (_DETACH if lazy else 0)) == 0:
        return
    match ctypes.get_errno():
        case errno.EBUSY:
            raise mounting.MountBusy(path)
        case errno.EINVAL:
            raise mounting.MountNotFound(os.fspath(path))
        case number:
            raise mounting.MountFailed(f"{path} can not be unmounted: {os.strerror(number)}")


def clear_dead_overlay(path: Path) -> bool:
    """Unmount the overlay at ``path`` when nobody can ever serve it again. True when it was so.

    Its fuse-overlayfs was ended, or all who served the ModelKit below it were.

    Raises:
        MountFailed: when it can not be unmounted.
    """
    lines = ((line.mountpoint, line) for line in read_mounts())
    line = find_at(path, lines)
    if line is None or line.kind not in (KERNEL_OVERLAY, FUSE_OVERLAY):
        return False
    overlay = next((one for one in find_overlays() if one.mount == line), None)
    if overlay is None and line.kind == FUSE_OVERLAY and mounting.is_dead(line.mountpoint):
        mounting.unmount(line.mountpoint, lazy=True)
        return True
    if overlay is None or not any(mount.mountpoint == overlay.lower for mount in mounting.find_mounts()):
        return False
    if not mounting.is_dead(overlay.lower):
        return False
    unmount_overlay(overlay, lazy=True)
    drop_lower(overlay.lower)
    return True
