"""A real daemon for a store of its own, stopped by pid whatever happens."""

import contextlib
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitfs import client
from kitfs.control import DaemonUnreachable, SocketUntrusted
from kitfs.store.store import Store


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="kitfs-run-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def home(store_home: Path) -> Path:
    """An empty store."""
    Store.open(store_home).close()
    return store_home


@pytest.fixture
def daemon(home: Path, runtime: Path) -> Iterator[client.Client]:
    """A daemon that serves ``home``."""
    running = client.ensure_daemon(home, None)
    yield running
    stop(home)


@pytest.fixture
def stopped_after(home: Path, runtime: Path) -> Iterator[None]:
    """Whatever daemon serves ``home`` when the test ends is stopped."""
    yield
    stop(home)


def stop(home: Path) -> None:
    """End the daemon of a store, if there is one, and wait for it."""
    with contextlib.suppress(DaemonUnreachable, SocketUntrusted):
        running = client.find_daemon(home, None)
        if running is not None:
            pid = running.ping().pid
            os.kill(pid, signal.SIGTERM)
            wait_for_end(pid)


def wait_for_end(pid: int, timeout_s: float = 20.0) -> None:
    """Wait until a process is gone; it need not be a child."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], timeout_s)[0], f"process {pid} does not end"
    finally:
        os.close(process)


@pytest.fixture(name="wait_for_end")
def wait_for_end_fixture() -> object:
    """``wait_for_end(pid)``."""
    return wait_for_end
