"""Results on standard output, everything else on standard error: text, or with ``--log-format json`` one object a line.

What is said is printed whatever the log level; the log of the code below is not, unless it is a warning or asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import click

from kitfs.errors import KitfsError


class OutputFailed(KitfsError):
    """The result could not be written; what the command did is done."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"writing to standard output: {reason}")
        self.reason = reason


class _Voice:
    """How this process says things."""

    is_json = False
    logs = False


def speak(form: str) -> None:
    """Say things in a form, ``text`` or ``json``, from now on."""
    _Voice.is_json = form == "json"


def configure_logs(form: str, level: str) -> None:
    """Say things, and log, in a form; the log from a level on. Nothing is to be done for what is so anyway."""
    speak(form)
    if form == "json" or level != "warn" or _Voice.logs:
        from kitfs import logs

        _Voice.logs = True
        logs.configure(logs.JsonFormatter() if form == "json" else logs.CommandFormatter(), level, logger="kitfs")


def print_result(text: str) -> None:
    """One line of the result, on standard output.

    Raises:
        OutputFailed: when it could not be written, as on a full disk; a closed pipe stays ``BrokenPipeError``.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(error.strerror or str(error)) from error


def say(text: str) -> None:
    """One line for the person, on standard error."""
    _tell("info", text, text)


def warn(text: str) -> None:
    """A warning, on standard error."""
    _tell("warn", text, f"kitfs: warning: {text}")


def report(text: str, hint: str = "", trace: str = "") -> None:
    """Why a command failed, and what helps, on standard error."""
    _tell("error", text, f"{trace}kitfs: {text}" + (f"\n  {hint}" if hint else ""), hint=hint, traceback=trace)


def _tell(level: str, message: str, text: str, **fields: str) -> None:
    if _Voice.is_json:
        from kitfs import logs

        text = logs.encode_line(level, message.strip(), **fields)
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    """A result as indented JSON (msgspec types are understood)."""
    import msgspec

    print_json_text(msgspec.json.encode(value))


def print_json_text(raw: bytes) -> None:
    """JSON that is written already, indented by two; its numbers and escapes stay as they are."""
    import msgspec

    print_result(msgspec.json.format(raw, indent=2).decode())


def encode_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as kit prints them: left aligned, three spaces between, the last one not padded."""
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers) - 1)]
    return "\n".join(
        "   ".join([*(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)), line[-1]])
        for line in lines
    )


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their headers, on standard output."""
    print_result(encode_table(headers, rows))


def format_size(size: int) -> str:
    """Bytes as kit writes them: ``0 B``, ``28.5 KiB``, ``4.5 MiB``; tenths are rounded down (kitops output/util.go)."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{math.floor(value * 10) / 10:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def format_path(path: bytes) -> str:
    """A path in a ModelKit for a person: what can not be printed, escape sequences among it, is shown escaped."""
    return format_text(path.decode("utf-8", "backslashreplace"))


def format_text(text: str) -> str:
    """One line of somebody else's for a person: when something in it can not be printed, all of it is escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
