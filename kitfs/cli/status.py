"""``kitfs status``: daemon, mounts and store in one look, and with ``--watch`` again and again with rates.

Nothing is started, made or changed. Without a daemon the rest is shown, and the exit code says it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kitfs.cli.output import encode_table, format_size, print_json, print_result
from kitfs.cli.ps import complete, format_duration, with_reasons
from kitfs.cli.settings import Settings, verb
from kitfs.errors import KitfsError, UsageError

if TYPE_CHECKING:
    from kitfs.calls import MountState, StatusAnswer
    from kitfs.store.usage import StoreSummary

NO_DAEMON = 8
"""Exit code when no daemon answers."""

STORE_AGE_S = 10.0
"""For how long what was counted in the store is shown again: counting looks at each file."""


class Rates(NamedTuple):
    """What a mount does in a second.

    Attributes:
        reads: READ requests that reach its worker.
        size: Bytes in their answers.
        spans: Spans decoded.
    """

    reads: float = 0.0
    size: float = 0.0
    spans: float = 0.0


class Report(NamedTuple):
    """One look.

    Attributes:
        home: The store's folder.
        daemon: How the daemon is, None without one.
        trouble: Why it could not be asked, empty when it was, or when none runs.
        mounts: What it serves, and what nobody does.
        store: What the store holds; None when there is none, or it can not be told.
        store_trouble: Why it can not be told.
        rates: By session, of mounts that were seen before.
    """

    home: Path
    daemon: StatusAnswer | None
    trouble: str
    mounts: list[MountState]
    store: StoreSummary | None
    store_trouble: str
    rates: dict[str, Rates]


class Looker:
    """Looks again and again: remembers the counters of the look before, and what was counted in the store."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._before: dict[str, MountState] = {}
        self._before_s = 0.0
        self._store: tuple[StoreSummary | None, str] = (None, "")
        self._store_s = -STORE_AGE_S

    def look(self) -> Report:
        """How everything is now."""
        answer, trouble = self._ask()
        served = answer.mounts if answer else []
        now_s = time.monotonic()
        rates = {one.session: self._rate(one, now_s) for one in served if one.session in self._before}
        self._before, self._before_s = {one.session: one for one in served}, now_s
        if now_s - self._store_s >= STORE_AGE_S:
            self._store, self._store_s = self._count(), now_s
        mounts = complete(self._settings, served)
        return Report(self._settings.home, answer, trouble, mounts, *self._store, rates)

    def _ask(self) -> tuple[StatusAnswer | None, str]:
        from kitfs import client

        try:
            return client.find_status(self._settings.home, self._settings.socket), ""
        except KitfsError as error:
            return None, str(error)

    def _rate(self, now: MountState, now_s: float) -> Rates:
        before, past_s = self._before[now.session], max(now_s - self._before_s, 0.001)
        names = ("reads", "bytes_read", "spans_decoded")
        return Rates(*(max(getattr(now, name) - getattr(before, name), 0) / past_s for name in names))

    def _count(self) -> tuple[StoreSummary | None, str]:
        from kitfs.errors import NotFoundError
        from kitfs.store.usage import summarise

        try:
            with self._settings.open_store(create=False) as store:
                return summarise(store.layout, store.index), ""
        except NotFoundError:
            return None, ""
        except (KitfsError, OSError) as error:
            return None, str(error)


@verb("status", short_help="Show daemon, mounts and store.",
      examples=["kitfs status", "kitfs status --watch", "kitfs status --format json"])  # fmt: skip
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), metavar="SECONDS",
              help="Time between two looks of --watch (default: 1).")  # fmt: skip
def status(settings: Settings, watch: bool, interval: float | None) -> int:
    """Show how the daemon is, what is mounted and what the store holds.

    Exit code 8 when no daemon answers; mounts that are dead or absent, and the store, are shown all the same.
    --watch redraws on a terminal and prints a line for each look otherwise, with --format json an object.
    With -q the sessions of what is not well are printed.
    """
    if watch and settings.quiet:
        raise UsageError("--watch goes without --quiet")
    if interval is not None and not watch:
        raise UsageError("--interval goes with --watch")
    looker = Looker(settings)
    if watch:
        from kitfs.cli.watching import watch_status

        watch_status(settings, looker, 1.0 if interval is None else interval)
        return 0
    report = looker.look()
    if settings.json:
        print_json(encode_report(report))
    elif settings.quiet:
        for one in report.mounts:
            if one.state in ("starting", "dead", "absent"):
                print_result(one.session)
    else:
        print_result(format_report(report))
    return 0 if report.daemon else NO_DAEMON


def encode_report(report: Report) -> dict[str, Any]:
    """A report for programs."""
    import msgspec

    def encode(one: MountState) -> dict[str, Any]:
        rates = report.rates.get(one.session)
        fields: dict[str, Any] = msgspec.to_builtins(one)
        return fields | ({f"{name}_per_second": round(value, 1) for name, value in _name_rates(rates)} if rates else {})

    daemon: dict[str, Any] | None = None
    if report.daemon:
        daemon = msgspec.to_builtins(report.daemon)
        del daemon["mounts"]
        daemon["uptime_s"] = round(time.time() - report.daemon.started_s, 3)
    return {
        "home": str(report.home),
        "daemon": daemon,
        "error": report.trouble or report.store_trouble,
        "mounts": [encode(one) for one in report.mounts],
        "store": report.store._asdict() if report.store else None,
    }


def _name_rates(rates: Rates) -> list[tuple[str, float]]:
    return [("reads", rates.reads), ("bytes", rates.size), ("spans", rates.spans)]


def format_report(report: Report) -> str:
    """A report for people: three parts, each with a blank line between."""
    parts = [_format_daemon(report), _format_mounts(report), _format_store(report)]
    return "\n\n".join(parts)


def replace_line(daemon: StatusAnswer) -> str:
    """The line that puts a daemon of the installed version in place of one that runs."""
    user = "" if os.geteuid() == 0 else "--user "
    return f"systemctl {user}restart kitfs" if daemon.is_service else "kitfs daemon --replace"


def _format_daemon(report: Report) -> str:
    daemon = report.daemon
    if daemon is None:
        why = report.trouble or "none runs; a mount starts one"
        return _format_pairs("DAEMON", [("state", why)])
    from kitfs import __version__

    skew = "" if daemon.version == __version__ else f", this command is {__version__}: {replace_line(daemon)}"
    zygote = f"process {daemon.zygote}" if daemon.zygote else "none"
    restarts = f", {daemon.zygote_restarts} died before it" if daemon.zygote_restarts else ""
    uptime = f", up {format_duration(int(time.time() - daemon.started_s))}" if daemon.started_s else ""
    pairs = [
        ("state", f"process {daemon.pid}{uptime}"),
        ("version", daemon.version + skew),
        ("socket", daemon.socket),
        ("zygote", zygote + restarts),
        ("passthrough", f"off: {daemon.passthrough}" if daemon.passthrough else "on"),
        ("metrics", daemon.metrics or "off"),
    ]
    for lack in daemon.degraded:
        pairs.append(("degraded", lack.what))
        if lack.mend:
            pairs.append(("", lack.mend))
    return _format_pairs("DAEMON", pairs)


def _format_mounts(report: Report) -> str:
    """The mounts as a table, with rates where there are any."""
    headers, rows = _mount_rows(report)
    return _trim(encode_table(headers, rows)) if rows else "MOUNTS\nnone"


def _mount_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the mounts; rates and reasons only where there are any."""
    rated = ["READS/S", "READ/S"] if report.rates else []
    headers = ["REFERENCE", "DIRECTORY", "STATE", "NATIVE", *rated, "READ", "SPANS", "UPTIME", "RESTARTS", "PID"]
    rows = []
    for one in report.mounts:
        rates = report.rates.get(one.session, Rates())
        row = [one.reference, one.mountpoint, one.state, f"{int(one.native * 100)}%"]
        row += [f"{rates.reads:.0f}", format_size(int(rates.size))] if rated else []
        row += [format_size(one.bytes_read), str(one.spans_decoded), format_duration(int(one.uptime_s))]
        rows.append([*row, str(one.restarts), str(one.pid or "-")])
    return with_reasons(headers, rows, report.mounts)


def _format_store(report: Report) -> str:
    store = report.store
    if store is None:
        return _format_pairs("STORE", [("home", str(report.home)), ("state", report.store_trouble or "not made yet")])
    share = f" of {format_size(store.disk_size)}" if store.disk_size else ""
    return _format_pairs("STORE", [
        ("home", str(report.home)),
        ("size", format_size(store.size)),
        ("free", f"{format_size(store.disk_free)}{share} on its disk"),
        ("modelkits", str(store.modelkits)),
        ("layers", str(store.layers)),
        ("members", f"{store.members} as files, {format_size(store.members_size)}"),
    ])  # fmt: skip


def _format_pairs(title: str, pairs: list[tuple[str, str]]) -> str:
    return _trim(encode_table([title, ""], [list(pair) for pair in pairs]))


def _trim(table: str) -> str:
    return "\n".join(line.rstrip() for line in table.splitlines())
