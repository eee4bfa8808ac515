"""The log: each record one line of JSON, whatever it says and wherever it is said."""

import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from kitfs import logs


@pytest.fixture
def logged():
    """``logged(level)`` begins to log as JSON; ``lines()`` is what was logged."""
    said = io.StringIO()
    log = logging.getLogger("kitfs.tests")
    handler = logging.StreamHandler(said)
    handler.setFormatter(logs.JsonFormatter())
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield log, lambda: [json.loads(line) for line in said.getvalue().splitlines()]
    log.removeHandler(handler)


@given(st.text(), st.text())
def test_whatever_is_said_is_one_line(message, reference):
    """Line feeds, escapes and odd characters of a message or a name neither break the line nor reach a terminal."""
    line = logs.encode_line("info", message, reference=reference)
    assert line.isascii() and line.isprintable()
    told = json.loads(line)
    assert told["message"] == message and told.get("reference", "") == reference


def test_a_line_says_when_who_and_what(logged):
    """Time in UTC, level, process, logger and message; fields without a value are not there."""
    log, lines = logged
    log.warning("%d of %s", 3, "four")
    (line,) = lines()
    assert line.pop("time").endswith("Z")
    expected = {"level": "warn", "process": "kitfs", "pid": os.getpid(), "message": "3 of four"}
    assert line == expected | {"logger": "kitfs.tests"}


def test_a_traceback_is_inside_of_its_object(logged):
    """One line, with the place in it."""
    log, lines = logged
    try:
        raise ValueError("of\nno use")
    except ValueError:
        log.exception("it failed")
    (line,) = lines()
    assert line["level"] == "error" and "test_logs.py" in line["traceback"] and "of\nno use" in line["traceback"]


def test_a_message_is_bounded(logged):
    """A megabyte of somebody else's words does not fill the log, and how much it was is said."""
    log, lines = logged
    log.info("x" * (1 << 20))
    (line,) = lines()
    assert len(line["message"]) < logs.MESSAGE_SIZE_MAX + 100 and line["message"].endswith("(1048576 characters)")


async def test_what_is_logged_in_a_task_names_its_session(logged):
    """Tasks have their own subject, those that they start have it too, and other tasks do not."""
    log, lines = logged

    async def serve(session: str) -> None:
        logs.name_subject(session, f"{session}:1")
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as inner:
            inner.start_soon(say, session)

    async def say(text: str) -> None:
        log.info(text)

    async with trio.open_nursery() as nursery:
        for name in ("one", "two", "three"):
            nursery.start_soon(serve, name)
    log.info("none")
    assert {(line["message"], line.get("session"), line.get("reference")) for line in lines()} == {
        ("one", "one", "one:1"),
        ("two", "two", "two:1"),
        ("three", "three", "three:1"),
        ("none", None, None),
    }


def test_a_process_with_one_subject_names_it_in_all_threads(logged, monkeypatch):
    """A worker's threads are not tasks; what they log is about its mount all the same."""
    log, lines = logged
    monkeypatch.setattr(logs._Process, "subject", logs.Subject())
    logs.name_subject("a1", "myllm:1", everywhere=True)
    thread = threading.Thread(target=log.info, args=("from a thread",))
    thread.start()
    thread.join()
    assert [(line["session"], line["reference"]) for line in lines()] == [("a1", "myllm:1")]


@pytest.mark.parametrize(
    ("end", "named"),
    [
        ("raise RuntimeError('at its end')", "at its end"),
        ("t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", "ZeroDivisionError"),
        ("class C:\n    def __del__(self): 1 / 0\nC()", "ZeroDivisionError"),
    ],
)
def test_what_ends_a_process_or_is_lost_is_json_too(end, named):
    """An exception that nobody caught, in a thread, or in a destructor is a line of the log, and no bare traceback."""
    script = f"import threading\nfrom kitfs import logs\nlogs.configure_service('kitfs-x')\n{textwrap.dedent(end)}\n"
    environment = os.environ | {"KITFS_LOG_FORMAT": "json", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["process"] == "kitfs-x" and named in line["traceback"]


@pytest.mark.parametrize(("level", "count"), [("error", 1), ("warn", 2), ("info", 3), ("debug", 4), ("nonsense", 3)])
def test_the_level_comes_from_the_environment(level, count):
    """A service logs from its level on; what is no level is as if nobody had said any."""
    script = (
        "import logging\nfrom kitfs import logs\nlogs.configure_service('kitfs-x')\n"
        "log = logging.getLogger('kitfs.x')\nfor say in (log.error, log.warning, log.info, log.debug): say('x')\n"
    )
    environment = os.environ | {"KITFS_LOG_LEVEL": level, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("KITFS_LOG_FORMAT", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == count
