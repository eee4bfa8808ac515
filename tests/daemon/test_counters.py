"""Counters of a session over its workers: the sum of what each told last, and never less than before."""

from hypothesis import given
from hypothesis import strategies as st

from kitfs.calls import MountState
from kitfs.daemon.counters import Tally
from kitfs.fuse.orders import WorkerMessage

WORKERS = st.lists(st.lists(st.integers(0, 1000), max_size=4), min_size=1, max_size=6)
"""Of each worker by how much its counters had grown each time that it was asked."""


def shown(tally: Tally, stats: WorkerMessage) -> MountState:
    state = MountState("s", "/mnt", "a:1", "0:1")
    tally.tell(stats, state)
    return state


@given(WORKERS)
def test_counters_never_go_backwards_over_workers(workers):
    """Each look shows all that was ever told, whichever worker is asked and when the one before died."""
    tally, told, before = Tally(), 0, 0
    for growths in workers:
        stats = WorkerMessage(state="starting")
        assert shown(tally, stats).reads == told
        for growth in growths:
            told += growth
            stats = WorkerMessage(
                reads=stats.reads + growth, bytes_read=2 * (stats.reads + growth), spans_decoded=stats.reads + growth
            )
            state = shown(tally, stats)
            assert (state.reads, state.bytes_read, state.spans_decoded) == (told, 2 * told, told)
            assert state.reads >= before
            before = state.reads
        tally.add(stats)


def test_a_worker_that_has_told_nothing_yet_leaves_the_share():
    """Between two workers the mount is starting, and as native as it was."""
    tally = Tally()
    tally.add(WorkerMessage(state="partial", native=0.5))
    state = shown(tally, WorkerMessage(state="starting"))
    assert (state.state, state.native) == ("starting", 0.5)
    tally.add(WorkerMessage(state="starting"))
    assert shown(tally, WorkerMessage(state="starting")).native == 0.5
    assert shown(tally, WorkerMessage(state="native", native=1.0)).native == 1.0
