"""``--log-format json``: all that a command says beside its result is one object a line, whatever it says."""

import json
import logging

import pytest

from kitfs import logs
from kitfs.cli.main import run


@pytest.fixture(autouse=True)
def quiet():
    """No handler and no level of a command stays with the tests that follow."""
    yield
    log = logging.getLogger("kitfs")
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, logs._StderrHandler)]
    log.setLevel(logging.NOTSET)


def read(err: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in err.splitlines()]
    assert all({"time", "level", "process", "pid", "message"} <= line.keys() for line in lines)
    return lines


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("info", "nothere:1"), 3, "nothere"),
        (("mount", "only-one"), 2, "mount wants"),
        (("inspect",), 2, "REFERENCE"),
        (("frobnicate",), 2, "frobnicate"),
        (("list", "--no-such-option"), 2, "--no-such-option"),
        (("daemon", "--metrics", "example.com:1"), 2, "own addresses"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_why_a_command_failed_is_an_object(filled, words, code, named, is_first):
    """With its message and what helps, where the option stands before the verb or after it; one line in all."""
    option = ("--log-format", "json")
    done = filled(*option, *words) if is_first else filled(*words, *option)
    (line,) = read(done.err)
    assert (done.code, done.out, line["level"], line["process"]) == (code, "", "error", "kitfs")
    assert named in line["message"] + line.get("hint", "")


def test_a_traceback_is_inside_of_the_object(kitfs, capsys):
    """--log-level debug says where, and the line stays one."""
    assert run(["info", "nothere:1", "--log-format", "json", "--log-level", "debug"]) == 3
    (line,) = read(capsys.readouterr().err)
    assert line["traceback"].startswith("Traceback") and "kitfs/cli/" in line["traceback"]


def test_progress_and_warnings_are_objects(filled, tmp_path):
    """What is said of a step, and what is not as it should be, with the result untouched."""
    folder = tmp_path / "kit"
    folder.mkdir()
    (folder / "Kitfile").write_text("manifestVersion: 1.0.0\npackage: {name: t}\nmodel: {name: m, path: w}\n")
    (folder / "w").write_bytes(b"w" * 1000)
    done = filled("pack", folder, "-t", "new:1", "--log-format", "json", "--progress", "plain")
    assert done.code == 0 and done.out.startswith("Model saved: ")
    assert {line["level"] for line in read(done.err)} == {"info"}


def test_the_environment_and_the_order_of_options(kitfs, monkeypatch):
    """KITFS_LOG_FORMAT holds where no flag says otherwise."""
    monkeypatch.setenv("KITFS_LOG_FORMAT", "json")
    assert read(kitfs("info", "nothere:1").err)[0]["level"] == "error"
    assert kitfs("info", "nothere:1", "--log-format", "text").err.startswith("kitfs: ")


@pytest.mark.parametrize(("level", "count"), [("error", 1), ("warn", 2), ("info", 3), ("debug", 4)])
@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_of_the_code_below_follows_the_level(kitfs, capsys, level, count, form):
    """What modules log comes out in the form that was asked for, from the level on."""
    kitfs("version", "--log-level", level, "--log-format", form)
    log = logging.getLogger("kitfs.tests")
    for say in (log.error, log.warning, log.info, log.debug):
        say("of %s", "it")
    err = capsys.readouterr().err
    if level != "warn" or form == "json":
        assert len(err.splitlines()) == count
    if form == "json":
        assert {line["logger"] for line in read(err)} == {"kitfs.tests"}
    elif level != "warn":
        assert err.startswith("kitfs: error: of it\n")
