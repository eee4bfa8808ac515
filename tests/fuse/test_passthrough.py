"""How an inode is open: chosen once, kept until it is closed, and what is asked of the daemon meanwhile."""

import errno
import socket
from collections.abc import Iterator

import msgspec
import pytest
import trio

from kitfs.digest import Digest
from kitfs.fuse.memory import OPENS_SIZE
from kitfs.fuse.opentable import Mode, OpenTable
from kitfs.fuse.orders import BackingAnswer, BackingCall, WorkerMessage
from kitfs.fuse.passthrough import SIZE_MIN, BackingChanged, BackingClient, OpenModes
from kitfs.store.backing import Backing
from kitfs.store.records import Stamp

BACKING = Backing("members", str(Digest.of(b"x")), Stamp(1, 77, SIZE_MIN, 3, 4))


class Daemon:
    """The daemon's end of a worker's control socket.

    Attributes:
        client: The worker's.
    """

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.client = BackingClient()
        theirs.setblocking(False)
        self.client.attach(theirs.fileno())
        self._socket = trio.socket.from_stdlib_socket(ours)

    async def hear(self) -> BackingCall:
        """What the worker asks for next."""
        return msgspec.json.decode(await self._socket.recv(4096), type=WorkerMessage).backing

    async def answer(self, backing_id: int = 0, error: int = 0) -> BackingCall:
        """Answer what the worker asks for next."""
        call = await self.hear()
        self.client.take(BackingAnswer(call.number, backing_id, error))
        return call


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon that answers what the test says."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Daemon(ours, theirs)


class World:
    """A worker's open table, and the one file that there is.

    Attributes:
        backing: The trusted file, None while there is none.
        renewed: What hashing the file makes of it.
    """

    def __init__(self, client: BackingClient) -> None:
        self.backing: Backing | None = BACKING
        self.renewed: Backing | None = None
        self.table = OpenTable(memoryview(bytearray(OPENS_SIZE)))
        self.modes = OpenModes(self.table, client, self._find)

    async def _find(self, inode: int, renew: bool) -> Backing | None:
        await trio.lowlevel.checkpoint()
        return self.renewed if renew else self.backing


async def test_opens_at_once_get_one_mode(daemon):
    """Two opens of one inode ask once; the last close gives the id back."""
    world, seen = World(daemon.client), []

    async def open_once() -> None:
        seen.append(await world.modes.open(3))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_once)
        nursery.start_soon(open_once)
        assert (await daemon.answer(backing_id=5)).backing == BACKING
    assert seen == [5, 5]
    assert world.table.count(3) == 2
    world.modes.close(3)
    world.modes.close(3)
    assert await daemon.hear() == BackingCall(give_back=5)


async def test_a_mode_is_kept_while_the_file_changes_its_state(daemon):
    """An inode that is open through us stays so when its member becomes a file, until it is closed everywhere."""
    world = World(daemon.client)
    world.backing = None
    assert await world.modes.open(3) == 0
    world.backing = BACKING
    assert await world.modes.open(3) == 0
    world.modes.close(3)
    world.modes.close(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.answer, 6)
        assert await world.modes.open(3) == 6


@pytest.mark.parametrize(
    ("renewed", "fails"),
    [(None, True), (BACKING, False), (Backing("members", BACKING.digest, Stamp(1, 78, SIZE_MIN, 3, 4)), True)],
    ids=["wrong-bytes", "right-bytes", "another-file"],
)
async def test_another_open_of_a_changed_file_is_right_or_refused(daemon, renewed, fails):
    """While it is open its mode can not change: the file is hashed, and what is not the verified one is an error."""
    world = World(daemon.client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.answer, 5)
        await world.modes.open(3)
    world.backing, world.renewed = None, renewed
    if fails:
        with pytest.raises(BackingChanged):
            await world.modes.open(3)
    else:
        assert await world.modes.open(3) == 5
    assert world.table.count(3) == (1 if fails else 2)


async def test_a_small_file_is_not_asked_for(daemon):
    """Below the size of one READ nothing is asked."""
    world = World(daemon.client)
    world.backing = Backing("members", BACKING.digest, Stamp(1, 77, SIZE_MIN - 1, 3, 4))
    assert await world.modes.open(3) == 0


async def test_a_refusal_for_all_files_is_asked_for_once(daemon):
    """Without privilege each open would cost a round trip for nothing."""
    world = World(daemon.client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.answer, 0, errno.EPERM)
        assert await world.modes.open(3) == 0
    assert await world.modes.open(4) == 0
    assert "CAP_SYS_ADMIN" in daemon.client.reason


async def test_another_daemon_is_asked_again(daemon):
    """What one without privilege has refused, its successor may grant."""
    world = World(daemon.client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.answer, 0, errno.EPERM)
        assert await world.modes.open(3) == 0
    descriptor = daemon.client.descriptor
    daemon.client.lose_daemon()
    daemon.client.attach(descriptor)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.answer, 8)
        assert await world.modes.open(4) == 8


async def test_a_refusal_for_one_file_is_not_for_others(daemon):
    """A file that changed in this moment says nothing of the next."""
    world = World(daemon.client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.answer, 0, errno.ESTALE)
        assert await world.modes.open(3) == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.answer, 9)
        assert await world.modes.open(4) == 9


async def test_an_open_does_not_wait_for_a_daemon_that_is_gone(daemon):
    """What was asked when it died is read through us, and so is what is opened while there is none."""
    world, seen = World(daemon.client), []

    async def open_once() -> None:
        seen.append(await world.modes.open(3))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_once)
        await daemon.hear()
        daemon.client.lose_daemon()
    assert [*seen, await world.modes.open(4)] == [0, 0]


async def test_an_answer_that_comes_too_late_is_given_back(daemon, autojump_clock):
    """A daemon that answers nothing for a second holds no open up, and its late id is not lost."""
    world = World(daemon.client)
    async with trio.open_nursery() as nursery:
        calls: list[BackingCall] = []

        async def hear() -> None:
            calls.append(await daemon.hear())

        nursery.start_soon(hear)
        assert await world.modes.open(3) == 0
    daemon.client.take(BackingAnswer(calls[0].number, 11))
    assert await daemon.hear() == BackingCall(give_back=11)


def test_modes_of_a_dead_worker_are_kept(daemon):
    """An inode that a predecessor has open by an id is open by that id."""
    room = memoryview(bytearray(OPENS_SIZE))
    OpenTable(room).begin(3, Mode(12, 77))

    async def find(inode: int, renew: bool) -> Backing | None:
        return BACKING

    assert trio.run(OpenModes(OpenTable(room), daemon.client, find).open, 3) == 12
