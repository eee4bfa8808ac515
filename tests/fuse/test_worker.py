"""The worker's life: it ends with its mount, not with its daemon."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from kitfs.fuse.guard import Counters
from kitfs.fuse.worker import encode_counters, parse_question
from kitfs.modelkit.pack import pack
from kitfs.modelkit.served import NativeShare
from kitfs.modelkit.sessions import prepare_session
from kitfs.oci.reference import parse_reference
from kitfs.store.sessions import SessionOptions
from kitfs.store.store import Store

READ = "import sys; print(open(sys.argv[1] + '/' + sys.argv[2], 'rb').read(6))"


@pytest.mark.mount
@pytest.mark.root
def test_worker_ends_with_zero_when_the_mount_is_gone(mount):
    """After an unmount the worker leaves by itself and cleanly."""
    assert mount.run(READ, "hello.txt") == r"b'hello\n'"
    mount.unmount()
    assert mount.worker.wait(30) == 0


@pytest.mark.mount
@pytest.mark.root
def test_worker_serves_on_when_the_daemon_is_gone(mount):
    """Without a daemon at the other end of its socket a worker still answers, and still ends with its mount."""
    mount.leave()
    assert mount.run(READ, "big.bin") == r"b'\x00\x00\x00\x00\x00\x00'"
    mount.unmount()
    assert mount.worker.wait(30) == 0


@pytest.mark.mount
@pytest.mark.root
def test_worker_passes_over_what_it_does_not_understand(mount):
    """Odd datagrams get no answer and do no harm."""
    for datagram in (b"{", b"[]", b'{"stats": 1}', b"\xff\xfe", b"[" * 4000):
        mount.say(datagram)
    assert mount.stats()["reads"] == 0


@pytest.mark.parametrize("datagram", [b"", b"null", b'{"stats": "true"}', b'{"stat": true}', b"\xff", b"[" * 100_000])
def test_only_two_questions_are_understood(datagram):
    """Anything but a question for counters, or whether it is alive, is none."""
    assert parse_question(datagram) == ""
    assert parse_question(b'{"stats": true}') == "stats"
    assert parse_question(b'{"probe": true}') == "probe"


@pytest.mark.parametrize(
    ("native", "size", "is_begun", "state", "share"),
    [
        (0, 0, False, "lazy", 0),
        (0, 4, False, "lazy", 0),
        (0, 4, True, "partial", 0),
        (1, 4, True, "partial", 0.25),
        (4, 4, True, "native", 1),
        (99999, 100000, True, "partial", 0.9999),
    ],
)
def test_state_follows_from_what_is_shown(native, size, is_begun, state, share):
    """A mount is native when all bytes that it shows are plain files of the store, and not a byte before."""
    answer = json.loads(encode_counters(Counters(), NativeShare(native, size, is_begun)))
    assert (answer["state"], answer["native"]) == (state, share)
    assert set(answer) == {"reads", "bytes_read", "opens", "lookups", "errors", "native", "state", "spans_decoded"}


RUN_WORKER = """
import os
import sys
from pathlib import Path
from kitfs.fuse.worker import run_worker
home, device, init, control, memory, resend, blame = sys.argv[1:]
for number in (device, init, memory):
    os.close(int(number))
run_worker(home=Path(home), control=int(control))
"""
KITFILE = "manifestVersion: 1.0.0\npackage:\n  name: sample\nmodel:\n  path: weights.bin\n"
WEIGHTS = bytes(range(256)) * 2000


def worker_command(home: Path) -> list[str]:
    return [sys.executable, "-c", RUN_WORKER, str(home)]


@pytest.fixture
def session(store_home, tmp_path):
    """A session of a packed ModelKit, held by this process."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Kitfile").write_text(KITFILE)
    (context / "weights.bin").write_bytes(WEIGHTS)
    reference = parse_reference("sample:1")
    with Store.open(store_home) as store:
        pack(store, context, None, [reference])
        owner = {"uid": os.getuid(), "gid": os.getgid()}
        held = prepare_session(store, reference, mountpoint=tmp_path, options=SessionOptions(), **owner)
    with held:
        yield held


@pytest.mark.mount
@pytest.mark.root
def test_worker_serves_a_modelkit_without_any_privilege(make_mount, store_home, session):
    """From a session's record alone a worker shows the packed bytes, with no capability and no way to one."""
    mount = make_mount(command=worker_command(store_home), session=session.id)
    code = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1] + '/model', 'rb').read()).hexdigest())"
    assert mount.run(code) == hashlib.sha256(WEIGHTS).hexdigest()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{mount.worker.pid}/status").read_text().splitlines())
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [0, 0, 0, 0]
    assert status["NoNewPrivs"] == "1"
    assert os.readlink(f"/proc/{mount.worker.pid}/cwd") == "/"


@pytest.mark.mount
@pytest.mark.root
def test_successor_shows_the_same_inodes(make_mount, store_home, session):
    """What a worker shows follows from the session, so that a reader can not tell one worker from the next."""
    mount = make_mount(command=worker_command(store_home), session=session.id)
    code = """
    import os, sys
    print(sorted((entry.name, entry.inode()) for entry in os.scandir(sys.argv[1])), os.stat(sys.argv[1]).st_ino)
    """
    before = mount.run(code)
    mount.kill_worker()
    mount.start_worker(resend=True)
    assert mount.run(code) == before


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.parametrize("missing", ["store", "session"])
def test_worker_that_can_not_serve_says_why(make_mount, store_home, session, missing):
    """Without its store or session a worker tells the daemon in words and ends with 70, before it is asked anything."""
    mount = make_mount(session="0123456789abcdef", served=False)
    home = store_home if missing == "session" else store_home.with_name("elsewhere")
    mount.launch_worker(worker_command(home))
    failed = mount.hear()["failed"]
    assert str(home if missing == "store" else "0123456789abcdef") in failed["message"]
    assert failed["category"] == "NotFoundError"
    assert mount.worker.wait(30) == 70
