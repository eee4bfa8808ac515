"""Which requests a worker has in hand, written where its successor finds them, so that one that kills is found out.

The kernel sends a request that its worker did not answer to the next one, so one that ends its worker (a decoder that
crashes, a fault that eats all memory, an event loop that hangs) would end them for ever. pyfuse3 does not show the
number by which the kernel knows a request, so it is known by what it asks: handler, inode, and offset and size or
checksum of a name. What lies in ``SessionMemory.deliveries``, integers in the machine's order::

    0        in hand: 256 slots of 32 bytes: how (0 free, 1 beside others, 2 alone) | handler | key (3 × u64)
    8 KiB    suspects: 256 entries of 48 bytes: score (0 free) | handler | key | when it was last blamed (s, monotonic)

*In hand* is noted before the handler runs and cleared when it has its answer; one process writes at a time.

*Blame.* A successor, before it asks for anything, adds to the score of what its predecessor had in hand: 8 when that
died by its own doing (a crash, a hang), 1 when somebody killed it, of which a request is rarely the cause, 2 when the
kernel did for want of memory, which others may have taken.
Whatever is answered is acquitted: its score is forgotten. At a score of 16 a request is answered EIO without being
looked at, which is at its third delivery; for a minute, then it is tried again, alone. Who kills a worker again and
again as soon as it serves does not get there: the requests that fall to one worker in between are answered.

*Innocents.* Others are in hand when a killer kills, and the next worker may have both in hand too. So what has a score
of 8 or more runs alone: it waits until nothing else is in hand, and what comes waits for it. If its worker dies, it is
blamed and nobody else; and nobody is convicted for a death at which others were in hand too. After mere kills (below 8)
all go on side by side, since running alone would slow down every reader. Waiting is bounded (``PATIENCE_S``): one that
is only slow stops being alone. After an EIO the kernel asks again by smaller READs; those that overlap a convicted one
run alone, and one fault convicts them.

Used by ``kitfs.fuse.guard``. All on the trio thread; no checkpoint but where one waits as above.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import trio

SLOTS = 256
"""pyfuse3 has at most 99 requests under way; what finds no slot is not noted."""

SUSPECTS_MAX = 256
SIZE = 32 << 10
CONVICTED = 16
ALONE = 8
CONVICTION_S = 60.0
"""For how long a convicted request is not looked at; the cause, such as too little memory, may be gone then."""

PATIENCE_S = 1.0

KILL_WEIGHT = 1
SHORTAGE_WEIGHT = 2
FAULT_WEIGHT = 8
STALE_S = 600.0
"""A suspect that nobody has asked for again in so long is no suspect for the next worker: its reader is gone."""

Key = tuple[int, int, int, int]
"""Handler, inode, and two numbers more; of a READ offset and size."""

READ = 1
"""The handler number of READ; ``kitfs.fuse.guard`` numbers the others."""

_FREE, _BESIDE, _BY_ITSELF = 0, 1, 2
_SLOT = struct.Struct("=BB6xQQQ")
_SUSPECTS_AT = SLOTS * _SLOT.size
_SUSPECT = struct.Struct("=BB6xQQQd8x")
_pack_slot = _SLOT.pack_into


class Suspect:
    """A request that was in hand when a worker died.

    Attributes:
        score: What it is blamed for.
        blamed_s: When it was last.
        place: Where its entry lies.
    """

    __slots__ = ("blamed_s", "place", "score")

    def __init__(self, score: int, blamed_s: float, place: int) -> None:
        self.score = score
        self.blamed_s = blamed_s
        self.place = place

    def is_convicted(self) -> bool:
        """Whether it is not to be looked at now."""
        return self.score >= CONVICTED and time.monotonic() - self.blamed_s < CONVICTION_S


class Deliveries:
    """What one worker has in hand, and what it knows of its predecessors.

    Attributes:
        is_calm: Whether there is no suspect and nothing runs alone: ``begin`` may be used, else ``admit``.
    """

    def __init__(self, room: memoryview | None = None) -> None:
        """Look at what predecessors knew; what the last one had in hand stays there for ``blame``.

        Args:
            room: ``SessionMemory.deliveries``; None keeps it in this process.
        """
        self._room = memoryview(bytearray(SIZE)) if room is None else room
        self._free = [number * _SLOT.size for number in reversed(range(SLOTS))]
        self._suspects = dict(self._iter_suspects())
        self._gate: trio.Event | None = None
        self._drained: trio.Event | None = None
        self._alone = -1
        self.is_calm = not self._suspects

    def _iter_suspects(self) -> Iterator[tuple[Key, Suspect]]:
        for number in range(SUSPECTS_MAX):
            place = _SUSPECTS_AT + number * _SUSPECT.size
            score, *key, blamed_s = _SUSPECT.unpack_from(self._room, place)
            if score and time.monotonic() - blamed_s < STALE_S:
                yield (key[0], key[1], key[2], key[3]), Suspect(score, blamed_s, place)

    def blame(self, weight: int) -> int:
        """Blame a dead predecessor's death on what it had in hand. Called once, before anything is begun.

        Returns:
            How many requests it had in hand.
        """
        found: dict[int, list[Key]] = {_BESIDE: [], _BY_ITSELF: []}
        for place in self._free:
            how, *key = _SLOT.unpack_from(self._room, place)
            self._room[place] = _FREE  # a death from here on loses the blame, and does not double it
            if how in found:
                found[how].append((key[0], key[1], key[2], key[3]))
        blamed = set(found[_BY_ITSELF] or found[_BESIDE])  # two processes may ask the same
        for one in blamed if weight else ():
            self._accuse(one, weight, CONVICTED if len(blamed) == 1 else CONVICTED - 1)
        self.is_calm = not self._suspects
        return len(found[_BESIDE]) + len(found[_BY_ITSELF])

    def _accuse(self, key: Key, weight: int, score_max: int = CONVICTED) -> None:
        known = self._suspects.get(key)
        before = 0 if known is None else known.score
        place = self._find_room() if known is None else known.place
        suspect = Suspect(max(before, min(before + weight, score_max)), time.monotonic(), place)
        self._suspects[key] = suspect
        _SUSPECT.pack_into(self._room, place, suspect.score, *key, suspect.blamed_s)

    def _find_room(self) -> int:
        """A free entry, or that of whatever was not blamed for longest."""
        taken = {suspect.place for suspect in self._suspects.values()}
        for number in range(SUSPECTS_MAX):
            place = _SUSPECTS_AT + number * _SUSPECT.size
            if place not in taken:
                return place
        oldest = min(self._suspects, key=lambda key: self._suspects[key].blamed_s)
        return self._suspects.pop(oldest).place

    def begin(self, key: Key) -> int:
        """Note a request, and the place to ``end`` it by."""
        place = self._free.pop() if self._free else -1
        if place >= 0:
            _pack_slot(self._room, place, _BESIDE, *key)
        return place

    def end(self, place: int) -> None:
        """A request has its answer."""
        if place >= 0:
            self._room[place] = _FREE
            self._free.append(place)
            if self._drained is not None and len(self._free) == SLOTS:
                self._drained.set()

    async def admit(self, key: Key) -> int:
        """As ``begin`` while there are suspects: waits for its turn. To be followed by ``leave``.

        Returns:
            The place.
        """
        suspect = self._suspects.get(key)
        if suspect is None and self._is_within_convicted(key):
            self._accuse(key, ALONE)
            suspect = self._suspects[key]
        must_be_alone = suspect is not None and suspect.score >= ALONE
        if not must_be_alone and self._gate is None:
            return self.begin(key)
        with trio.CancelScope(shield=True):
            await (self._close_gate() if must_be_alone else self._wait_for_gate())
        return self._begin_alone(key) if must_be_alone else self.begin(key)

    def _is_within_convicted(self, key: Key) -> bool:
        handler, inode, start, size = key
        return any(
            other[:2] == (handler, inode) and other[2] < start + size and start < other[2] + other[3]
            for other, suspect in (self._suspects.items() if handler == READ else ())
            if suspect.score >= CONVICTED
        )

    def is_convicted(self, key: Key) -> bool:
        """Whether a request must be answered EIO without being looked at."""
        suspect = self._suspects.get(key)
        return suspect is not None and suspect.is_convicted()

    async def _wait_for_gate(self) -> None:
        """Wait until nothing is alone, or wants to be; then it is so, if need be by force."""
        with trio.move_on_after(PATIENCE_S):
            while self._gate is not None:
                await self._gate.wait()
        self._open_gate()

    async def _close_gate(self) -> None:
        """Wait until nothing is in hand, and let nothing begin meanwhile; the gate is open when that takes too long."""
        await self._wait_for_gate()
        self._gate = trio.Event()
        self.is_calm = False
        if len(self._free) < SLOTS:
            self._drained = trio.Event()
            with trio.move_on_after(PATIENCE_S):
                await self._drained.wait()
            self._drained = None

    def _begin_alone(self, key: Key) -> int:
        is_alone = self._gate is not None and self._alone < 0 and len(self._free) == SLOTS
        place = self.begin(key)
        if is_alone:
            self._room[place] = _BY_ITSELF
            self._alone = place
        else:
            self._open_gate()
        return place

    def _open_gate(self) -> None:
        """Nothing is alone any more: what runs, runs beside others."""
        if self._gate is not None:
            self._gate.set()
            self._gate = None
        if self._alone >= 0:
            self._room[self._alone] = _BESIDE
            self._alone = -1

    def leave(self, key: Key, place: int) -> None:
        """As ``end`` after ``admit``: acquits what is answered, and lets others in when it was alone."""
        if place == self._alone and place >= 0:
            self._open_gate()
        self.end(place)
        suspect = self._suspects.pop(key, None)
        if suspect is not None:
            self._room[suspect.place] = 0
        self.is_calm = not self._suspects and self._gate is None
