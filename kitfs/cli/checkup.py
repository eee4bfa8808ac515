"""What ``kitfs doctor`` looks at: one function for each thing that the machine must have, or had better have.

Nothing is changed, no daemon is started, nothing goes over a network, and no mount is looked into: whether one is dead
is asked in a child. What kitfs itself runs and has mounted is looked at in ``kitfs.cli.checkup_serving``.
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

from kitfs import mountinfo, mounting
from kitfs.cli.output import format_size
from kitfs.cli.settings import Settings
from kitfs.control import FUSE_DEVICE
from kitfs.errors import KitfsError, NotFoundError
from kitfs.store.quota import Quota

RESEND_KERNEL = (6, 9)
"""Linux has FUSE_NOTIFY_RESEND from here on, without which a mount ends with its worker."""

NO_RESEND_VARIABLE = "KITFS_NO_RESEND"

FREE_MIN = 1 << 20
"""With less room not even a tag can be written."""

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
    from kitfs.cli import checkup_serving as serving

    daemon, status = serving.check_daemon(settings)
    checks: dict[str, Callable[[], Finding]] = {
        "device": check_device,
        "fusermount3": check_fusermount,
        "others": check_others,
        "kernel": check_kernel,
        "passthrough": lambda: serving.check_passthrough(status),
        "overlay": check_overlay,
        "store": lambda: check_store(settings),
        "disk": lambda: check_disk(settings.home),
        "registry": lambda: check_registry(settings),
        "daemon": lambda: daemon,
        "sockets": lambda: serving.check_sockets(settings),
        "read-ahead": check_read_ahead,
        "mounts": lambda: serving.check_dead(settings, status.mounts if status else []),
        "wanted": lambda: serving.check_wanted(settings),
    }
    return [_run(name, check) for name, check in checks.items()]


def _run(name: str, check: Callable[[], Finding]) -> Finding:
    """What a check found; one that could not look has failed, and the others go on."""
    try:
        return check()
    except (KitfsError, OSError) as error:
        return Finding(name, "fail", str(error), getattr(error, "hint", ""))


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
    if os.geteuid() != 0 and _has_no_new_privileges():
        return Finding("fusermount3", "fail", "this process may gain no privileges (no_new_privs), so it can not mount",
                       "NoNewPrivileges=no in the unit, or --security-opt no-new-privileges=false")  # fmt: skip
    return Finding("fusermount3", "ok", path)


def _has_no_new_privileges() -> bool:
    return "\nNoNewPrivs:\t1\n" in Path("/proc/self/status").read_text("utf-8", "replace")


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
    if os.environ.get(NO_RESEND_VARIABLE) == "1":
        detail = f"{release}, but with {NO_RESEND_VARIABLE}=1 a mount ends with its worker"
        return Finding("kernel", "warn", detail, f"unset {NO_RESEND_VARIABLE}")
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
    """Whether anything can be written, and members can be materialised."""
    place = next(path for path in (home, *home.parents) if path.is_dir())
    disk = os.statvfs(place)
    room = disk.f_bavail * disk.f_frsize
    free = f"{format_size(room)} free at {place}"
    if disk.f_flag & os.ST_RDONLY:
        return Finding("disk", "fail", f"{place} lies on a file system that is read-only",
                       f"sudo mount -o remount,rw {find_mountpoint(place)}")  # fmt: skip
    if room < FREE_MIN or (disk.f_files and not disk.f_favail):
        inodes = "" if room < FREE_MIN else ", but no inode"
        return Finding("disk", "fail", f"{free}{inodes}: nothing can be stored", "kitfs gc, or make room on the disk")
    if Quota().limit(0, disk) <= 0:
        return Finding("disk", "warn", f"{free}: nothing more is materialised", "kitfs gc")
    return Finding("disk", "ok", free)


def find_mountpoint(path: Path) -> Path:
    """Where the file system of a folder is mounted."""
    places = {line.mountpoint for line in mountinfo.read_mounts()}
    return next(place for place in (path, *path.parents) if place in places or place == place.parent)


def check_registry(settings: Settings) -> Finding:
    """Whether what is configured of registries, and kit's storage, can be used. No registry and no helper is asked."""
    storage = settings.kitops_home
    is_there = os.path.isdir(storage)  # noqa: PTH112 - False where its folder can not be entered, Path.is_dir raises
    if is_there and not os.access(storage, os.R_OK | os.X_OK):
        detail = f"kit's storage {storage} can not be read, so tags that kit moves are not noticed"
        return Finding("registry", "warn", detail, f"sudo chmod -R u+rX {storage}")
    try:
        from kitfs.transfer.registry import credentials, http  # noqa: F401 - libcurl is loaded with it
    except ImportError as error:
        return Finding(
            "registry", "fail", f"libcurl can not be loaded: {error}", "pip install --force-reinstall pycurl"
        )
    own = credentials.own_file()
    try:
        configured = list(credentials.iter_configured(storage))
    except credentials.CredentialsMalformed as error:
        return Finding("registry", "fail", str(error), "mend it, or remove it and: kitfs login HOST")
    if os.path.exists(own) and own.stat().st_mode & 0o077:  # noqa: PTH110 - as above
        return Finding("registry", "warn", f"others can read the credentials in {own}", f"chmod 600 {own}")
    absent = {name for one in configured for name in one.helpers if shutil.which(f"docker-credential-{name}") is None}
    if absent:
        program = f"docker-credential-{min(absent)}"
        return Finding("registry", "warn", f"{program} is not installed, which credentials are kept with",
                       f"install {program}, or: kitfs login HOST")  # fmt: skip
    hosts = sorted({host for one in configured for host in one.hosts})
    return Finding("registry", "ok", f"credentials for {', '.join(hosts)}" if hosts else "no credentials: as anybody")


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
