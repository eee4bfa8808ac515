"""A real registry on loopback, plain or with TLS and htpasswd; a proxy that counts; the real command line."""

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RUN = "from kitfs.cli.main import main; main()"
START_S = 30


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Registry:
    """A docker-registry process.

    Attributes:
        host: Its host and port.
        folder: Where it keeps things.
    """

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        config = folder / "registry.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {folder}/data}}\n"
            f"  delete: {{enabled: true}}\nhttp:\n  addr: {self.host}\n{extra}"
        )
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=self._log, stderr=self._log)
        for _ in range(START_S * 50):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, (folder / "log").read_text()
            select.select([], [], [], 0.02)
        pytest.fail("the registry does not listen")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


class Proxy:
    """Forwards connections to a port and counts what comes back; it can break each connection after some bytes.

    Attributes:
        host: Where it listens.
        size_down: Bytes that came from the server.
        size_up: Bytes that went to it.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.size_down = self.size_up = 0
        self.break_after = 0
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, sink, is_down in ((client, server, False), (server, client, True)):
                    thread = threading.Thread(target=self._forward, args=(source, sink, is_down), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_down: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(64 << 10):
                sink.sendall(data)
                passed += len(data)
                with self._changed:
                    if is_down:
                        self.size_down += len(data)
                    else:
                        self.size_up += len(data)
                    self._changed.notify_all()
                if is_down and self.break_after and passed >= self.break_after:
                    break
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def wait_for(self, size: int, *, is_up: bool = False) -> None:
        """Wait until so many bytes have passed."""
        with self._changed:
            passed = self._changed.wait_for(lambda: (self.size_up if is_up else self.size_down) >= size, 60)
        assert passed, (self.size_down, self.size_up)

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in self._sockets:
            one.close()


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """``start_registry(extra)``: a registry with more configuration; ended afterwards."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    started: list[Registry] = []

    def start(extra: str = "") -> Registry:
        folder = tmp_path / f"registry{len(started)}"
        folder.mkdir()
        started.append(Registry(folder, extra))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def registry(start_registry: Callable[..., Registry]) -> Registry:
    """A registry that speaks http and lets everybody do everything."""
    return start_registry()


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Proxy]:
    """A counting proxy before the registry."""
    made = Proxy(registry.port)
    yield made
    made.close()


class Node:
    """A machine with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "KITFS_HOME": str(folder / "store"),
            "KITOPS_HOME": str(folder / "kitops"),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_RUNTIME_DIR": str(folder),
        }
        for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE"):
            self.environment.pop(name, None)

    def command(self, *arguments: object) -> list[str]:
        """The command line of a verb."""
        return [sys.executable, "-c", RUN, *map(str, arguments)]

    def run(self, *arguments: object, status: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a verb and check its exit code; no traceback ever reaches a user."""
        done = subprocess.run(self.command(*arguments), env=self.environment, input=stdin, capture_output=True,
                              text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a verb that will be killed."""
        null = subprocess.DEVNULL
        return subprocess.Popen(self.command(*arguments), env=self.environment, stdin=null, stdout=null, stderr=null)


@pytest.fixture
def node(tmp_path: Path) -> Callable[[str], Node]:
    """``node(name)``: a machine."""
    return lambda name: Node(tmp_path / name)
