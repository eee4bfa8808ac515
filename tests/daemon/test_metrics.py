"""Metrics of a real daemon: what Prometheus reads, and that odd readers are bounded and harm nobody."""

import contextlib
import http.client
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kitfs import client
from kitfs.calls import StatusAnswer
from kitfs.daemon.metrics import CONNECTIONS_MAX, REQUEST_SIZE_MAX


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.host)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def start(home: Path, runtime: Path, stopped_after: None) -> Callable[[str], StatusAnswer]:
    """``start(address)`` starts a daemon with metrics there."""

    def run(address: str) -> StatusAnswer:
        client.ensure_daemon(home, None, lambda: os.environ | {"KITFS_METRICS": address})
        answer = client.find_status(home, None)
        assert answer is not None
        return answer

    return run


@pytest.fixture
def place(start: Callable[[str], StatusAnswer], runtime: Path) -> Iterator[Path]:
    """A unix socket at which a daemon serves metrics."""
    path = runtime / "metrics.sock"
    assert start(str(path)).metrics == str(path)
    yield path


def ask(path: Path, target: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Status, media type and body."""
    connection = UnixConnection(str(path))
    with contextlib.closing(connection):
        connection.request(method, target, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()


def read_values(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_prometheus_can_read_them(place):
    """Its own parser takes the text; names are the conventional ones, counters end in _total, units are last."""
    status, kind, text = ask(place)
    assert status == 200 and kind.startswith("text/plain")
    values = read_values(text)
    assert values["kitfs_mounts"] == 0 and values["kitfs_zygote_restarts_total"] == 0 and values["kitfs_degraded"] == 0
    assert values["kitfs_disk_size_bytes"] > values["kitfs_disk_free_bytes"] > 0
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert {kinds[name] for name in ("kitfs_read_bytes", "kitfs_worker_restarts")} == {"counter"}
    assert all(name.startswith("kitfs_") for name in kinds)
    assert "openmetrics" in ask(place, Accept="application/openmetrics-text")[1]


def test_metrics_lie_on_a_port_of_this_machine_too(start):
    """127.0.0.1 and nothing else answers."""
    port = free_port()
    assert start(f"127.0.0.1:{port}").metrics == f"127.0.0.1:{port}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics?x=1")
        assert read_values(connection.getresponse().read().decode())["kitfs_mounts"] == 0
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]


def test_without_an_address_nothing_is_imported_nor_listened_at(daemon):
    """They are off by default: the daemon has no library of them and no socket but its own."""
    pid = daemon.ping().pid
    assert "prometheus" not in Path(f"/proc/{pid}/maps").read_text()
    links = [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {str(link)[8:-1] for link in links if str(link).startswith("socket:[")}
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    assert [line[7] for line in unix if line[6] in inodes and line[3] == "00010000"] == [str(daemon.path)]


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", "/", 404), ("GET", "/metrics/x", 404), ("GET", "/../metrics", 404), ("POST", "/metrics", 405),
     ("HEAD", "/metrics", 200), ("DELETE", "/", 405)],
)  # fmt: skip
def test_nothing_but_metrics_can_be_asked_for(place, method, target, status):
    """Other paths and methods are refused; HEAD has no body."""
    found, _, body = ask(place, target, method)
    assert found == status and len(body) < 20


@pytest.mark.parametrize(
    "request_", [b"", b"\r\n\r\n", b"nonsense", b"GET\r\n\r\n", b"\xff\xfe\r\n\r\n", b"x" * 100_000]
)
def test_odd_requests_leave_others_served(place, request_):
    """Half requests, no HTTP, and endless heads: answered with an error or closed, and the next one is served."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(30)
        peer.connect(str(place))
        with contextlib.suppress(OSError):
            peer.sendall(request_)
            peer.shutdown(socket.SHUT_WR)
            assert len(peer.recv(REQUEST_SIZE_MAX)) < 200
    assert ask(place)[0] == 200


def test_silent_readers_are_bounded_and_time_out(place, daemon):
    """So many may keep silence, the next is closed at once; when their time is over others are served again."""
    silent = []
    for _ in range(CONNECTIONS_MAX + 8):
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(30)
        peer.connect(str(place))
        silent.append(peer)
    try:
        assert all(peer.recv(1) == b"" for peer in silent[CONNECTIONS_MAX:])
        daemon.ping()
        assert all(peer.recv(1) == b"" for peer in silent)
        assert ask(place)[0] == 200
    finally:
        for peer in silent:
            peer.close()


def test_an_address_that_is_taken_costs_metrics_and_not_the_daemon(start, home):
    """The daemon starts, and its status says what it lacks and why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = start(f"127.0.0.1:{port}")
    assert answer.metrics == ""
    (lack,) = answer.degraded
    assert f"127.0.0.1:{port}" in lack.what and "in use" in lack.what and "--metrics" in lack.mend


def test_what_is_no_socket_of_ours_is_not_replaced(start, runtime):
    """A file in the socket's place stays what it is."""
    path = runtime / "metrics.sock"
    path.write_text("mine")
    assert start(str(path)).metrics == ""
    assert path.read_text() == "mine"


def test_a_dead_daemons_socket_is_replaced_and_ours_goes(start, home, runtime):
    """Only its owner may connect: what is mounted is nobody else's business."""
    path = runtime / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert start(str(path)).metrics == str(path)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert ask(path)[0] == 200
    running = client.find_daemon(home, None)
    assert running is not None
    running.stop()
    assert not path.exists()
