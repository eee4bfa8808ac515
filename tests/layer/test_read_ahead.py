"""What is read ahead: nothing for a first or a lone read, more and more for a run, whoever takes part in it."""

import random

from hypothesis import given
from hypothesis import strategies as st

from kitfs.layer.read_ahead import AHEAD_SIZE_MAX, AHEAD_SIZE_MIN, NEAR_SIZE, RUNS_MAX, ReadAhead

MIB = 1 << 20
PIECE = 128 << 10


def ahead(found: tuple[int, int]) -> int:
    return found[1] - found[0]


def test_a_run_looks_further_ahead_with_each_read():
    """The first read looks ahead for nothing, the second for two spans, then twice as far each time up to 24 MiB."""
    state = ReadAhead()
    sizes = [ahead(state.note(start, start + PIECE)) for start in range(0, 20 * PIECE, PIECE)]
    assert sizes[:7] == [0, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, AHEAD_SIZE_MAX]
    assert set(sizes[7:]) == {AHEAD_SIZE_MAX}


def test_a_loader_that_jumps_goes_on_at_half_the_distance():
    """Tensors in the order of their names: a jump looks half as far ahead, lone reads soon for nothing."""
    state = ReadAhead()
    for start in range(0, 20 * PIECE, PIECE):
        state.note(start, start + PIECE)
    assert ahead(state.note(1 << 30, (1 << 30) + PIECE)) == AHEAD_SIZE_MAX // 2
    assert ahead(state.note((1 << 30) + PIECE, (1 << 30) + 2 * PIECE)) == AHEAD_SIZE_MAX // 2
    lone = [ahead(state.note(start << 30, (start << 30) + 4096)) for start in range(2, 10)]
    assert lone == [6 * MIB, 3 * MIB, 3 * MIB // 2, 0, 0, 0, 0, 0]


def test_runs_that_are_over_take_no_share():
    """A loader that has jumped seven times looks as far ahead as one that never did."""
    state = ReadAhead()
    for base in range(RUNS_MAX):
        for step in range(40):
            last = state.note((base << 30) + step * PIECE, (base << 30) + (step + 1) * PIECE)
    assert ahead(last) == AHEAD_SIZE_MAX


def test_lone_reads_look_ahead_for_nothing():
    """Reads far from each other are no run, however many there are."""
    state = ReadAhead()
    rng = random.Random(1)
    starts = rng.sample(range(0, 1 << 40, 2 * NEAR_SIZE), 200)
    assert {ahead(state.note(start, start + 4096)) for start in starts} == {0}


def test_reads_of_a_run_may_come_out_of_order():
    """Reads within 4 MiB of the furthest belong to its run; those behind it do not make it look further."""
    state = ReadAhead()
    order = [0, 2, 1, 4, 3, 6, 5, 7]
    found = [state.note(number * PIECE, (number + 1) * PIECE) for number in order]
    assert [start // PIECE for start, _ in found] == [1, 3, 3, 5, 5, 7, 7, 8]
    assert [ahead(each) for each in found][:5] == [0, MIB, MIB, 2 * MIB, 2 * MIB]


def test_a_reader_that_begins_at_the_tail_is_sequential_afterwards():
    """After a read of the last bytes, reads from the start are a run of their own."""
    state = ReadAhead()
    state.note(999 * MIB, 1000 * MIB)
    state.note(0, PIECE)
    assert ahead(state.note(PIECE, 2 * PIECE)) == AHEAD_SIZE_MIN


def test_several_runs_share_what_is_ahead():
    """Eight readers at eight places are eight runs, which together look no further ahead than one does."""
    state = ReadAhead()
    total = 0
    for step in range(20):
        total = sum(
            ahead(state.note(base + step * PIECE, base + (step + 1) * PIECE))
            for base in range(0, RUNS_MAX << 30, 1 << 30)
        )
    assert AHEAD_SIZE_MAX // 2 <= total <= AHEAD_SIZE_MAX


@given(st.lists(st.tuples(st.integers(0, 1 << 33), st.integers(1, 1 << 24)), max_size=60))
def test_what_is_ahead_is_bounded(reads):
    """Whatever is read, the range ahead begins at or behind the read's end and is 24 MiB at most."""
    state = ReadAhead()
    for start, size in reads:
        begin, end = state.note(start, start + size)
        assert begin >= start + size
        assert 0 <= end - begin <= AHEAD_SIZE_MAX
