"""Workers that hang, that can not start, that die of what they are asked: what readers and ``kitfs ps`` see of it."""

import errno
import os
import signal

import pytest

pytestmark = pytest.mark.mount


def break_store(machine) -> list[tuple[str, bytes]]:
    """Take away what a worker needs to start; what was taken."""
    blobs = [path for path in (machine.home / "blobs/sha256").rglob("*") if path.is_file()]
    kept = [(path, path.read_bytes()) for path in blobs]
    for path in blobs:
        path.unlink()
    return kept


def test_a_mount_without_a_worker_is_given_up(machine):
    """Workers that can not even start: after its time the device is closed and readers get an error."""
    machine.environment["KITFS_NO_WORKER_S"] = "1.5"
    place = machine.mount()
    break_store(machine)
    (state,) = machine.states()
    os.kill(state.pid, signal.SIGKILL)
    assert machine.client.wait_ended(state.session, timeout_s=30)
    with pytest.raises(OSError) as caught:
        os.listdir(place)
    assert caught.value.errno == errno.ENOTCONN
    machine.run("umount", place)
