"""The daemon's end of the zygote, with a real zygote and real children."""

import os
import signal
from pathlib import Path

import pytest
import trio

from kitfs.calls import MountState
from kitfs.daemon.forker import Forker, ForkFailed
from kitfs.daemon.worker import WorkerFailed
from kitfs.errors import NotFoundError
from kitfs.fuse.memory import SessionHeader, SessionMemory
from kitfs.fuse.orders import ServeOrder


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def fork(forker):
    with trio.fail_after(30):
        return await forker.fork()


async def serve(worker):
    """An order that no worker can carry out; something stands where the device belongs."""
    device = os.open("/dev/null", os.O_RDWR)
    memory = SessionMemory.create(SessionHeader(MountState("no-such-session", "/mnt", "x:1", "0:1"), b"x", 0, 0.0))
    try:
        await worker.serve(ServeOrder("no-such-session", False), device=device, memory=memory)
    finally:
        os.close(device)
        memory.close()


async def test_a_worker_that_can_not_start_says_why_and_is_reaped(home):
    """Its message is the error, its exit code is known, its process is gone."""
    forker = Forker(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forker.run)
        worker = await fork(forker)
        with pytest.raises(WorkerFailed, match="no session") as caught:
            await serve(worker)
        assert isinstance(caught.value.reason, NotFoundError)
        await worker.dead.wait()
        assert worker.exit_code == 70
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)
        nursery.cancel_scope.cancel()


async def test_forks_survive_the_death_of_their_zygote(home):
    """SIGKILL at any moment of a fork: the call is made again to the next zygote and ends with a worker."""
    forker = Forker(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forker.run)
        for number in range(4):
            worker = await fork(forker)
            worker.kill()
            await worker.dead.wait()
            async with trio.open_nursery() as forks:
                for _ in range(number):
                    forks.start_soon(_fork_and_wait, forker)
                await trio.lowlevel.checkpoint()
                os.kill(forker.zygote_pid, signal.SIGKILL)
                forks.start_soon(_fork_and_wait, forker)
        nursery.cancel_scope.cancel()


async def _fork_and_wait(forker):
    worker = await fork(forker)
    worker.kill()
    with trio.fail_after(30):
        await worker.dead.wait()


async def test_a_zygote_that_hangs_is_killed_and_followed(home, monkeypatch):
    """A fork that gets no answer in time fails by name, and the next one works."""
    forker = Forker(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forker.run)
        worker = await fork(forker)
        worker.kill()
        await worker.dead.wait()
        monkeypatch.setattr("kitfs.daemon.forker._FORK_TIMEOUT_S", 0.2)
        os.kill(forker.zygote_pid, signal.SIGSTOP)
        with pytest.raises(ForkFailed, match="did not fork"):
            await fork(forker)
        monkeypatch.setattr("kitfs.daemon.forker._FORK_TIMEOUT_S", 30.0)
        worker = await fork(forker)
        worker.kill()
        await worker.dead.wait()
        nursery.cancel_scope.cancel()


async def test_a_child_that_nobody_has_an_order_for_ends(home, wait_for_end):
    """When the call is given up before its answer comes, the child sees its control socket close."""
    forker = Forker(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forker.run)
        worker = await fork(forker)
        worker.kill()
        await worker.dead.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await forker.fork()
        later = await fork(forker)
        later.kill()
        await later.dead.wait()
        for child in children_of(forker.zygote_pid):
            await trio.to_thread.run_sync(wait_for_end, child)
        nursery.cancel_scope.cancel()
