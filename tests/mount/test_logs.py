"""The daemon's log as JSON while things go wrong: each line an object, with the mount that it is about."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from kitfs.daemon.logfile import log_path

pytestmark = pytest.mark.mount


def read_log(machine) -> list[dict[str, object]]:
    """All lines: one that is no object fails the test."""
    return [json.loads(line) for line in log_path(machine.client.path).read_text().splitlines()]


def test_daemon_and_worker_say_which_mount_they_mean(machine, import_gzip, wait_for_end):
    """A killed worker is the daemon's line, rot is the worker's; both name session and reference, as fields."""
    machine.environment |= {"KITFS_LOG_FORMAT": "json", "KITFS_MATERIALISE": "never"}
    digest = import_gzip("rotten", {"w.bin": os.urandom(4 << 20)})
    whole, place = machine.mount("whole"), machine.mount("mnt", "rotten:1")
    (blob,) = [path for path in (machine.home / "blobs").rglob("*") if path.name == str(digest)[7:]]
    by_place = {state.mountpoint: state for state in machine.states()}
    os.kill(by_place[str(whole)].pid, signal.SIGKILL)
    wait_for_end(by_place[str(whole)].pid)
    blob.chmod(0o600)
    with open(blob, "r+b") as file:
        file.seek(2 << 20)
        file.write(b"rot" * 1000)
    with contextlib.suppress(OSError):
        (place / "w.bin").read_bytes()
    os.listdir(whole)
    lines = read_log(machine)
    about = {(line["process"], line.get("session"), line.get("reference")) for line in lines if line["level"] != "info"}
    assert ("kitfs-daemon", by_place[str(whole)].session, "myllm:1") in about
    assert ("kitfs-worker", by_place[str(place)].session, "rotten:1") in about
    assert {line["pid"] for line in lines if line["process"] == "kitfs-daemon"} == {machine.client.ping().pid}


def test_a_mount_without_a_word_about_logs_logs_as_text(machine):
    """The flags of a command that starts a daemon are its own, and the daemon's form is text."""
    (machine.folder / "mnt").mkdir()
    machine.run("mount", "--log-format", "json", "--log-level", "error", "myllm:1", machine.folder / "mnt")
    text = log_path(Path(machine.client.path)).read_text()
    assert " INFO listening at " in text and not text.startswith("{")
