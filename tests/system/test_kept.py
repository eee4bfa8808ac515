"""Mounts go on whatever of the service is killed, upgraded, or stopped: systemd keeps what keeps them alive."""

import json
import sys
import time

import pytest

pytestmark = pytest.mark.system

TIMEOUT_S = 30
VERSION = f"opt/kitfs/lib/python3.{sys.version_info.minor}/site-packages/kitfs/__init__.py"


def served(booted, *places: str, name: str = "session") -> dict[str, object]:
    """The session that each of some mount points shows, or something else of it, as far as they are served."""
    states = json.loads(booted.run("kitfs", "ps", "--format", "json"))
    return {state["mountpoint"]: state[name] for state in states if state["pid"] and state["mountpoint"] in places}


def wait_until_served(booted, before: dict[str, object]) -> None:
    """Workers come back to a daemon that does not know of them within half a second."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while served(booted, *before) != before:
        assert time.monotonic() < deadline_s


@pytest.fixture
def mounts(place) -> list[str]:
    """Two mounts."""
    return [place("a"), place("b", "packed:1")]


def test_next_daemon_has_the_same_mounts(booted, mounts):
    """After a restart, a kill of the daemon, and a stop and a start it serves what the one before did."""
    before = served(booted, *mounts)
    assert len(before) == len(mounts)
    booted.run("systemctl", "restart", "kitfs.service")
    assert served(booted, *mounts) == before
    booted.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "kitfs.service")
    assert served(booted, *mounts) == before
    booted.run("systemctl", "stop", "kitfs.socket", "kitfs.service")
    booted.run("systemctl", "start", "kitfs.socket", "kitfs.service")
    wait_until_served(booted, before)


def test_all_processes_killed_at_once_are_not_noticed(booted, mounts):
    """systemd has kept the devices: the workers of the next daemon answer what was asked meanwhile."""
    before = served(booted, *mounts)
    with booted.reading(*mounts) as readers:
        for _ in range(3):
            booted.run("systemctl", "kill", "--kill-whom=all", "--signal=KILL", "kitfs.service")
            readers.next()
    assert served(booted, *mounts) == before


def test_descriptors_are_given_back(booted, place):
    """What is unmounted is kept by nobody: three descriptors a mount, and as many as before when it is gone."""
    before = booted.show("kitfs.service", "NFileDescriptorStore")
    mount = place("a")
    assert int(booted.show("kitfs.service", "NFileDescriptorStore")) == int(before) + 3
    booted.run("kitfs", "umount", mount)
    assert booted.show("kitfs.service", "NFileDescriptorStore") == before
    booted.run("kitfs", "mount", "plain:1", mount)


@pytest.fixture
def upgrade(booted):
    """``upgrade()``: another version of the package lies on disk, until the test ends."""
    file = booted.root / VERSION
    text = file.read_text()
    yield lambda: file.write_text(text.replace("__version__ =", '__version__ = "99.0"  #'))
    file.write_text(text)
    booted.run("systemctl", "restart", "kitfs.service")


def test_upgrade_is_not_noticed(booted, mounts, upgrade):
    """The package is installed anew and the service restarted: daemon and workers are of the other version then."""
    before = served(booted, *mounts)
    workers = served(booted, *mounts, name="pid")
    with booted.reading(*mounts) as readers:
        upgrade()
        assert "systemctl restart kitfs" in booted.run("kitfs", "daemon", "--replace", status=7)
        booted.run("systemctl", "restart", "kitfs.service")
        readers.next()
        wait_until_served(booted, before)
        assert not set(workers.values()) & set(served(booted, *mounts, name="pid").values())


def test_hung_worker_is_in_no_daemons_way(booted, place):
    """A worker that is stopped, and with it its mount: the service restarts all the same, and the mount is healed."""
    mount = place("a")
    (worker,) = served(booted, mount, name="pid").values()
    booted.run("kill", "-STOP", worker)
    booted.run("systemctl", "restart", "kitfs.service")
    booted.run("cmp", "/srv/kit/weights.bin", f"{mount}/weights.bin")
    assert worker not in served(booted, mount, name="pid").values()
