"""The open table: what a worker leaves, its successor and the daemon find."""

import random

import pytest

from kitfs.fuse.memory import OPENS_SIZE
from kitfs.fuse.opentable import IDS_MAX, IssuedIds, Mode, OpenTable, TableFull, count_passed_through


@pytest.fixture
def room() -> memoryview:
    """An empty session's room for the table."""
    return memoryview(bytearray(OPENS_SIZE))


def test_a_successor_goes_on_with_every_open(room):
    """Modes, ids and counts are what the dead worker left; what was closed is gone."""
    first = OpenTable(room)
    first.begin(1 << 60, Mode(7, 99))
    first.count_up(1 << 60)
    first.begin(5, Mode())
    first.begin(6, Mode(8, 98))
    assert first.count_down(6) == Mode(8, 98)
    second = OpenTable(room)
    assert [second.find(1 << 60), second.find(5), second.find(6)] == [Mode(7, 99), Mode(), None]
    assert [second.count(inode) for inode in (1 << 60, 5, 6)] == [2, 1, 0]
    assert count_passed_through(room) == 1


def test_only_the_last_close_gives_the_mode_back(room):
    """A mode lasts as long as anything is open; a close of what is not open changes nothing."""
    table = OpenTable(room)
    table.begin(3, Mode(4, 5))
    table.count_up(3)
    assert table.count_down(3) is None
    assert table.count_down(3) == Mode(4, 5)
    assert table.count_down(3) is None
    assert table.find(3) is None


def test_any_order_of_opens_and_closes_leaves_what_is_open(room):
    """1000 opens and closes at random, handed to a successor now and then, equal a dictionary's."""
    choose, expected, table = random.Random(1), {}, OpenTable(room)
    for number in range(1000):
        inode = choose.randrange(1, 40)
        if choose.random() < 0.55:
            if inode in expected:
                table.count_up(inode)
                expected[inode][0] += 1
            else:
                table.begin(inode, Mode(number, inode))
                expected[inode] = [1, Mode(number, inode)]
        elif inode in expected:
            count, mode = expected[inode]
            assert table.count_down(inode) == (mode if count == 1 else None)
            expected[inode][0] -= 1
            if count == 1:
                del expected[inode]
        if choose.random() < 0.02:
            table = OpenTable(room)
    found = {inode: [table.count(inode), table.find(inode)] for inode in range(40) if table.find(inode)}
    assert found == expected


def test_places_are_used_again(room):
    """As many entries as were ever open at once are written, so that a successor reads no more."""
    table = OpenTable(room)
    for inode in range(1, 5000):
        table.begin(inode, Mode(inode, inode))
        table.count_down(inode)
    assert room.cast("Q")[0] == 1


def test_a_full_table_says_so():
    """One inode more than there is room for is refused, and those that are open stay."""
    table = OpenTable(memoryview(bytearray(8 * (8 + IDS_MAX) + 32 * 3)))
    for inode in range(1, 4):
        table.begin(inode, Mode())
    with pytest.raises(TableFull):
        table.begin(9, Mode())
    table.count_down(2)
    table.begin(9, Mode())
    assert [table.count(inode) for inode in (1, 2, 3, 9)] == [1, 0, 1, 1]


def test_ids_that_no_entry_names_are_found(room):
    """A daemon that begins knows every id of the one before, and which of them nobody uses."""
    table, ids = OpenTable(room), IssuedIds(room)
    for backing_id in (1, 2, 3, 4):
        ids.add(backing_id)
    ids.remove(3)
    table.begin(10, Mode(1, 100))
    table.begin(11, Mode(2, 101))
    table.count_down(11)
    after = IssuedIds(room)
    assert (len(after), 3 in after, 4 in after) == (3, False, True)
    assert sorted(after.find_unnamed()) == [2, 4]
    after.add(5)
    assert room.cast("Q")[1] == 4


def test_nonsense_in_the_table_stays_within_it(room):
    """A taken-over worker may write anything there: the daemon reads no further than the table goes."""
    words = room.cast("Q")
    words[0] = words[1] = words[8] = (1 << 64) - 1
    words[9] = 5
    ids = IssuedIds(room)
    assert ids.find_unnamed() == [5]
    words[1] = (1 << 64) - 1
    ids.add(6)
    assert sorted(ids.find_unnamed()) == [5, 6]
    assert count_passed_through(room) == 0
