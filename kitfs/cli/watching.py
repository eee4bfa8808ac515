"""``kitfs status --watch``: redrawn in place on a terminal, a line a look otherwise; ends well with Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from kitfs.cli.output import format_size, print_result
from kitfs.cli.status import Looker, Rates, Report, encode_report, format_report

if TYPE_CHECKING:
    from kitfs.cli.settings import Settings


def watch_status(settings: Settings, looker: Looker, interval_s: float) -> None:
    """Look until told to end: an interrupt is the way to end this, and no failure."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            if sys.stdout.isatty() and not settings.json:
                _redraw(looker, interval_s)
            else:
                _print_lines(settings, looker, interval_s)
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_lines(settings: Settings, looker: Looker, interval_s: float) -> NoReturn:
    while True:
        report = looker.look()
        print_result(_encode_json(report) if settings.json else format_line(report))
        time.sleep(interval_s)


def _redraw(looker: Looker, interval_s: float) -> NoReturn:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            clock = time.strftime("%H:%M:%S")
            text = f"{format_report(looker.look())}\n\n{clock}, again each {interval_s:g} s until Ctrl-C"
            live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(interval_s)


def _encode_json(report: Report) -> str:
    import msgspec

    return msgspec.json.encode({"time_s": round(time.time(), 3), **encode_report(report)}).decode()


def format_line(report: Report) -> str:
    """One look as one line: the mounts together."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    total = [sum(values) for values in zip(*report.rates.values(), strict=True)] or [*Rates()]
    states: dict[str, int] = {}
    for one in report.mounts:
        states[one.state] = states.get(one.state, 0) + 1
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    mounts = f"{len(report.mounts)} mounts" + (f" ({counted})" if counted else "")
    restarts = sum(one.restarts for one in report.mounts)
    daemon = f"daemon {report.daemon.pid}" if report.daemon else "no daemon"
    rates = f"{total[0]:.0f} reads/s, {format_size(int(total[1]))}/s, {total[2]:.0f} spans/s"
    lacks = f", degraded: {report.daemon.degraded[0].what}" if report.daemon and report.daemon.degraded else ""
    return f"{now} {daemon}, {mounts}, {restarts} restarts, {rates}{lacks}"
