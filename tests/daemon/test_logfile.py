"""The log of a daemon in the background: bounded while it is written, in the form and from the level asked for."""

import json
import os
import signal
from pathlib import Path

import pytest

from kitfs import client
from kitfs.daemon.logfile import bound_log, log_path


@pytest.mark.parametrize("size", [0, 1000, 10_000, 10_001, 1_000_000])
def test_a_log_that_is_too_long_loses_its_older_half_in_whole_lines(tmp_path, size):
    """What is left begins with a line and ends as it did; others who have it open go on behind that."""
    path = tmp_path / "log"
    lines = b"".join(b"line %d\n" % number for number in range(size // 6))[:size]
    path.write_bytes(lines)
    ours, other = (os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2))
    bound_log(ours, 10_000)
    os.write(other, b"new\n")
    os.close(ours)
    os.close(other)
    kept = path.read_bytes()
    if len(lines) <= 10_000:
        assert kept == lines + b"new\n"
        return
    assert 4000 < len(kept) < 5100 and kept.startswith(b"line ") and (lines + b"new\n").endswith(kept)


def test_a_daemon_bounds_what_was_there_before(home: Path, runtime: Path, stopped_after):
    """A log of 3 MiB of a daemon before it is cut when one starts, and its end is kept."""
    running = client.ensure_daemon(home, None)
    path = log_path(running.path)
    running.stop()
    path.write_bytes(b"old\n" * (3 << 18) + b"the last\n")
    client.ensure_daemon(home, None).ping()
    size = path.stat().st_size
    assert size < 1 << 20 and b"the last\n" in path.read_bytes()[-2000:]


def test_daemon_and_children_log_as_their_environment_says(home: Path, runtime: Path, stopped_after, wait_for_end):
    """One object a line from each, and the zygote's successor too: they inherit what the first was told."""
    asked = {"KITFS_LOG_FORMAT": "json", "KITFS_LOG_LEVEL": "info"}
    running = client.ensure_daemon(home, None, lambda: os.environ | asked)
    answer = client.find_status(home, None)
    assert answer is not None
    os.kill(answer.zygote, signal.SIGKILL)
    wait_for_end(answer.zygote)
    while (again := client.find_status(home, None)) is None or again.zygote in (0, answer.zygote):
        pass
    assert again.zygote_restarts == 1
    running.stop()
    lines = [json.loads(line) for line in log_path(running.path).read_text().splitlines()]
    assert {line["process"] for line in lines} >= {"kitfs-daemon"}
    assert any("zygote" in line["message"] and line["level"] == "warn" for line in lines)
    assert lines[-1]["message"] == "the daemon ends"
