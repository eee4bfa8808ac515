"""What ``kitfs doctor`` looks at of kitfs itself: daemon, sockets, what is mounted and what should be."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from kitfs import __version__, client, mountinfo, mounting
from kitfs.calls import MountState, StatusAnswer
from kitfs.cli.checkup import Finding
from kitfs.cli.mounts import has_wanted
from kitfs.cli.ps import DEAD, complete
from kitfs.cli.settings import Settings
from kitfs.cli.status import replace_line
from kitfs.control import ControlConnection, DaemonUnreachable, SocketUntrusted, socket_path
from kitfs.daemon.abilities import MENDS, NO_PRIVILEGE, find_obstacle
from kitfs.errors import KitfsError


def check_daemon(settings: Settings) -> tuple[Finding, StatusAnswer | None]:
    """Whether the daemon answers, is of this version, and lacks nothing."""
    path = socket_path(settings.home, settings.socket)
    try:
        status = client.find_status(settings.home, settings.socket)
    except SocketUntrusted as error:
        return Finding("daemon", "fail", str(error), f"sudo rm -r {shlex.quote(str(path))}"), None
    except DaemonUnreachable as error:
        pid = _find_listener(path)
        return Finding("daemon", "fail", f"process {pid}: {error}", f"kill -9 {pid}" if pid else error.hint), None
    except KitfsError as error:
        return Finding("daemon", "fail", str(error), error.hint or "kitfs daemon --replace"), None
    if status is None:
        return Finding("daemon", "ok", "none runs; a mount starts one"), None
    if status.version != __version__:
        detail = f"process {status.pid} is of version {status.version}, this is {__version__}"
        return Finding("daemon", "warn", detail, replace_line(status)), status
    if status.degraded:
        lack = status.degraded[0]
        more = f", and {len(status.degraded) - 1} more (kitfs status)" if status.degraded[1:] else ""
        return Finding(
            "daemon", "warn", f"process {status.pid}: {lack.what}{more}", lack.mend or replace_line(status)
        ), status
    return Finding("daemon", "ok", f"process {status.pid}"), status


def _find_listener(path: Path) -> int:
    """The process that listens at a socket, 0 when it can not be told."""
    with contextlib.suppress(KitfsError, OSError), ControlConnection.connect(path) as connection:
        return connection.peer_pid
    return 0


def check_passthrough(status: StatusAnswer | None) -> Finding:
    """Whether files that are plain in the store are read without a worker; of the daemon when one runs."""
    obstacle = find_obstacle() if status is None else status.passthrough
    if not obstacle:
        return Finding("passthrough", "ok", "native files cost what local files cost")
    if obstacle == NO_PRIVILEGE and os.geteuid() != 0:
        return Finding("passthrough", "ok", "workers serve all that users mount: it needs root")
    return Finding("passthrough", "warn", f"native files are served by workers: {obstacle}", MENDS.get(obstacle, ""))


def check_sockets(settings: Settings) -> Finding:
    """Whether the folder of the sockets is ours alone, and each socket in it has somebody who listens."""
    folder = socket_path(settings.home, settings.socket).parent
    try:
        status = folder.lstat()
    except OSError:
        return Finding("sockets", "ok", f"there is no {folder} yet")
    if settings.socket is None:
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return Finding("sockets", "fail", f"{folder} is not a folder of yours", f"sudo rm -r {folder}")
        if status.st_mode & 0o022:
            return Finding("sockets", "fail", f"others can write to {folder}", f"chmod go-w {folder}")
    stale = [path for path in sorted(folder.glob("*.sock")) if _is_stale(path)]
    if stale:
        names = shlex.join(map(str, stale))
        return Finding("sockets", "warn", f"nobody listens at {len(stale)} socket(s) in {folder}", f"rm {names}")
    return Finding("sockets", "ok", str(folder))


def _is_stale(path: Path) -> bool:
    """Whether nobody listens at a socket; asked without waiting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def check_dead(settings: Settings, served: Sequence[MountState]) -> Finding:
    """Whether something is mounted that nobody will ever serve again.

    A mount of another store, or whose session was collected, is none of ours: a warning, since others may see to it.
    """
    ours = {Path(one.mountpoint): one.reason for one in complete(settings, served) if one.state == DEAD}
    overlays = {overlay.lower: overlay.mount.mountpoint for overlay in mountinfo.find_overlays()}
    mounts = {overlays.get(mount.mountpoint, mount.mountpoint): mount for mount in mounting.find_mounts()}
    others = {place for place, mount in mounts.items() if place not in ours and mounting.is_dead(mount.mountpoint)}
    if ours or others:
        dead = sorted(ours or others)
        why = f" ({ours[dead[0]]})" if ours and ours[dead[0]] else "" if ours else ", which no session here is of"
        detail = f"nobody serves {', '.join(map(str, dead))}{why}"
        return Finding("mounts", "fail" if ours else "warn", detail, f"kitfs umount {shlex.quote(str(dead[0]))}")
    waiting = [one for one in served if one.state == "starting"]
    if waiting:
        why = f" ({waiting[0].reason})" if waiting[0].reason else ""
        return Finding("mounts", "warn", f"no worker serves {waiting[0].mountpoint}{why}", "kitfs status")
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
