"""Metrics of mounts: right, and never going backwards, whoever is killed; ``kitfs daemon --metrics``."""

import contextlib
import http.client
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.mount


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.host)


def scrape(path: Path) -> dict[str, float]:
    """Samples by name and labels."""
    with contextlib.closing(UnixConnection(str(path))) as connection:
        connection.request("GET", "/metrics")
        families = [*text_string_to_metric_families(connection.getresponse().read().decode())]
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in families
        for sample in family.samples
    }


def find(samples: dict[str, float], name: str) -> float:
    (value,) = (value for key, value in samples.items() if key.startswith(f"{name}["))
    return value


@pytest.fixture
def metrics(machine) -> Path:
    """The socket of a daemon's metrics; its workers serve all that is read, so that it is counted."""
    machine.environment["KITFS_NO_PASSTHROUGH"] = "1"
    path = Path(machine.environment["XDG_RUNTIME_DIR"], "metrics.sock")
    machine.run("daemon", "--metrics", path)
    return path


def test_they_say_what_a_mount_does(machine, metrics, weights):
    """What was read, by whom it is served and how native it is, with labels that name it; gone when it is gone."""
    place = machine.mount()
    assert (place / "weights.bin").read_bytes() == weights
    samples = scrape(metrics)
    (state,) = machine.states()
    assert find(samples, "kitfs_read_bytes_total") == state.bytes_read == len(weights)
    assert find(samples, "kitfs_opens_total") == 1 and find(samples, "kitfs_mount_served") == 1
    assert find(samples, "kitfs_native_ratio") == state.native
    (key,) = (key for key in samples if key.startswith("kitfs_opens_total"))
    for label in (state.session, "myllm:1", str(place)):
        assert f"'{label}'" in key
    machine.run("umount", place)
    samples = scrape(metrics)
    assert find(samples, "kitfs_mounts") == 0 and not any("opens_total" in key for key in samples)


def test_counters_never_go_backwards_while_workers_are_killed(machine, metrics, weights, wait_for_end):
    """Five kills under a reader that opens and reads, scraped all the time: each counter grows or stays."""
    place = machine.mount()
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            descriptor = os.open(place / "weights.bin", os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            wrong.extend([1] if os.pread(descriptor, 1 << 20, 1 << 20) != weights[1 << 20 : 2 << 20] else [])
            os.close(descriptor)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        before = scrape(metrics)
        for kills in range(1, 6):
            while not (pid := machine.states()[0].pid):
                assert reader.is_alive()
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
            opens = find(before, "kitfs_opens_total")
            while find(before, "kitfs_worker_restarts_total") < kills or find(before, "kitfs_opens_total") <= opens:
                now = scrape(metrics)
                assert not {key for key in before if "_total[" in key and now[key] < before[key]}
                assert reader.is_alive()
                before = now
    finally:
        stop.set()
        reader.join(60)
    assert wrong == [] and find(before, "kitfs_request_errors_total") == 0


def test_a_daemon_that_runs_without_them_is_named(machine, tmp_path):
    """``kitfs daemon --metrics`` fails where they are not served then, and what it names serves them."""
    machine.run("daemon")
    place = machine.mount()
    said = machine.run("daemon", "--metrics", tmp_path / "m.sock", status=1).stderr
    assert "nowhere" in said and "--replace" in said
    machine.run("daemon", "--metrics", "off")
    machine.run("daemon", "--replace", "--metrics", tmp_path / "m.sock")
    assert find(scrape(tmp_path / "m.sock"), "kitfs_mounts") == 1
    machine.run("daemon", "--metrics", "192.168.0.1:9464", status=2)
    assert os.listdir(place)


def test_metrics_of_the_configuration_hold_for_a_daemon_that_a_mount_starts(machine, tmp_path):
    """``[daemon]`` in config.toml; a value that is none is refused before anything is started."""
    config = tmp_path / "config" / "kitfs" / "config.toml"
    config.parent.mkdir(parents=True)
    machine.environment["XDG_CONFIG_HOME"] = str(config.parent.parent)
    config.write_text('[daemon]\nmetrics = "example.com:80"\n')
    (machine.folder / "mnt").mkdir()
    machine.run("mount", "myllm:1", machine.folder / "mnt", status=2)
    assert machine.processes() == []
    path = Path(machine.environment["XDG_RUNTIME_DIR"], "configured.sock")
    config.write_text(f'[daemon]\nmetrics = "{path}"\nlog_format = "json"\n')
    machine.mount()
    assert find(scrape(path), "kitfs_mounts") == 1
    assert str(path) in machine.run("status").stdout


def test_counters_outlive_the_daemon(machine, metrics, weights, wait_for_end):
    """It is killed, its zygote and worker live: the next one serves metrics where they were, and goes on counting."""
    place = machine.mount()
    assert (place / "weights.bin").read_bytes() == weights
    before = scrape(metrics)
    pid = machine.client.ping().pid
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    after: dict[str, float] = {}
    while not any(key.startswith("kitfs_mount_served[") and value for key, value in after.items()):
        with contextlib.suppress(OSError, http.client.HTTPException):
            after = scrape(metrics)
    assert machine.client.ping().pid != pid
    kept = [key for key in before if "_total[" in key and "zygote" not in key]
    assert len(kept) == 7 and {key: after[key] for key in kept} == {key: before[key] for key in kept}
