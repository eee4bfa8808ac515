"""How long a worker may be silent, and when the next one starts; with real processes that are no workers."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from kitfs.daemon import supervision
from kitfs.daemon.limits import HUNG_S, NO_WORKER_S, Limits
from kitfs.daemon.procfs import count_memory_kills, cpu_wait_s, find_state
from kitfs.daemon.supervision import DELAY_MAX_S, KILLS_MAX, Backoff, kill_when_hung
from kitfs.daemon.worker import Worker
from kitfs.fuse.deliveries import FAULT_WEIGHT, KILL_WEIGHT

PART_S = 0.2


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for ever; ended with the test."""
    with subprocess.Popen([sys.executable, "-c", "import signal; print(flush=True); signal.pause()"],
                          stdout=subprocess.PIPE) as child:  # fmt: skip
        child.stdout.readline()
        yield child
        child.kill()


@pytest.fixture
def ends(process) -> Iterator[tuple[Worker, socket.socket]]:
    """The process as a worker that serves, and the other end of its control socket, whose owner answers or not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(b'{"ready": true}')
        control = trio.socket.from_stdlib_socket(ours)
        pidfd = os.pidfd_open(process.pid)
        worker = Worker(process.pid, pidfd, control, hung_s=3 * PART_S)
        worker.note_orphaned()
        yield worker, theirs
        if not worker.dead.is_set():
            os.close(pidfd)


async def test_a_silent_worker_is_killed_by_its_own_doing(ends):
    """Its event loop answers nothing although nobody has stopped it: that speaks against what it has in hand."""
    worker, _ = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.watch)
        with trio.fail_after(30):
            await kill_when_hung(worker, 3 * PART_S)
            await worker.dead.wait()
    assert worker.blame == FAULT_WEIGHT
    assert worker.end() == "was hung and was killed"


async def test_a_stopped_worker_is_killed_and_not_to_blame(ends, process):
    """Somebody has stopped it."""
    worker, _ = ends
    os.kill(process.pid, signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.watch)
        with trio.fail_after(30):
            await kill_when_hung(worker, 3 * PART_S)
            await worker.dead.wait()
    assert worker.blame == KILL_WEIGHT


async def test_a_worker_that_answers_is_left_alone(ends, process):
    """However often it is asked."""
    worker, theirs = ends
    answering = trio.socket.from_stdlib_socket(theirs.dup())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.watch)
        nursery.start_soon(kill_when_hung, worker, 3 * PART_S)
        for _ in range(12):
            assert await answering.recv(100) == b'{"probe": true}'
            await answering.send(b'{"alive": true}')
        nursery.cancel_scope.cancel()
    answering.close()
    assert process.poll() is None


async def test_a_worker_that_others_hold_up_has_more_time(ends, process, monkeypatch, autojump_clock):
    """One whose threads wait for a core is silent for six times as long before it is killed."""
    worker, _ = ends
    waited_s = iter(range(1000))
    monkeypatch.setattr(supervision, "cpu_wait_s", lambda pid: float(next(waited_s)))
    began = trio.current_time()
    await kill_when_hung(worker, 3 * PART_S)
    assert 2 * 6 * PART_S <= trio.current_time() - began <= 3 * 6 * PART_S


async def test_workers_that_are_killed_by_others_are_replaced_at_once(autojump_clock):
    """Until it is more than anybody's hands can do."""
    backoff = Backoff()
    delays = [backoff.note_death(0.1, is_fault=False) for _ in range(KILLS_MAX + 1)]
    assert not any(delays[: KILLS_MAX - 1])
    assert all(delays[KILLS_MAX - 1 :])
    await trio.sleep(supervision.KILLS_WINDOW_S)
    assert backoff.note_death(0.1, is_fault=False) == 0


async def test_workers_that_die_of_themselves_are_replaced_ever_later(autojump_clock):
    """Five that can not start, or twenty that die soon, at once; then with growing delays, until one has been well."""
    backoff = Backoff()
    starts = [backoff.note_death(-1.0, is_fault=True) for _ in range(20)]
    assert not any(starts[:4])
    assert starts[4:] == sorted(starts[4:])
    assert starts[4] > 0 and starts[-1] == DELAY_MAX_S
    assert backoff.note_death(60.0, is_fault=True) == 0
    assert not any(backoff.note_death(0.1, is_fault=True) for _ in range(18))
    assert backoff.note_death(0.1, is_fault=True) > 0


def test_times_come_from_the_environment():
    """What is no time is passed over."""
    assert Limits.read({}) == Limits(HUNG_S, NO_WORKER_S, no_resend=False)
    assert Limits.read({"KITFS_HUNG_S": "2.5", "KITFS_NO_WORKER_S": "7", "KITFS_NO_RESEND": "1"}) == Limits(
        2.5, 7, True
    )
    for odd in ("", "x", "-1", "0", "nan", "inf"):
        assert Limits.read({"KITFS_HUNG_S": odd, "KITFS_NO_RESEND": "0"}) == Limits()


def test_what_proc_says(process):
    """States, waits and kills are read of what is there; of what is not, nothing is said."""
    assert find_state(os.getpid()) == "R"
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert find_state(process.pid) == "T"
    assert cpu_wait_s(os.getpid()) >= 0
    assert count_memory_kills() >= 0
    assert (find_state(0), cpu_wait_s(0)) == ("X", 0)
