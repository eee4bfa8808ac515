"""``Prepare``: a worker makes a session before anything is mounted, and nothing of it is left when no mount follows."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from kitfs import control
from kitfs.calls import PrepareAnswer, PrepareCall
from kitfs.client import ImportDue
from kitfs.daemon import server
from kitfs.daemon.forker import Forker
from kitfs.daemon.keepers import Keepers
from kitfs.daemon.server import Server
from kitfs.daemon.table import Table
from kitfs.errors import BusyError, KitfsError, MalformedError, NotFoundError, UsageError
from kitfs.modelkit.pack import pack
from kitfs.oci.reference import parse_reference
from kitfs.store.sessions import iter_sessions
from kitfs.store.store import Store

CALL = PrepareCall("sample:1", "/mnt/model")
PREPARE = (
    "import signal, sys; from pathlib import Path; from kitfs import client\n"
    "from kitfs.calls import PrepareCall\n"
    "prepared = client.Client(Path(sys.argv[1])).prepare(PrepareCall('sample:1', '/mnt/model'))\n"
    "print(prepared.session, flush=True); signal.pause()"
)


@pytest.fixture(autouse=True)
def sample(home, tmp_path):
    """The store holds ``sample:1``."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Kitfile").write_text("manifestVersion: 1.0.0\npackage:\n  name: sample\nmodel:\n  path: weights.bin\n")
    (context / "weights.bin").write_bytes(b"x" * 1000)
    with Store.open(home) as store:
        pack(store, context, None, [parse_reference("sample:1")])


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(daemon) -> list[int]:
    (zygote,) = children_of(daemon.ping().pid)
    return children_of(zygote)


def sessions_in(home: Path) -> list[str]:
    return [path.name for path in (home / "sessions").iterdir()]


def abandon(prepared) -> None:
    """Leave as a client does whose mount went wrong, and wait for the daemon."""
    with contextlib.suppress(InterruptedError), prepared:
        raise InterruptedError


def test_a_prepared_session_is_held_and_ends_with_its_connection(daemon, home):
    """The record has the caller's owner, GC sees it alive; afterwards there is neither it nor its worker."""
    prepared = daemon.prepare(CALL)
    assert prepared.reference == "sample:1"
    with Store.open(home) as store:
        ((record, alive),) = iter_sessions(store.layout)
    assert alive and record.id == prepared.session
    assert (record.uid, record.gid, record.mountpoint) == (os.geteuid(), os.getegid(), "/mnt/model")
    assert len(record.manifests) == 1
    assert len(workers_of(daemon)) == 1
    assert daemon.list_mounts() == []
    abandon(prepared)
    assert sessions_in(home) == [] and workers_of(daemon) == []


def test_what_can_not_be_mounted_is_refused_in_its_category(daemon, home):
    """Not found, malformed: as if the client had looked itself, hint included; nothing is left."""
    with pytest.raises(NotFoundError, match="other:9 is not in the store") as caught:
        daemon.prepare(PrepareCall("other:9", "/mnt/model"))
    assert "kitfs list" in caught.value.hint
    with pytest.raises(MalformedError):
        daemon.prepare(PrepareCall("Not//a:reference", "/mnt/model"))
    assert sessions_in(home) == [] and workers_of(daemon) == []


def test_a_damaged_store_is_refused_before_anything_is_mounted(daemon, home):
    """A manifest whose bytes are gone is met while nothing is mounted yet."""
    for path in (home / "blobs/sha256").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(KitfsError, match="sha256"):
        daemon.prepare(CALL)
    assert sessions_in(home) == [] and workers_of(daemon) == []


def test_a_client_that_is_killed_before_it_mounts_leaves_nothing(daemon, home, wait_for_end):
    """SIGKILL between ``Prepare`` and ``Mount``: no session, no worker."""
    command = [sys.executable, "-c", PREPARE, str(daemon.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        session = process.stdout.readline().strip()
        assert f"{session}.json" in sessions_in(home)
        (worker,) = workers_of(daemon)
        process.kill()
    wait_for_end(worker)
    abandon(daemon.prepare(CALL))  # answered after the daemon has seen the end of the connection before
    assert sessions_in(home) == [] and workers_of(daemon) == []


def test_a_worker_that_is_killed_while_it_prepares_is_an_error(daemon, home):
    """It is not asked of another one: whoever called hears of it, and nothing is left."""
    abandon(daemon.prepare(CALL))  # a zygote that is still importing has other children
    lock = os.open(home / "gc.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with control.ControlConnection.connect(daemon.path) as connection:
            connection._socket.sendall(control.encode_call("Prepare", CALL))
            while not (workers := workers_of(daemon)):
                pass
            os.kill(workers[0], signal.SIGKILL)
            with pytest.raises(KitfsError, match="killed by signal 9"):
                control.parse_answer(connection._receive(time.monotonic() + 60), PrepareAnswer)
    finally:
        os.close(lock)
    assert sessions_in(home) == [] and workers_of(daemon) == []


@pytest.mark.mount
def test_a_worker_that_is_killed_before_the_mount_is_an_error(daemon, home, wait_for_end):
    """``Mount`` fails by name, lets go of the device (never mounted here), and nothing is left."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("/dev/fuse can not be opened")
    try:
        with pytest.raises(KitfsError), daemon.prepare(CALL) as prepared:
            (worker,) = workers_of(daemon)
            os.kill(worker, signal.SIGKILL)
            wait_for_end(worker)
            prepared.mount("0:1", device)
    finally:
        os.close(device)
    assert sessions_in(home) == [] and daemon.list_mounts() == []


def test_a_connection_prepares_one_session(daemon, home):
    """A second ``Prepare`` is a usage error and leaves the first alone."""
    with control.ControlConnection.connect(daemon.path) as connection:
        connection.call("Prepare", CALL, PrepareAnswer)
        with pytest.raises(UsageError, match="already"):
            connection.call("Prepare", CALL, PrepareAnswer)
        assert len([name for name in sessions_in(home) if name.endswith(".json")]) == 1
        connection.finish()
    assert sessions_in(home) == []


def test_a_daemon_with_a_prepared_session_does_not_stop(daemon):
    """What is about to be mounted counts as a mount."""
    prepared = daemon.prepare(CALL)
    with pytest.raises(BusyError):
        daemon.stop()
    abandon(prepared)
    daemon.stop()


def test_what_the_worker_can_not_see_of_kit_is_for_the_client(daemon, home, tmp_path):
    """kit's home in another mount namespace, say: the client is told to look itself."""
    with pytest.raises(ImportDue):
        daemon.prepare(PrepareCall("sample:1", "/mnt/model", kitops_home=str(tmp_path / "absent")))
    assert sessions_in(home) == [] and workers_of(daemon) == []


async def test_a_prepared_session_that_is_not_mounted_in_time_ends(home, runtime, monkeypatch):
    """A client that hangs keeps neither session nor worker."""
    monkeypatch.setattr(server, "MOUNT_TIMEOUT_S", 0.1)
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(runtime / "s"))
    listener.listen(1)
    async with trio.open_nursery() as nursery:
        forker = Forker(home)
        nursery.start_soon(forker.run)
        nursery.start_soon(Server(Table(home, Keepers(forker), nursery), str(home), lambda: None).serve, listener)
        with trio.fail_after(60):
            async with await trio.open_unix_socket(str(runtime / "s")) as peer:
                await peer.send_all(control.encode_call("Prepare", CALL))
                said = b"".join([piece async for piece in peer])
        assert control.parse_answer(said.rstrip(b"\0"), PrepareAnswer).session
        assert sessions_in(home) == [] and children_of(forker.zygote_pid) == []
        nursery.cancel_scope.cancel()
    listener.close()
