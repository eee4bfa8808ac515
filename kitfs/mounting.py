"""What a client does to mount: the mount point, fusermount3, mountinfo, read-ahead.

Everything here happens in the caller's mount namespace with the caller's rights; the daemon never calls it. Mounts are
told apart by mountinfo alone (its paths have octal escapes, proc(5)): nothing here stats, opens or lists a mount of
kitfs, because that blocks for as long as nobody serves it. The one that does, in ``clear_dead_mount``, is a child.

Used by ``kitfs.cli.mounts``. Imports no trio and no subprocess: a whole ``kitfs mount`` has 80 ms.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from kitfs import mountinfo
from kitfs.control import parse_descriptors
from kitfs.errors import BusyError, FuseError, NotFoundError, UsageError

FILE_SYSTEM = "fuse.kitfs"
READ_AHEAD_KIB = 1024
"""1025 requests per GiB read instead of 8193 at 128 KiB; at 4096, 200 random faults moved 116 MB instead of 24."""

_DEAD = 3
"""Exit code of the child that asks whether a mount is dead."""

_PROBE_TIMEOUT_S = 2.0
_LINKS_MAX = 40
"""Links that the kernel follows in one path (path_resolution(7))."""

_FUSERMOUNT = "fusermount3"
_FUSE_CONF = Path("/etc/fuse.conf")


class MountpointUnusable(UsageError):
    """A directory that nothing can be mounted on."""

    def __init__(self, path: Path, reason: str, hint: str = "") -> None:
        super().__init__(f"{path} can not be a mount point: {reason}")
        self.path = path
        self.reason = reason
        self.hint = hint


class MountpointTaken(BusyError):
    """A directory where a ModelKit is mounted already."""

    def __init__(self, path: Path, reference: str) -> None:
        super().__init__(f"{path} is mounted already ({reference})")
        self.hint = f"kitfs umount {path}"


class MountFailed(FuseError):
    """fusermount3 is missing or refused."""

    hint = "FUSE needs /dev/fuse (readable and writable for you) and the package fuse3"


class MountBusy(BusyError):
    """A mount that somebody is using."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is in use")
        self.path = path
        self.hint = f"fuser -vm {path}   (shows who), or: kitfs umount --lazy {path}"


class MountNotFound(NotFoundError):
    """No mount of kitfs is there."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no ModelKit is mounted: {what}")
        self.hint = "kitfs ps"


class KitfsMount(msgspec.Struct, frozen=True):
    """One line of mountinfo that is a mount of kitfs, a bind mount of one included.

    Attributes:
        number: The mount's number in this namespace.
        mountpoint: Where it is mounted.
        device: ``major:minor``; the same in every namespace, and the name of its bdi.
        reference: What is mounted (``fsname``).
    """

    number: int
    mountpoint: Path
    device: str
    reference: str


def find_mounts() -> list[KitfsMount]:
    """All mounts of kitfs in this mount namespace, later ones (on top) last."""
    return _mounts_of(mountinfo.read_mounts())


def parse_mountinfo(raw: bytes) -> list[KitfsMount]:
    """The mounts of kitfs in ``/proc/<pid>/mountinfo`` (proc(5)); lines of another form are passed over."""
    return _mounts_of(mountinfo.parse_mountinfo(raw))


def _mounts_of(lines: Iterable[mountinfo.MountLine]) -> list[KitfsMount]:
    return [
        KitfsMount(line.number, line.mountpoint, line.device, line.source) for line in lines if line.kind == FILE_SYSTEM
    ]


def find_mount(path: Path) -> KitfsMount | None:
    """The mount of kitfs whose mount point is ``path``, the topmost one, or None.

    ``path`` may be relative or lead through links; its last component is not looked at while it is a mount point.
    """
    return mountinfo.find_at(path, ((mount.mountpoint, mount) for mount in find_mounts()))


def find_shown(path: Path) -> KitfsMount | None:
    """As ``find_mount``; the mount below an overlay counts as the overlay's, where that lies."""
    overlays = ((overlay.mount.mountpoint, overlay) for overlay in mountinfo.find_overlays())
    overlay = mountinfo.find_at(path, overlays)
    if overlay is None:
        return find_mount(path)
    mounts = (mount for mount in find_mounts() if mount.mountpoint == overlay.lower)
    return next((msgspec.structs.replace(mount, mountpoint=overlay.mount.mountpoint) for mount in mounts), None)


class Mountpoint(msgspec.Struct, frozen=True):
    """A checked mount point: an empty directory, held open so that a swapped one is noticed.

    Attributes:
        path: Its real path.
        directory: A descriptor of it; closed by ``close`` or at the end of a ``with``.
    """

    path: Path
    directory: int

    def is_still_there(self) -> bool:
        """Whether the path still leads to the directory that was checked. False while something is mounted on it."""
        try:
            now = self.path.lstat()
        except OSError:
            return False
        then = os.fstat(self.directory)
        return (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_mountpoint(path: Path, store_home: Path) -> Mountpoint:
    """Look whether ``path`` can be mounted on, and hold it.

    Raises:
        MountpointUnusable: when it is no empty directory, lies in the store or in another mount of kitfs.
        MountpointTaken: when a ModelKit is mounted there.
    """
    literal = mountinfo.absolute(path)
    _refuse_inside_mount(literal)
    real = mountinfo.real_parent(literal)
    _refuse_inside_mount(real)
    home = Path(os.path.realpath(store_home))
    if real == home or home in real.parents:
        raise MountpointUnusable(real, f"it lies inside the store {home}")
    try:
        os.fspath(real).encode()
        directory = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except UnicodeEncodeError:
        raise MountpointUnusable(real, "its name is not UTF-8") from None
    except FileNotFoundError:
        raise MountpointUnusable(real, "it does not exist", f"mkdir -p {real}") from None
    except OSError as error:
        raise MountpointUnusable(real, _explain_open(real, error)) from None
    with os.scandir(directory) as entries:
        empty = next(entries, None) is None
    if not empty:
        os.close(directory)
        raise MountpointUnusable(real, "it is not empty")
    return Mountpoint(real, directory)


def _explain_open(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return f"it is a symbolic link, to {path.readlink()}"
    return f"it is not a directory that you can read ({error.strerror})"


def _refuse_inside_mount(path: Path) -> None:
    mounts = {mount.mountpoint: mount.reference for mount in find_mounts()}
    overlays = mountinfo.find_overlays()
    mounts |= {one.mount.mountpoint: mounts[one.lower] for one in overlays if one.lower in mounts}
    for mountpoint, reference in mounts.items():
        if mountpoint == path:
            raise MountpointTaken(path, reference)
        if mountpoint in path.parents:
            raise MountpointUnusable(path, f"it lies inside the mount of {reference} at {mountpoint}")


def clear_dead_mount(path: Path) -> bool:
    """Unmount what is mounted at ``path`` when nobody can ever serve it again. True when it was so.

    Such a mount is left behind by a daemon that was ended under its mounts, or by a client that was killed between
    mounting and handing over.

    Raises:
        MountFailed: when it can not be unmounted.
    """
    mounted = find_mount(path)
    if mounted is None or not is_dead(mounted.mountpoint):
        return False
    unmount(mounted.mountpoint, lazy=True)
    return True


def is_dead(mountpoint: Path) -> bool:
    """Whether a mount's connection is gone: statfs, which is never cached, says ENOTCONN.

    Asked in a child, because a mount that is only slow to answer would block the asker.
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.statvfs(mountpoint)
        except OSError as error:
            os._exit(_DEAD if error.errno == errno.ENOTCONN else 0)
        finally:
            os._exit(0)
    process = os.pidfd_open(pid)
    if not select.select([process], [], [], _PROBE_TIMEOUT_S)[0]:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    os.close(process)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == _DEAD


def others_permitted() -> bool:
    """Whether this user may mount with ``allow_other`` (root, or ``user_allow_other`` in /etc/fuse.conf)."""
    if os.geteuid() == 0:
        return True
    try:
        lines = _FUSE_CONF.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def mount_options(reference: str, *, allow_other: bool, noexec: bool = False) -> list[str]:
    """The options of a mount; commas and backslashes in the reference are escaped as fusermount3 reads them."""
    name = reference.replace("\\", "\\\\").replace(",", "\\,")
    options = ["ro", "nosuid", "nodev", "default_permissions", f"fsname={name}", "subtype=kitfs"]
    wanted = {"allow_other": allow_other, "noexec": noexec}
    return [*options, *(option for option, is_wanted in wanted.items() if is_wanted)]


def mount_device(mountpoint: Path, options: Sequence[str]) -> int:
    """Mount a new FUSE connection and return its device; nothing below it works until INIT is answered.

    Speaks the ``_FUSE_COMMFD`` protocol of fusermount3 (libfuse, ``util/fusermount.c``): it mounts, and sends the
    descriptor over the socket that the variable names.

    Raises:
        MountFailed: when fusermount3 is missing or refuses; its own words are in the message.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            run = Program(_FUSERMOUNT, ["-o", ",".join(options), "--", os.fspath(mountpoint)], theirs.fileno())
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
        descriptors = parse_descriptors(ancillary)
        status, said = run.wait()
    if status != 0 or not descriptors:
        for descriptor in descriptors:
            os.close(descriptor)
        raise MountFailed(f"{mountpoint} can not be mounted: {said or f'{_FUSERMOUNT} ended with {status}'}")
    return descriptors[0]


def get_mounted(mountpoint: Mountpoint, before: Sequence[KitfsMount]) -> KitfsMount:
    """The mount that has just been made, when it covers the directory that was checked.

    Args:
        mountpoint: What was checked before.
        before: The mounts that were there before.

    Raises:
        MountpointUnusable: when the directory was swapped meanwhile; the new mount is gone then.
    """
    new = [mount for mount in find_mounts() if mount not in before]  # a number alone may be one that became free
    held = Path(f"/proc/self/fd/{mountpoint.directory}").readlink()
    ours = [mount for mount in new if mount.mountpoint == mountpoint.path]
    if ours and held == mountpoint.path:
        return ours[-1]
    places = {mount.mountpoint for mount in new}
    for place in places & {held, _follow_links(mountpoint.path, places)}:
        unmount(place, lazy=True)
    raise MountpointUnusable(mountpoint.path, "it was swapped for something else meanwhile")


def _follow_links(path: Path, mountpoints: set[Path]) -> Path:
    """Where a path leads, looking at nothing that is a mount point."""
    for _ in range(_LINKS_MAX):
        if path in mountpoints or not path.is_symlink():
            break
        path = mountinfo.real_parent(path.parent / path.readlink())
    return path


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount; with ``lazy`` at once, and what is open stays readable.

    Raises:
        MountBusy: when it is in use.
        MountNotFound: when nothing is mounted there.
        MountFailed: for every other reason.
    """
    status, said = Program(_FUSERMOUNT, ["-u", *(["-z"] if lazy else []), "--", os.fspath(mountpoint)]).wait()
    if status == 0:
        return
    if said.endswith("Device or resource busy"):
        raise MountBusy(mountpoint)
    if said.endswith("Invalid argument") or "not found in" in said:
        raise MountNotFound(os.fspath(mountpoint))
    raise MountFailed(f"{mountpoint} can not be unmounted: {said or f'{_FUSERMOUNT} ended with {status}'}")


class Program:
    """One run of a program that mounts, in the C locale; what it says on standard error is kept in an unnamed file."""

    def __init__(self, name: str, arguments: list[str], comm: int | None = None) -> None:
        """Start it.

        Args:
            name: The program.
            arguments: What it is given.
            comm: A descriptor that it inherits, as ``_FUSE_COMMFD``.

        Raises:
            MountFailed: when it is missing.
        """
        self.name = name
        self._said = os.memfd_create(name, os.MFD_CLOEXEC)
        environment = {**os.environ, "LC_ALL": "C"}
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, self._said, 2)]
        if comm is not None:
            environment["_FUSE_COMMFD"] = str(comm)
            actions.append((os.POSIX_SPAWN_DUP2, comm, comm))
        try:
            self._pid = os.posix_spawnp(name, [name, *arguments], environment, file_actions=actions)
        except OSError as error:
            os.close(self._said)
            raise MountFailed(f"{name} can not be run: {error.strerror}") from None

    def wait(self) -> tuple[int, str]:
        """Its exit status and the last line that it said, without its own name."""
        _, status = os.waitpid(self._pid, 0)
        lines = os.pread(self._said, 16 << 10, 0).decode("utf-8", "replace").strip().splitlines()
        os.close(self._said)
        return os.waitstatus_to_exitcode(status), lines[-1].removeprefix(f"{self.name}: ") if lines else ""


def set_read_ahead(device: str, kib: int = READ_AHEAD_KIB) -> str | None:
    """Set the read-ahead of a mount, which only root may.

    Returns:
        None when it is set, else the line that sets it as root.
    """
    knob = Path("/sys/class/bdi", device, "read_ahead_kb")
    try:
        knob.write_text(f"{kib}\n", "ascii")
    except OSError:
        return f"echo {kib} | sudo tee {knob}"
    return None
