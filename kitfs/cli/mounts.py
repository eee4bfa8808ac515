"""``kitfs mount``, ``daemon``: what a command does around the daemon.

The command has the daemon prepare a session, mounts in its own process and namespace, and hands the device over. When
``mount`` returns, ``ls`` works; when it fails, nothing is mounted and no session is left. With a daemon running it
imports nothing of the store: that alone took 24 ms.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.config import Policy, check_materialise, read_cache_settings, read_daemon_environment
from kitfs.cli.output import say, warn
from kitfs.cli.settings import Settings, verb
from kitfs.errors import KitfsError, UsageError

if TYPE_CHECKING:
    from kitfs.calls import PrepareCall
    from kitfs.client import Client, Preparation
    from kitfs.mounting import KitfsMount, Mountpoint
    from kitfs.oci.reference import Reference
    from kitfs.store.store import Store

ALL_SOURCE = "kitfs"
"""Source (``fsname``) of a mount of the whole store."""

_IGNORED = {
    "ro",
    "nosuid",
    "nodev",
    "atime",
    "noatime",
    "relatime",
    "default_permissions",
    "defaults",
}
"""Options that ask for what a mount is anyway, or that change nothing in it."""


_OPTIONS = "ro, noexec, modes=kit|tar, nometa, allow_other, noallow_other, materialise=auto|never|always, fsname=NAME"


class OptionUnknown(UsageError):
    """A mount option that kitfs does not have."""

    hint = f"options: {_OPTIONS}"


class MetricsElsewhere(KitfsError):
    """The daemon does not serve metrics where it was asked to."""

    hint = "kitfs daemon --replace --metrics ADDRESS"


@verb("mount", short_help="Mount a ModelKit on an empty directory.",
      examples=["kitfs mount myllm:3.1.4 /mnt/model", "kitfs mount --all /mnt/models"])  # fmt: skip
@click.argument("words", nargs=-1, metavar="[REFERENCE] DIRECTORY")
@click.option("--all", "everything", is_flag=True, help="Show the whole store as /repository/tag/….")
@click.option("--filter", "filters", multiple=True, metavar="TYPES[:NAMES]",
              help="Only what matches, as for unpack; several add up.")  # fmt: skip
@click.option("--writable", is_flag=True, help="Writable: changes go to a staging directory.")
@click.option("--staging", type=click.Path(path_type=Path), metavar="DIRECTORY",
              help="The staging directory of --writable (default: one of the store's own).")  # fmt: skip
@click.option("--wanted", is_flag=True, help="Mount it again at each --restore, after a reboot too, until umount.")
@click.option("--restore", is_flag=True, help="Mount all that is wanted and not mounted.")
@click.option("-o", "options", multiple=True, metavar="OPTIONS",
              help=f"Comma separated: {_OPTIONS}.")  # fmt: skip
def mount(settings: Settings, words: tuple[str, ...], everything: bool, filters: tuple[str, ...], writable: bool,
          staging: Path | None, wanted: bool, restore: bool, options: tuple[str, ...]) -> int:  # fmt: skip
    """Mount a ModelKit on an empty directory; returns when it can be read.

    With --writable it can be changed: what is written goes to a staging directory, which outlives the mount. The same
    command mounts it again, over the very ModelKit that it was made over, wherever the tag points now. So does
    --restore with what was mounted with --wanted.
    """
    if restore:
        from kitfs.cli.wanting import restore_wanted

        if words or everything or filters or writable or staging or wanted or options:
            raise click.UsageError("--restore goes alone: what it mounts is recorded")
        return restore_wanted(settings)
    from kitfs.calls import PrepareCall

    if len(words) != (1 if everything else 2):
        raise click.UsageError("mount wants REFERENCE DIRECTORY, or --all DIRECTORY")
    _check_flags(everything, filters, writable, staging)
    parsed = MountOptions.parse(options)
    parsed.wanted = wanted
    cache = read_cache_settings()
    call = PrepareCall("" if everything else words[0], "", "writable" if writable else parsed.modes, parsed.meta)
    call.materialise, call.size_max = parsed.materialise or cache.materialise, cache.size_max
    call.filters = list(filters)
    mount_one(settings, call, Path(words[-1]), parsed, staging)
    return 0


def mount_one(
    settings: Settings, call: PrepareCall, directory: Path, options: MountOptions, staging: Path | None
) -> None:
    """Mount what a call asks for, writable when it says so.

    Raises:
        KitfsError: when it can not be mounted; nothing is then.
    """
    from kitfs import mounting

    if clear_dead(directory):
        say(f"what was mounted on {directory} was dead and is unmounted")
    if call.modes == "writable":
        from kitfs.cli.writable import mount_writable

        mount_writable(settings, call, directory, staging, options)
        return
    with mounting.check_mountpoint(directory, settings.home) as mountpoint:
        call.mountpoint = str(mountpoint.path)
        with prepare(settings, call) as prepared, wanted_if_asked(settings, prepared, mountpoint, options):
            source = prepared.reference if call.reference else ALL_SOURCE
            mount_prepared(settings, prepared, source, mountpoint, options)
    if not settings.quiet and settings.log_level in ("info", "debug"):
        say(f"{prepared.reference} is mounted on {mountpoint.path}")


def wanted_if_asked(
    settings: Settings, prepared: Preparation, mountpoint: Mountpoint, options: MountOptions, staging: str = ""
) -> contextlib.AbstractContextManager[None]:
    """Keeps what is mounted inside of it wanted, when it is to be; ``staging`` is its staging directory."""
    if not options.wanted:
        return contextlib.nullcontext()
    from kitfs.cli.wanting import keep_wanted

    return keep_wanted(settings, prepared.session, mountpoint.path, options, staging)


def clear_dead(directory: Path) -> bool:
    """Unmount what is mounted at a place and can never be served again, an overlay too. True when it was so."""
    from kitfs import mounting
    from kitfs.mountinfo import FUSE_OVERLAY, KERNEL_OVERLAY, find_at, read_mounts

    line = find_at(directory, ((line.mountpoint, line) for line in read_mounts()))
    if line is None or line.kind not in (KERNEL_OVERLAY, FUSE_OVERLAY):
        return mounting.clear_dead_mount(directory)
    from kitfs.overlay import clear_dead_overlay  # 10 ms that a mount of its own does not need

    return clear_dead_overlay(directory)


def _check_flags(everything: bool, filters: tuple[str, ...], writable: bool, staging: Path | None) -> None:
    if everything and (filters or writable):
        raise click.UsageError(f"{'--filter' if filters else '--writable'} goes with a REFERENCE, not with --all")
    if writable and filters:
        raise click.UsageError("--writable goes without --filter: what is hidden could not be committed")
    if staging is not None and not writable:
        raise click.UsageError("--staging goes with --writable")


class MountOptions:
    """What ``-o`` says."""

    def __init__(self) -> None:
        self.modes = "kit"
        self.meta = True
        self.allow_other: bool | None = None
        self.noexec = False
        self.source = ""
        self.wanted = False
        self.materialise: Policy | None = None

    @classmethod
    def parse(cls, options: tuple[str, ...]) -> MountOptions:
        """Read ``-o``.

        Raises:
            OptionUnknown: for an option that kitfs does not have.
            PolicyUnknown: for a ``materialise`` that it does not have.
        """
        parsed = cls()
        for option in ",".join(options).split(","):
            match option:
                case "modes=kit" | "modes=tar":
                    parsed.modes = option.removeprefix("modes=")
                case "meta" | "nometa":
                    parsed.meta = option == "meta"
                case "allow_other" | "noallow_other":
                    parsed.allow_other = option == "allow_other"
                case "exec" | "noexec":
                    parsed.noexec = option == "noexec"
                case _ if option.startswith("fsname="):
                    parsed.source = option.removeprefix("fsname=")
                case _ if option.startswith("materialise="):
                    parsed.materialise = check_materialise(option.removeprefix("materialise="))
                case _ if option and option not in _IGNORED:
                    raise OptionUnknown(f"unknown mount option {option!r}")
        return parsed


def prepare(settings: Settings, call: PrepareCall) -> Preparation:
    """Have the daemon prepare a session. What kit's storage has anew of the reference is imported first, here.

    A daemon is started only for what can be found, or what was before.
    """
    from kitfs import client
    from kitfs.control import DaemonUnreachable, socket_path

    if call.manifests:
        return ensure_daemon(settings).prepare(call)
    call.kitops_home = _find_kit_storage(settings)
    with contextlib.suppress(client.ImportDue, DaemonUnreachable):
        return client.Client(socket_path(settings.home, settings.socket)).prepare(call)
    look_for(settings, call)
    call.kitops_home = ""
    return ensure_daemon(settings).prepare(call)


def ensure_daemon(settings: Settings, metrics: str | None = None) -> Client:
    """The store's daemon; one that is started gets what flags, environment and configuration say of it."""
    from kitfs import client

    return client.ensure_daemon(settings.home, settings.socket, lambda: daemon_environment(settings, metrics))


def daemon_environment(settings: Settings, metrics: str | None) -> dict[str, str]:
    """The environment of a daemon; the log flags of a command are its own, unless it is ``kitfs daemon``."""
    flags: dict[str, str | None] = {"metrics": metrics}
    if click.get_current_context().info_name == "daemon":
        flags |= {name: getattr(settings, name) for name in ("log_format", "log_level") if name in settings.flags}
    return read_daemon_environment(None, **flags)


def _find_kit_storage(settings: Settings) -> str:
    """Where kit keeps its ModelKits, when it may be looked into, else empty."""
    return str(settings.kitops_home) if os.access(settings.kitops_home, os.R_OK | os.X_OK) else ""


def look_for(settings: Settings, call: PrepareCall) -> None:
    """Import what kit's storage has anew of a reference and its parents, and see that the store holds it.

    Raises:
        ModelKitNotFound: when it or a parent is nowhere.
    """
    from kitfs.modelkit.resolve import resolve
    from kitfs.oci.reference import parse_reference

    with settings.open_store() as store:
        if not call.reference:
            return
        reference = parse_reference(call.reference)
        if _find_kit_storage(settings):
            refresh_from_kit(settings, store, reference)
        resolve(store, reference)


def refresh_from_kit(settings: Settings, store: Store, reference: Reference) -> None:
    """Import what kit's storage has anew of a reference and its parents, and say so."""
    from kitfs.cli.progress import show_progress
    from kitfs.transfer.kit_refresh import refresh_from_kit_storage

    with show_progress(settings.progress) as progress:
        refresh = refresh_from_kit_storage(store, settings.kitops_home, reference, progress=progress)
    for warning in refresh.warnings:
        warn(warning)
    for move in refresh.moves:
        say(str(move))


def mount_prepared(
    settings: Settings, prepared: Preparation, source: str, mountpoint: Mountpoint, options: MountOptions
) -> None:
    """Mount, have the daemon serve it, set the read-ahead. Nothing is mounted when it raises."""
    from kitfs import mounting

    before = mounting.find_mounts()
    allow_other = mounting.others_permitted() if options.allow_other is None else options.allow_other
    if not mountpoint.is_still_there():
        raise mounting.MountpointUnusable(mountpoint.path, "it was swapped for something else meanwhile")
    wanted = mounting.mount_options(options.source or source, allow_other=allow_other, noexec=options.noexec)
    descriptor = mounting.mount_device(mountpoint.path, wanted)
    try:
        mounted = mounting.get_mounted(mountpoint, before)
        with _unmounted_on_failure(mounted):
            prepared.mount(mounted.device, descriptor)
    finally:
        os.close(descriptor)
    line = mounting.set_read_ahead(mounted.device)
    if line is not None and settings.log_level in ("info", "debug"):
        say(f"four times the speed of sequential reads: {line}")


@contextlib.contextmanager
def _unmounted_on_failure(mounted: KitfsMount) -> Iterator[None]:
    from kitfs import mounting

    try:
        yield
    except BaseException:
        with contextlib.suppress(KitfsError):
            mounting.unmount(mounted.mountpoint, lazy=True)
        raise


def has_wanted(home: Path) -> bool:
    """Whether any mount of a store is wanted: asked before anything of the store is imported."""
    return any((home / "sessions").glob("*.wanted"))


@verb("daemon", examples=["kitfs daemon --metrics 127.0.0.1:9464", "kitfs daemon --foreground --log-format json"])
@click.argument("action", required=False, type=click.Choice(["stop"]))
@click.option("--foreground", is_flag=True, help="Serve in this process until it is stopped; log on standard error.")
@click.option("--replace", is_flag=True, help="Have a daemon of this version take over; mounts are served on.")
@click.option("--metrics", metavar="ADDRESS",
              help="Serve Prometheus metrics: a unix socket's /PATH or a loopback [HOST:]PORT.")  # fmt: skip
def daemon(settings: Settings, action: str | None, foreground: bool, replace: bool, metrics: str | None) -> None:
    """Start the daemon when none runs, or stop it. Mounting starts it by itself.

    After an upgrade --replace puts a daemon and workers of the new version in place of those that run.

    The daemon logs as --log-format and --log-level say here.
    """
    from kitfs import client
    from kitfs.control import DaemonUnreachable
    from kitfs.daemon.address import parse_address

    if action == "stop":
        if foreground or replace or metrics is not None:
            raise click.UsageError("stop goes alone")
        running = client.find_daemon(settings.home, settings.socket)
        if running is None:
            raise DaemonUnreachable("no daemon runs for this store")
        running.stop()
        return
    if metrics is not None:
        parse_address(metrics)
    if foreground and replace:
        raise click.UsageError("--replace goes without --foreground")
    settings.open_store().close()
    if replace:
        client.replace_daemon(settings.home, settings.socket, lambda: daemon_environment(settings, metrics))
    elif foreground:
        from kitfs.daemon.main import serve

        os.environ.update(daemon_environment(settings, metrics))
        serve(settings.home, settings.socket)
        return
    else:
        ensure_daemon(settings, metrics)
    if metrics is not None:
        _check_metrics(settings, metrics)


def _check_metrics(settings: Settings, metrics: str) -> None:
    """See that metrics are served where they were asked for; the daemon itself serves mounts without them too.

    Raises:
        MetricsElsewhere: when they are not.
    """
    from kitfs import client

    answer = client.find_status(settings.home, settings.socket)
    if answer is not None and answer.metrics != ("" if metrics == "off" else metrics):
        lacks = [lack.what for lack in answer.degraded if metrics in lack.what]
        raise MetricsElsewhere(lacks[0] if lacks else f"the daemon that runs serves metrics {_place(answer.metrics)}")


def _place(metrics: str) -> str:
    return f"at {metrics}" if metrics else "nowhere"
