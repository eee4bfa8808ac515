"""What ``kitfs doctor`` looks at: one function for each thing that the machine must have, or had better have.

Nothing is changed, no daemon is started, and no mount is looked into: whether one is dead is asked in a child.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from kitfs import __version__, client, mountinfo, mounting
from kitfs.cli.mounts import has_wanted
from kitfs.cli.output import format_size
from kitfs.cli.settings import Settings
from kitfs.control import FUSE_DEVICE
from kitfs.errors import KitfsError, NotFoundError
from kitfs.store.quota import Quota

RESEND_KERNEL = (6, 9)
"""Linux has FUSE_NOTIFY_RESEND from here on, without which a mount ends with its worker."""

State = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        check: What was looked at.
        state: ``warn`` when kitfs works without it, ``fail`` when something does not work.
        detail: What there is.
        mend: The line that mends it, empty where there is nothing to mend or no line that does.
    """

    check: str
    state: State
    detail: str
    mend: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything."""
    checks: list[Callable[[], Finding]] = [
        check_device,
        check_fusermount,
        check_others,
        check_kernel,
        check_overlay,
        lambda: check_store(settings),
        lambda: check_disk(settings.home),
        lambda: check_daemon(settings),
        check_read_ahead,
        check_dead,
        lambda: check_wanted(settings),
    ]
    return [check() for check in checks]


def check_device(device: Path = Path("/dev/fuse")) -> Finding:
    """Whether this user can open /dev/fuse."""
    try:
        status = device.stat()
    except OSError:
        return Finding("device", "fail", f"there is no {device}", "sudo modprobe fuse")
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != FUSE_DEVICE:
        mend = f"sudo rm {device} && sudo mknod -m 666 {device} c 10 229"
        return Finding("device", "fail", f"{device} is not FUSE's device", mend)
    if not os.access(device, os.R_OK | os.W_OK):
        mode = stat.S_IMODE(status.st_mode)
        return Finding("device", "fail", f"{device} can not be opened (mode {mode:o})", f"sudo chmod 666 {device}")
    return Finding("device", "ok", str(device))


def check_fusermount() -> Finding:
    """Whether this user can mount with fusermount3."""
    path = shutil.which("fusermount3")
    if path is None:
        return Finding("fusermount3", "fail", "it is not installed", "sudo apt-get install fuse3")
    status = Path(path).stat()
    if os.geteuid() != 0 and not (status.st_mode & stat.S_ISUID and status.st_uid == 0):
        mend = f"sudo chown root {path} && sudo chmod u+s {path}"
        return Finding("fusermount3", "fail", f"{path} is not setuid root", mend)
    return Finding("fusermount3", "ok", path)


def check_others() -> Finding:
    """Whether others may enter this user's mounts."""
    if mounting.others_permitted():
        return Finding("others", "ok", "other users may enter your mounts")
    mend = "echo user_allow_other | sudo tee -a /etc/fuse.conf"
    return Finding("others", "warn", "other users can not enter your mounts", mend)


def check_kernel(release: str | None = None) -> Finding:
    """Whether a mount survives its worker's death."""
    release = platform.release() if release is None else release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is not None and (int(found[1]), int(found[2])) >= RESEND_KERNEL:
        return Finding("kernel", "ok", f"{release}: a mount survives its worker")
    wanted = ".".join(map(str, RESEND_KERNEL))
    return Finding("kernel", "warn", f"{release}: a mount ends with its worker before Linux {wanted}")


def check_overlay() -> Finding:
    """Whether this user can mount writable."""
    if os.geteuid() != 0 and shutil.which("fuse-overlayfs") is None:
        detail = "fuse-overlayfs is not installed, which --writable needs"
        return Finding("overlay", "warn", detail, "sudo apt-get install fuse-overlayfs")
    if os.geteuid() == 0 and "\toverlay\n" not in Path("/proc/filesystems").read_text("ascii"):
        return Finding("overlay", "warn", "the kernel has no overlayfs, which --writable needs", "modprobe overlay")
    return Finding("overlay", "ok", "mounts can be writable")


def check_store(settings: Settings) -> Finding:
    """Whether the store can be used."""
    try:
        settings.open_store(create=False).close()
    except NotFoundError:
        return Finding("store", "ok", f"there is none at {settings.home} yet")
    except KitfsError as error:
        return Finding("store", "fail", str(error), error.hint)
    return Finding("store", "ok", str(settings.home))


def check_disk(home: Path) -> Finding:
    """Whether members can be materialised."""
    place = next(path for path in (home, *home.parents) if path.is_dir())
    disk = os.statvfs(place)
    free = f"{format_size(disk.f_bavail * disk.f_frsize)} free at {place}"
    if Quota().limit(0, disk) <= 0:
        return Finding("disk", "warn", f"{free}: nothing more is materialised", "kitfs gc")
    return Finding("disk", "ok", free)


def check_daemon(settings: Settings) -> Finding:
    """Whether the daemon answers, and is of this version."""
    try:
        running = client.find_daemon(settings.home, settings.socket)
        if running is None:
            return Finding("daemon", "ok", "none runs; a mount starts one")
        answer = running.ping()
    except KitfsError as error:
        return Finding("daemon", "fail", str(error), error.hint)
    if answer.version != __version__:
        detail = f"process {answer.pid} is of version {answer.version}, this is {__version__}"
        return Finding("daemon", "warn", detail, "kitfs umount --all && kitfs daemon stop")
    return Finding("daemon", "ok", f"process {answer.pid}")


def check_read_ahead() -> Finding:
    """Whether mounts are read at full speed in sequence."""
    slow = []
    for mount in mounting.find_mounts():
        knob = Path("/sys/class/bdi", mount.device, "read_ahead_kb")
        try:
            kib = int(knob.read_text("ascii"))
        except (OSError, ValueError):
            continue
        if kib < mounting.READ_AHEAD_KIB:
            slow.append((mount, kib, knob))
    if not slow:
        return Finding("read-ahead", "ok", f"{mounting.READ_AHEAD_KIB} KiB where something is mounted")
    mount, kib, knob = slow[0]
    detail = f"{kib} KiB on {mount.mountpoint}" + (f" and {len(slow) - 1} more" if slow[1:] else "")
    return Finding("read-ahead", "warn", detail, f"echo {mounting.READ_AHEAD_KIB} | sudo tee {knob}")


def check_dead() -> Finding:
    """Whether something is mounted that nobody will ever serve again."""
    dead = sorted({mount.mountpoint for mount in mounting.find_mounts() if mounting.is_dead(mount.mountpoint)})
    if dead:
        places = ", ".join(map(str, dead))
        return Finding("mounts", "fail", f"nobody serves {places}", f"kitfs umount {dead[0]}")
    return Finding("mounts", "ok", "all are served")


def check_wanted(settings: Settings) -> Finding:
    """Whether all that is wanted is mounted."""
    absent = []
    if has_wanted(settings.home):
        from kitfs.store.layout import Layout
        from kitfs.store.wanted import iter_wanted

        mounted = {line.mountpoint for line in mountinfo.read_mounts()}
        places = [Path(one.record.mountpoint) for one in iter_wanted(Layout(settings.home))]
        absent = [str(place) for place in places if place not in mounted]
    if absent:
        return Finding("wanted", "warn", f"not mounted: {', '.join(absent)}", "kitfs mount --restore")
    return Finding("wanted", "ok", "all that is wanted is mounted")
