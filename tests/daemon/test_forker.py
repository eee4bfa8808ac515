"""The daemon's end of the zygote, with a real zygote and real children."""

import os
import signal
from pathlib import Path

import pytest
import trio

from kitfs.daemon.forker import Forker, ForkFailed
from kitfs.daemon.worker import WorkerFailed


@pytest.fixture
def device():
    """Something that stands where the device belongs; the children here never get to read it."""
    descriptor = os.open("/dev/null", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def fork(forker, device):
    with trio.fail_after(30):
        return await forker.fork("no-such-session", device=device, init=b"x", resend=False)


async def test_a_worker_that_can_not_start_says_why_and_is_reaped(home, device):
    """Its message is the error, its exit code is known, its process is gone."""
    forker = Forker(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forker.run)
        worker = await fork(forker, device)
        with pytest.raises(WorkerFailed, match="no session"):
            await worker.wait_started()
        await worker.dead.wait()
        assert worker.exit_code == 70
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)
        nursery.cancel_scope.cancel()


async def test_forks_that_meet_a_dead_zygote_fail_by_name_and_later_ones_work(home, device):
    """SIGKILL at any moment of a fork: the call ends with ForkFailed or with a worker, and the next zygote serves."""
    forker = Forker(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forker.run)
        for number in range(4):
            worker = await fork(forker, device)
            await worker.dead.wait()
            zygote = forker.zygote_pid
            async with trio.open_nursery() as forks:
                for _ in range(number):
                    forks.start_soon(_fork_or_fail, forker, device)
                await trio.lowlevel.checkpoint()
                os.kill(zygote, signal.SIGKILL)
        worker = await fork(forker, device)
        await worker.dead.wait()
        nursery.cancel_scope.cancel()


async def _fork_or_fail(forker, device):
    try:
        worker = await forker.fork("no-such-session", device=device, init=b"x", resend=False)
    except ForkFailed:
        return
    with trio.fail_after(30):
        await worker.dead.wait()


async def test_a_child_that_nobody_told_to_go_ends_without_the_device(home, device, wait_for_end):
    """When the call is given up before its answer comes, the child sees its control socket close."""
    forker = Forker(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forker.run)
        worker = await fork(forker, device)
        await worker.dead.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await forker.fork("no-such-session", device=device, init=b"x", resend=False)
        later = await fork(forker, device)
        await later.dead.wait()
        for child in children_of(forker.zygote_pid):
            await trio.to_thread.run_sync(wait_for_end, child)
        nursery.cancel_scope.cancel()
