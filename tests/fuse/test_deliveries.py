"""What a worker leaves of the requests that it had in hand, and what its successors make of it."""

import errno

import pytest
import trio
import trio.testing

from kitfs.fuse import deliveries as module
from kitfs.fuse.deliveries import FAULT_WEIGHT, KILL_WEIGHT, READ, SIZE, SLOTS, SUSPECTS_MAX, Deliveries
from kitfs.fuse.guard import HANDLERS, key_of

KILLER = (READ, 7, 0, 4096)
INNOCENT = (READ, 8, 0, 4096)


@pytest.fixture
def room():
    """What all workers of a session share."""
    return memoryview(bytearray(SIZE))


def successor(room, weight):
    """The worker that follows one that died."""
    follower = Deliveries(room)
    follower.blame(weight)
    return follower


def test_what_is_answered_is_not_blamed(room):
    """Of requests that were answered nothing is left, whatever their worker dies of."""
    first = Deliveries(room)
    for number in range(3 * SLOTS):
        first.end(first.begin((READ, number, 0, 1)))
    assert Deliveries(room).blame(FAULT_WEIGHT) == 0
    assert successor(room, FAULT_WEIGHT).is_calm


async def test_a_request_that_is_in_hand_at_two_faults_is_convicted(room):
    """The third worker does not look at it; the second did."""
    Deliveries(room).begin(KILLER)
    second = successor(room, FAULT_WEIGHT)
    assert not second.is_convicted(KILLER)
    await second.admit(KILLER)
    assert successor(room, FAULT_WEIGHT).is_convicted(KILLER)


async def test_what_several_ask_for_is_blamed_once(room):
    """The same read of ten processes is one suspect, found out as a single one when it is all that was in hand."""
    first = Deliveries(room)
    for _ in range(10):
        first.begin(KILLER)
    second = successor(room, FAULT_WEIGHT)
    assert not second.is_convicted(KILLER)
    await second.admit(KILLER)
    assert successor(room, FAULT_WEIGHT).is_convicted(KILLER)


async def test_a_kill_says_less_than_a_fault(room):
    """A request runs alone when it was in hand at eight kills and is convicted after sixteen, not before."""
    Deliveries(room).begin(KILLER)
    for deaths in range(1, 16):
        worker = successor(room, KILL_WEIGHT)
        assert not worker.is_convicted(KILLER)
        place = await worker.admit(KILLER)
        assert bool(worker._alone == place) is (deaths >= 8)
    assert successor(room, KILL_WEIGHT).is_convicted(KILLER)


async def test_a_worker_that_was_replaced_blames_nobody(room):
    """An upgrade kills workers too; what they had in hand is no suspect."""
    Deliveries(room).begin(KILLER)
    assert successor(room, 0).is_calm


async def test_an_answer_acquits(room):
    """What a successor answers begins anew: it takes two more faults."""
    Deliveries(room).begin(KILLER)
    second = successor(room, FAULT_WEIGHT)
    second.leave(KILLER, await second.admit(KILLER))
    assert second.is_calm
    second.begin(KILLER)
    assert not successor(room, FAULT_WEIGHT).is_convicted(KILLER)


async def test_innocents_beside_a_killer_are_not_convicted(room, autojump_clock):
    """All were in hand at the first death; each then runs alone, so the second is one's own: the killer's."""
    first = Deliveries(room)
    for inode in range(20):
        first.begin((READ, inode, 0, 4096))
    first.begin(KILLER)
    second = successor(room, FAULT_WEIGHT)
    answered = []

    async def serve(key):
        place = await second.admit(key)
        if key != KILLER:
            await trio.sleep(0.001)
            second.leave(key, place)
            answered.append(key)
        else:
            killed.set()
            await trio.sleep_forever()

    killed = trio.Event()
    others = [(READ, inode, 0, 4096) for inode in range(20) if inode != KILLER[1]]
    async with trio.open_nursery() as nursery:
        for key in (*others[:5], KILLER, *others[5:], (READ, 99, 0, 4096)):
            nursery.start_soon(serve, key)
        await killed.wait()
        nursery.cancel_scope.cancel()
        third = successor(room, FAULT_WEIGHT)
    assert third.is_convicted(KILLER)
    assert not [key for key in (*others, (READ, 99, 0, 4096)) if third.is_convicted(key)]
    still = [key for key in others if key not in answered]
    for key in still:
        third.leave(key, await third.admit(key))


async def test_a_suspect_runs_while_nothing_else_does(room):
    """It waits for what is in hand, and what comes waits for it."""
    Deliveries(room).begin(KILLER)
    worker = successor(room, FAULT_WEIGHT)
    order = []

    async def run(key, *, until=None):
        place = await worker.admit(key)
        order.append(("begin", key[1]))
        if until is not None:
            await until.wait()
        order.append(("end", key[1]))
        worker.leave(key, place)

    release = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run(INNOCENT, until=release))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(run, KILLER)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(run, (READ, 9, 0, 1))
        await trio.testing.wait_all_tasks_blocked()
        assert order == [("begin", 8)]
        release.set()
    assert order == [("begin", 8), ("end", 8), ("begin", 7), ("end", 7), ("begin", 9), ("end", 9)]
    assert worker.is_calm


async def test_nobody_waits_long_for_what_is_only_slow(room, autojump_clock):
    """A suspect that takes long stops being alone; nobody is convicted then, as it can not be told who it was."""
    Deliveries(room).begin(KILLER)
    worker = successor(room, FAULT_WEIGHT)
    await worker.admit(KILLER)
    began = trio.current_time()
    for number in range(10):
        await worker.admit((READ, 100 + number, 0, 1))
    assert trio.current_time() - began <= 2 * module.PATIENCE_S
    third = successor(room, FAULT_WEIGHT)
    assert len(third._suspects) == 11
    assert not any(third.is_convicted(key) for key in third._suspects)
    await third.admit(KILLER)
    assert successor(room, FAULT_WEIGHT).is_convicted(KILLER)


async def test_a_suspect_does_not_wait_long_for_what_is_only_slow(room, autojump_clock):
    """Something that is in hand for ever delays a suspect by the same time; then it runs beside it."""
    Deliveries(room).begin(KILLER)
    worker = successor(room, FAULT_WEIGHT)
    await worker.admit(INNOCENT)
    began = trio.current_time()
    await worker.admit(KILLER)
    assert trio.current_time() - began <= 2 * module.PATIENCE_S
    with trio.fail_after(2 * module.PATIENCE_S):
        await worker.admit((READ, 9, 0, 1))


async def test_a_conviction_ends(room, monkeypatch):
    """What it was may be over: later it is looked at again, alone, and one more fault is enough."""
    Deliveries(room).begin(KILLER)
    await successor(room, FAULT_WEIGHT).admit(KILLER)
    third = successor(room, FAULT_WEIGHT)
    monkeypatch.setattr(module, "CONVICTION_S", 0.0)
    assert not third.is_convicted(KILLER)
    assert await third.admit(KILLER) == third._alone
    monkeypatch.undo()
    assert successor(room, FAULT_WEIGHT).is_convicted(KILLER)


async def test_smaller_reads_of_a_convicted_range_run_alone(room):
    """The kernel asks again by page: one more fault convicts such a read, and one that is answered is free."""
    Deliveries(room).begin((READ, 7, 0, 1 << 20))
    await successor(room, FAULT_WEIGHT).admit((READ, 7, 0, 1 << 20))
    third = successor(room, FAULT_WEIGHT)
    good, bad = (READ, 7, 0, 4096), (READ, 7, 4096, 4096)
    third.leave(good, await third.admit(good))
    await third.admit(bad)
    fourth = successor(room, FAULT_WEIGHT)
    assert fourth.is_convicted(bad)
    assert not fourth.is_convicted(good)
    outside = (READ, 7, 1 << 20, 4096)
    fourth.begin(outside)
    assert not fourth._is_within_convicted(outside)


def test_the_tables_are_bounded(room):
    """More requests than slots are served, unnoted; more suspects than entries push out the oldest."""
    for generation in range(4):
        worker = successor(room, FAULT_WEIGHT)
        places = [worker.begin((READ, generation, number, 1)) for number in range(SLOTS + 10)]
        assert places.count(-1) == 10
    assert len(successor(room, FAULT_WEIGHT)._suspects) <= SUSPECTS_MAX
    assert len(Deliveries(room)._suspects) <= SUSPECTS_MAX


def test_a_worker_that_dies_before_it_blames_changes_nothing(room):
    """The next one finds the same, and blames it once."""
    Deliveries(room).begin(KILLER)
    Deliveries(room)
    assert Deliveries(room).blame(FAULT_WEIGHT) == 1
    assert Deliveries(room).blame(FAULT_WEIGHT) == 0


def test_a_request_is_known_by_what_it_asks():
    """Names and numbers tell requests apart; what a context says does not."""
    assert key_of(READ, (5, 4096, 100)) == (READ, 5, 4096, 100)
    assert key_of(2, (1, b"a", object())) == key_of(2, (1, b"a", object()))
    assert key_of(2, (1, b"a", object())) != key_of(2, (1, b"b", object()))
    assert key_of(2, (1, b"a", object())) != key_of(3, (1, b"a", object()))
    assert key_of(4, (-1, -1)) == (4, (1 << 64) - 1, (1 << 64) - 1, 0)
    assert len(HANDLERS) < 256


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.parametrize("beside", [0, 3])
def test_a_read_that_kills_its_worker_is_an_error_at_its_third_delivery(mount, sample, beside):
    """Two workers die of a SIGSEGV, the third says EIO and lives; reads in hand beside it have their bytes."""
    mount.kill_worker()
    mount.start_worker(view="killing")
    code = """
    import mmap, os, sys
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(sys.argv[1] + "/" + sys.argv[2], os.O_RDONLY | os.O_DIRECT)
    try:
        print(os.preadv(fd, [buffer], 4096 * int(sys.argv[3])), buffer[:8].hex())
    except OSError as error:
        print(error.errno)
    """
    others = [mount.start(code, "victim", number) for number in range(beside)]
    killer = mount.start(code, "killer", beside)
    try:
        for _ in range(2):
            assert mount.wait_worker() < 0
            mount.start_worker(resend=True, view="killing-again", blame=FAULT_WEIGHT)
        assert killer.communicate(timeout=60) == (f"{errno.EIO}\n", "")
        for number, other in enumerate(others):
            expected = sample.content(4096 * number, 4096 * number + 8).hex()
            assert other.communicate(timeout=60) == (f"4096 {expected}\n", "")
        assert mount.stats()["errors"] == 1
        assert "workers died of it" in mount.log()
    finally:
        for process in (killer, *others):
            process.kill()
            process.wait()
