"""What processes of kitfs log, and in which form: text for people, or one JSON object a line.

A command logs on its standard error. The daemon and its children log where its standard error goes, and take form and
level from the environment (``KITFS_LOG_FORMAT``, ``KITFS_LOG_LEVEL``), which they inherit: so whoever starts another
of them need not know. In JSON an object is one line, tracebacks inside of it::

    {"time": "2026-11-25T15:40:01.123Z", "level": "warn", "process": "kitfs-daemon", "pid": 41, "logger":
     "kitfs.daemon.session", "message": "…", "session": "0123456789abcdef", "reference": "myllm:1", "traceback": "…"}

``session`` and ``reference`` are there where they are known: what was said by ``name_subject`` in this task, or for
the whole process. Imports ``logging`` (8 ms), so commands import this only when it is asked for. Opens no file.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

FORMAT_VARIABLE = "KITFS_LOG_FORMAT"
LEVEL_VARIABLE = "KITFS_LOG_LEVEL"

LEVELS = {"error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
MESSAGE_SIZE_MAX = 16 << 10
"""Longest message and longest traceback, in characters: what comes from outside must not fill a disk."""

_TEXT = "%(asctime)s %(process)d %(levelname)s %(message)s"
_NAMES = {number: name for name, number in LEVELS.items()} | {logging.CRITICAL: "error"}


class Subject(NamedTuple):
    """What a line of the log is about.

    Attributes:
        session: Identity of the session, empty for none.
        reference: What is mounted, as it is shown.
    """

    session: str = ""
    reference: str = ""


_task_subject: contextvars.ContextVar[Subject] = contextvars.ContextVar("kitfs_log_subject")


class _Process:
    """What is true of all that this process logs."""

    name = "kitfs"
    subject = Subject()


def name_process(name: str) -> None:
    """Set the name under which this process logs."""
    _Process.name = name


def name_subject(session: str, reference: str, *, everywhere: bool = False) -> None:
    """Say what is logged about from now on: in this task and those that it starts, or everywhere in the process."""
    subject = Subject(session, reference)
    if everywhere:
        _Process.subject = subject
    else:
        _task_subject.set(subject)


def encode_line(level: str, message: str, **fields: Any) -> str:
    """One object of the log, without the line feed at its end; fields that are empty or None are left out.

    Everything but ASCII is escaped: no terminal is written to, and no byte of a name breaks the line.
    """
    now = time.time()
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    line: dict[str, Any] = {
        "time": f"{moment}.{int(now % 1 * 1000):03}Z",
        "level": level,
        "process": _Process.name,
        "pid": os.getpid(),
    }
    line["message"] = _cut(message)
    return json.dumps(line | {name: value for name, value in fields.items() if value})


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_SIZE_MAX else f"{text[:MESSAGE_SIZE_MAX]}… ({len(text)} characters)"


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        subject = _task_subject.get(_Process.subject)
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return encode_line(
            _NAMES.get(record.levelno, record.levelname.lower()),
            record.getMessage(),
            logger=record.name,
            session=subject.session,
            reference=subject.reference,
            traceback=_cut(trace),
        )


class CommandFormatter(logging.Formatter):
    """A record as a command says things to a person."""

    def format(self, record: logging.LogRecord) -> str:
        """``kitfs: warning: …``, with the traceback below where there is one."""
        text = f"kitfs: {record.levelname.lower()}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _StderrHandler(logging.Handler):
    """Writes each record with one write(2) to whatever standard error is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)


def configure(formatter: logging.Formatter, level: str, *, logger: str | None = None) -> None:
    """Log on standard error from now on, in place of what was set here before, for whichever logger.

    Args:
        formatter: The form.
        level: A key of ``LEVELS``.
        logger: Of which logger; None for all that is logged in this process.
    """
    for name in (None, "kitfs"):
        before = logging.getLogger(name)
        ours = [handler for handler in before.handlers if isinstance(handler, _StderrHandler)]
        for handler in ours:
            before.removeHandler(handler)
            before.setLevel(logging.NOTSET if name else logging.WARNING)
    target = logging.getLogger(logger)
    handler = _StderrHandler()
    handler.setFormatter(formatter)
    target.addHandler(handler)
    target.setLevel(LEVELS[level])


def configure_service(name: str, environ: Mapping[str, str] | None = None) -> None:
    """Log as the daemon and its children do; what ends a thread or is lost in a destructor is logged too.

    Args:
        name: Under which name.
        environ: Where form and level stand; what is none there is as if it were not.
    """
    name_process(name)
    environ = os.environ if environ is None else environ
    is_json = environ.get(FORMAT_VARIABLE) == "json"
    level = environ.get(LEVEL_VARIABLE, "")
    configure(JsonFormatter() if is_json else logging.Formatter(_TEXT), level if level in LEVELS else "info")
    if is_json:
        log = logging.getLogger("kitfs")
        sys.excepthook = lambda kind, error, trace: log.critical("ends", exc_info=(kind, error, trace))
        sys.unraisablehook = lambda lost: log.error("%s", lost.err_msg or "ignored", exc_info=lost.exc_value)
        threading.excepthook = lambda lost: log.error("a thread ends", exc_info=lost.exc_value)
