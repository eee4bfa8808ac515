"""The worker's life: it ends with its mount, not with its daemon."""

import json

import pytest

from kitfs.fuse.guard import Counters
from kitfs.fuse.worker import encode_counters, parse_question

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
def test_only_one_question_is_understood(datagram):
    """Anything but a question for counters is none."""
    assert not parse_question(datagram)


@pytest.mark.parametrize(
    ("opens", "native", "state"), [(0, 0, "lazy"), (4, 0, "lazy"), (4, 1, "partial"), (4, 4, "native")]
)
def test_state_follows_from_what_was_opened(opens, native, state):
    """A mount is native when every file that was opened was a plain file of the store."""
    answer = json.loads(encode_counters(Counters(opens=opens, native=native)))
    assert answer["state"] == state
    assert set(answer) == {"reads", "bytes_read", "opens", "lookups", "errors", "native", "state"}
