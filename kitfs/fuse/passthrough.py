"""Passthrough: files that the kernel reads from a file of the store by itself, asking nobody (fuse.md 3).

Used by ``kitfs.fuse.operations``. ``OpenModes`` decides how an inode is open when its count leaves 0, and keeps to it
until it is 0 again; ``BackingClient`` has the daemon make files known to the kernel. pyfuse3 can not answer an OPEN so,
the extension of ``kitfs.fuse.interpose`` can. Without it, the kernel's consent or the daemon's privilege every file is
read through us.

Concurrency: trio thread only. The choice of a mode awaits; whoever opens the same inode meanwhile waits for it.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import trio

from kitfs.errors import IntegrityError
from kitfs.fuse.opentable import Mode, OpenTable, TableFull
from kitfs.fuse.orders import FOR_THIS_FILE, BackingAnswer, BackingCall, WorkerMessage, describe_obstacle
from kitfs.store.backing import Backing

log = logging.getLogger(__name__)

SIZE_MIN = 128 << 10
"""Bytes of the smallest file that is passed through: a smaller one is one READ, which costs less than asking for it."""

ANSWER_TIMEOUT_S = 1.0
"""For how long an open waits for the daemon, which answers within 1 ms."""


class BackingChanged(IntegrityError):
    """The file that the kernel reads for an inode is not the one that was verified, and the inode is still open."""

    def __init__(self, inode: int) -> None:
        super().__init__(f"the backing file of inode {inode} has changed while it is open")
        self.inode = inode


@dataclass
class _Asked:
    """A question under way."""

    answered: trio.Event = field(default_factory=trio.Event)
    answer: BackingAnswer | None = None


class BackingClient:
    """Asks the daemon for backing files.

    Attributes:
        descriptor: The control socket, which does not block; -1 while there is no daemon.
        reason: Why no file is passed through, empty while they are.
    """

    def __init__(self, reason: str = "") -> None:
        self.descriptor = -1
        self.reason = reason
        self._own_reason = reason
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}

    async def open(self, backing: Backing) -> int:
        """The id by which the kernel knows a file from now on, 0 for none."""
        number = next(self._numbers)
        asked = self._asked[number] = _Asked()
        try:
            if self.reason or not self._send(BackingCall(number, backing)):
                return 0
            with trio.move_on_after(ANSWER_TIMEOUT_S, shield=True):
                await asked.answered.wait()
        finally:
            del self._asked[number]
        answer = asked.answer
        if answer is None:
            return 0
        if answer.error and answer.error not in FOR_THIS_FILE:
            self.reason = describe_obstacle(answer.error)
            log.info("files are not passed through: %s", self.reason)
        return answer.backing_id

    def give_back(self, backing_id: int) -> None:
        """No open file uses an id any more. Who can not say so leaves it to the next sweep."""
        self._send(BackingCall(give_back=backing_id))

    def take(self, answer: BackingAnswer) -> None:
        """An answer has come; one that nobody waits for any more is given back."""
        asked = self._asked.get(answer.number)
        if asked is None or asked.answered.is_set():
            if answer.backing_id:
                self.give_back(answer.backing_id)
            return
        asked.answer = answer
        asked.answered.set()

    def attach(self, descriptor: int) -> None:
        """There is a daemon; what another one had refused for all files is asked for again."""
        self.descriptor = descriptor
        self.reason = self._own_reason

    def lose_daemon(self) -> None:
        """Nobody answers what was asked: those files are read through us."""
        self.descriptor = -1
        for asked in self._asked.values():
            asked.answered.set()

    def _send(self, call: BackingCall) -> bool:
        if self.descriptor < 0:
            return False
        try:
            os.write(self.descriptor, msgspec.json.encode(WorkerMessage(backing=call)))
        except OSError:
            return False
        return True


class OpenModes:
    """How each inode is open: in one mode, and on one backing file, for as long as it is open anywhere."""

    def __init__(
        self, table: OpenTable, client: BackingClient, find_backing: Callable[[int, bool], Awaitable[Backing | None]]
    ) -> None:
        """Go on with what predecessors have left open.

        Args:
            table: The open table.
            client: Who asks the daemon.
            find_backing: The trusted file of an inode; hashed first, when it is not as it was, if the second says so.
        """
        self._table = table
        self._client = client
        self._find_backing = find_backing
        self._choosing: dict[int, trio.Event] = {}

    async def open(self, inode: int) -> int:
        """Count an open that is about to be answered, and say by which backing file; 0: it is read through us.

        Raises:
            BackingChanged: when it is open already, and its backing file was changed behind our back since.
            TableFull: when too many inodes are open.
        """
        while (choosing := self._choosing.get(inode)) is not None:
            with trio.CancelScope(shield=True):
                await choosing.wait()
        mode = self._table.find(inode)
        if mode is None:
            return await self._begin(inode)
        self._table.count_up(inode)
        if mode.backing_id:
            try:
                await self._check(inode, mode)
            except BaseException:
                self.close(inode)
                raise
        return mode.backing_id

    async def _begin(self, inode: int) -> int:
        chosen = self._choosing[inode] = trio.Event()
        try:
            mode = await self._choose(inode)
            try:
                self._table.begin(inode, mode)
            except TableFull:
                self._give_back(mode)
                raise
        finally:
            del self._choosing[inode]
            chosen.set()
        return mode.backing_id

    async def _choose(self, inode: int) -> Mode:
        backing = None if self._client.reason else await self._find_backing(inode, False)
        if backing is None or backing.stamp.size < SIZE_MIN:
            return Mode()
        backing_id = await self._client.open(backing)
        return Mode(backing_id, backing.stamp.inode) if backing_id else Mode()

    async def _check(self, inode: int, mode: Mode) -> None:
        """A file that is open can be changed too; then it has right bytes again before another open, or none has."""
        backing = await self._find_backing(inode, False)
        if backing is None:
            backing = await self._find_backing(inode, True)
        if backing is None or backing.stamp.inode != mode.file:
            raise BackingChanged(inode)

    def close(self, inode: int) -> None:
        """Count an open that has ended: its RELEASE was answered, or its OPEN was answered with an error."""
        self._give_back(self._table.count_down(inode))

    def _give_back(self, mode: Mode | None) -> None:
        if mode is not None and mode.backing_id:
            self._client.give_back(mode.backing_id)
