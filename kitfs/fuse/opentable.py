"""The open table: which inodes the kernel has open, in which mode, and on which backing file.

It lies in ``SessionMemory.opens``, because no worker can derive it: the kernel wants one mode and one backing id per
inode for as long as it is open or mapped anywhere, and answers EIO to everything else. The worker writes the table,
the daemon the list of ids; both read both. Layout, u64 each, in the machine's order::

    0         how many entries were ever used | how many ids at once | 6 words left free
    64        ids, 32 768 words: those that the daemon has been given by the kernel and not given back, 0 for none
    ~256 KiB  entries of 4 words: inode | id (0: the kernel asks for each page that it has not) | the backing file's
              own inode number | opens (0: the entry is free)

*Order.* An entry is written before its count, and its count is one store, so a kill leaves a whole entry or a free one.
Opens are counted up before the OPEN is answered, down after the RELEASE is: a kill in between leaves a count that never
becomes 0, which keeps a mode and an id until the mount is gone. The other order would free a file that is open.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

_HEAD_WORDS = 8
IDS_MAX = 32_768
"""Backing ids of one session at a time; with more files open the rest is read through us."""

_ID_MAX = (1 << 31) - 1
_ENTRIES_AT = _HEAD_WORDS + IDS_MAX
_ENTRY_WORDS = 4
_INODE, _ID, _FILE, _OPENS = range(_ENTRY_WORDS)


class TableFull(OSError):
    """More inodes are open than the table has entries."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How an inode is open.

    Attributes:
        backing_id: By which number the kernel knows its backing file; 0 when it asks us for the bytes.
        file: The backing file's own inode number.
    """

    backing_id: int = 0
    file: int = 0


class OpenTable:
    """The table of one session, as its worker uses it. One process at a time writes it."""

    def __init__(self, room: memoryview) -> None:
        """Read what predecessors have left.

        Args:
            room: ``SessionMemory.opens``.
        """
        self._words = room.cast("Q")
        self._entries_max = (len(self._words) - _ENTRIES_AT) // _ENTRY_WORDS
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        for place, entry in _iter_entries(self._words):
            if entry[_OPENS]:
                self._places[entry[_INODE]] = place
            else:
                self._free.append(place)
        heapq.heapify(self._free)

    def find(self, inode: int) -> Mode | None:
        """How an inode is open; None when it is not."""
        place = self._places.get(inode)
        return None if place is None else Mode(self._words[place + _ID], self._words[place + _FILE])

    def count(self, inode: int) -> int:
        """How often it is open."""
        place = self._places.get(inode)
        return 0 if place is None else self._words[place + _OPENS]

    def begin(self, inode: int, mode: Mode) -> None:
        """Note the first open of an inode.

        Raises:
            TableFull: when there is no room.
        """
        words = self._words
        place = heapq.heappop(self._free) if self._free else self._add_entry()
        words[place + _INODE] = inode
        words[place + _ID] = mode.backing_id
        words[place + _FILE] = mode.file
        words[place + _OPENS] = 1
        self._places[inode] = place

    def _add_entry(self) -> int:
        used = self._words[0]
        if used >= self._entries_max:
            raise TableFull(f"{used} files are open")
        self._words[0] = used + 1
        return int(_ENTRIES_AT + used * _ENTRY_WORDS)

    def count_up(self, inode: int) -> None:
        """Note another open of an inode that is open."""
        self._words[self._places[inode] + _OPENS] += 1

    def count_down(self, inode: int) -> Mode | None:
        """Note that an open has ended.

        Returns:
            The mode it had when that was the last one; nothing names its backing id then.
        """
        place = self._places.get(inode)
        if place is None:
            return None
        words = self._words
        if words[place + _OPENS] > 1:
            words[place + _OPENS] -= 1
            return None
        mode = Mode(words[place + _ID], words[place + _FILE])
        words[place + _OPENS] = 0
        del self._places[inode]
        heapq.heappush(self._free, place)
        return mode


class IssuedIds:
    """The ids of one session that the kernel has given out, as the daemon keeps them.

    A worker can write where they lie, so what is there is read once, and nothing follows from it but which ids are
    given back.
    """

    def __init__(self, room: memoryview) -> None:
        """Read what daemons before have left.

        Args:
            room: ``SessionMemory.opens``.
        """
        self._words = room.cast("Q")
        self._used = min(self._words[1], IDS_MAX)
        ids = self._words[_HEAD_WORDS : _HEAD_WORDS + self._used].tolist()
        self._places = {number: _HEAD_WORDS + at for at, number in enumerate(ids) if 0 < number <= _ID_MAX}
        taken = set(self._places.values())
        self._free = [place for place in range(_HEAD_WORDS, _HEAD_WORDS + self._used) if place not in taken]

    def __contains__(self, backing_id: int) -> bool:
        return backing_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def is_full(self) -> bool:
        """Whether no more can be kept."""
        return len(self._places) >= IDS_MAX

    def add(self, backing_id: int) -> None:
        """Note an id that the kernel has just given; there is room."""
        if not self._free:
            self._free.append(_HEAD_WORDS + self._used)
            self._used += 1
            self._words[1] = self._used
        place = self._places[backing_id] = self._free.pop()
        self._words[place] = backing_id

    def remove(self, backing_id: int) -> None:
        """Forget an id that was given back."""
        place = self._places.pop(backing_id)
        self._words[place] = 0
        self._free.append(place)

    def find_unnamed(self) -> list[int]:
        """Ids that no entry of the table names. While no worker serves, or when it is sure to ask for none."""
        named = {entry[_ID] for _, entry in _iter_entries(self._words) if entry[_OPENS]}
        return [backing_id for backing_id in self._places if backing_id not in named]

    def close(self) -> None:
        """Let go of the session's memory."""
        self._words.release()


def count_passed_through(room: memoryview) -> int:
    """How many inodes are open that the kernel reads by itself.

    Args:
        room: ``SessionMemory.opens``.
    """
    return sum(1 for _, entry in _iter_entries(room.cast("Q")) if entry[_OPENS] and entry[_ID])


def _iter_entries(words: memoryview) -> Iterator[tuple[int, list[int]]]:
    """Place and words of each entry that was ever used."""
    used = min(words[0], (len(words) - _ENTRIES_AT) // _ENTRY_WORDS)
    for place in range(_ENTRIES_AT, _ENTRIES_AT + used * _ENTRY_WORDS, _ENTRY_WORDS):
        yield place, words[place : place + _ENTRY_WORDS].tolist()
