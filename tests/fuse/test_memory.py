"""A session's memory: what is in it, who may trust it, and how it tells that a worker lives."""

import fcntl
import os
import signal
import struct
import subprocess
import sys

import pytest

from kitfs.calls import MountState
from kitfs.fuse import memory as session_memory
from kitfs.fuse.guard import Counters
from kitfs.fuse.memory import DELIVERIES_SIZE, MEMORY_SIZE, OPENS_SIZE, MemoryUnusable, SessionHeader, SessionMemory

HEADER = SessionHeader(MountState("0123", "/\x01" * 2048, "myllm:1", "0:42"), b"\x00\xff" * 52, (1 << 64) - 1, 12.5)

HOLD = """
import sys
from kitfs.fuse.memory import SessionMemory
held = SessionMemory.map(int(sys.argv[1]))
held.lock_life()
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def memory():
    """A new one, closed at the end."""
    made = SessionMemory.create(HEADER)
    yield made
    made.close()


def duplicate(memory: SessionMemory) -> int:
    return fcntl.fcntl(memory.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)


def test_who_maps_it_reads_what_was_written(memory):
    """The header is what it was, the parts are zeroed, and what one process writes the other reads."""
    other = SessionMemory.map(duplicate(memory))
    assert other.header == HEADER and other.session == "0123"
    assert (len(other.deliveries), len(other.opens)) == (DELIVERIES_SIZE, OPENS_SIZE)
    assert not any(other.deliveries) and other.restarts == 0
    memory.restarts += 3
    memory.deliveries[:4] = b"abcd"
    memory.opens[-1:] = b"z"
    assert (other.restarts, bytes(other.deliveries[:4]), bytes(other.opens[-1:])) == (3, b"abcd", b"z")
    assert other.header == SessionMemory.map(duplicate(memory)).header
    other.close()


def test_it_can_not_be_made_shorter_or_unsealed(memory):
    """A process that has it can not make a map of it fault in another."""
    for size in (0, MEMORY_SIZE + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fileno(), size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def sealed(size: int, start: bytes) -> int:
    descriptor = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    os.pwrite(descriptor, start, 0)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: os.open("/dev/null", os.O_RDWR), "no session's memory"),
        (lambda: os.memfd_create("x", os.MFD_ALLOW_SEALING), "not sealed"),
        (lambda: sealed(4096, b""), "4096 bytes"),
        (lambda: sealed(MEMORY_SIZE, b""), "does not begin"),
        (lambda: sealed(MEMORY_SIZE, struct.pack("=8sII", b"kitfsmem", 99, 2)), "version 99"),
        (lambda: sealed(MEMORY_SIZE, struct.pack("=8sII", b"kitfsmem", 1, 1 << 31)), "does not begin"),
        (lambda: sealed(MEMORY_SIZE, struct.pack("=8sIIQ", b"kitfsmem", 1, 3, 0) + b"\xff{}"), "no session's memory"),
        (lambda: sealed(MEMORY_SIZE, struct.pack("=8sIIQ", b"kitfsmem", 1, 2, 0) + b"{}"), "mount"),
    ],
)
def test_anything_else_is_refused_by_name(make, why):
    """A descriptor from another process is looked at before it is mapped; it stays the caller's."""
    descriptor = make()
    try:
        with pytest.raises(MemoryUnusable, match=why):
            SessionMemory.map(descriptor)
        os.fstat(descriptor)
    finally:
        os.close(descriptor)


def test_a_header_that_does_not_fit_is_refused(monkeypatch):
    """Nothing is left open."""
    monkeypatch.setattr(session_memory, "JSON_SIZE_MAX", 10)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryUnusable, match="more than 10"):
        SessionMemory.create(HEADER)
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_tells_which_worker_lives(memory):
    """The lock names the process, a second worker can not take it, and it goes with the process."""
    assert memory.find_worker() == 0
    command = [sys.executable, "-c", HOLD, str(memory.fileno())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[memory.fileno()], **pipes) as worker:
        try:
            assert worker.stdout.readline() == b"held\n"
            assert memory.find_worker() == worker.pid
            with pytest.raises(BlockingIOError):
                memory.lock_life()
            SessionMemory.map(duplicate(memory)).close()
            assert memory.find_worker() == worker.pid
            worker.send_signal(signal.SIGKILL)
            assert worker.wait(30) == -signal.SIGKILL
        finally:
            worker.kill()
    assert memory.find_worker() == 0


def test_a_slice_in_use_outlives_it(memory):
    """Closing does not pull the map away under whoever still reads a part of it."""
    part = memory.opens[:8]
    memory.close()
    memory.close()
    assert bytes(part) == bytes(8)
    part.release()


def test_counters_go_on_where_the_worker_before_left_them(memory):
    """Each worker adds to what those before it had counted, to the last request; its spans to theirs."""
    for worker in (1, 2, 3):
        counters = Counters(memory.counters)
        for spans in (1, 5):
            counters.reads += 1
            counters.bytes_read += 1 << 40
            counters.note_spans(spans)
        told = memory.read_counters()
        assert (told["reads"], told["bytes_read"], told["spans_decoded"]) == (2 * worker, worker << 41, 5 * worker)
    assert SessionMemory.map(duplicate(memory)).header == HEADER
