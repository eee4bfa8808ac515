"""Whatever a handler does, only FUSEError leaves it."""

import errno
import inspect
import logging

import pyfuse3
import pytest
import trio

from kitfs.errors import IntegrityError, KitfsError
from kitfs.fuse.deliveries import Deliveries
from kitfs.fuse.guard import HANDLERS, Counters, errno_of, guard
from kitfs.fuse.operations import KitOperations
from kitfs.modelkit.served import IsADirectory, NotADirectory
from kitfs.modelkit.tree import NodeNotFound


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NodeNotFound(b"x"), errno.ENOENT),
        (NotADirectory("x"), errno.ENOTDIR),
        (IsADirectory("x"), errno.EISDIR),
        (IntegrityError("x"), errno.EIO),
        (KitfsError("x"), errno.EIO),
        (OSError(errno.EMFILE, "x"), errno.EMFILE),
        (OSError(errno.ENOMEM, "x"), errno.ENOMEM),
        (OSError(errno.EIO, "x"), errno.EIO),
        (OSError(errno.ENOSYS, "x"), errno.EIO),
        (OSError(errno.EAGAIN, "x"), errno.EIO),
        (OSError(errno.EINTR, "x"), errno.EIO),
        (OSError(errno.ENOENT, "x"), errno.EIO),
        (OSError(100_000, "x"), errno.EIO),
        (OSError(-5, "x"), errno.EIO),
        (OSError("no number"), errno.EIO),
        (ValueError("x"), errno.EIO),
        (MemoryError(), errno.EIO),
    ],
    ids=repr,
)
def test_each_error_has_its_errno(error, number):
    """Readers learn what they asked about; what is broken is EIO, or the errno of a resource that ran out."""
    assert errno_of(error) == number


def test_every_handler_of_this_pyfuse3_is_wrapped():
    """No request reaches code that is not guarded, handlers that are inherited and future ones included."""
    assert len(HANDLERS) >= 30
    for name in HANDLERS:
        assert inspect.unwrap(getattr(KitOperations, name)) is not getattr(KitOperations, name), name


def guarded(body, name="getxattr"):
    operations = guard(type("Faulty", (pyfuse3.Operations,), {name: body}))()
    operations.counters = Counters()
    operations.deliveries = Deliveries()
    return operations


async def failure(operations, *arguments, name="getxattr"):
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await getattr(operations, name)(*arguments)
    return caught.value.errno


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), StopAsyncIteration()], ids=repr)
async def test_anything_raised_becomes_eio(error):
    """A bug, and even a request to end the process, is EIO and counted."""

    async def body(self, inode):
        raise error

    operations = guarded(body)
    assert await failure(operations, 1) == errno.EIO
    assert operations.counters.errors == 1


async def test_cancellation_inside_a_handler_becomes_eio():
    """A Cancelled that is on its way out of a handler stops there, and the task can go on."""

    async def body(self, inode):
        await trio.sleep_forever()

    operations = guarded(body)
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await failure(operations, 1) == errno.EIO
    assert operations.counters.errors == 1


async def test_own_answers_pass_and_count_as_no_error():
    """A handler's FUSEError, and an entry that does not exist, reach the kernel as they are."""

    async def body(self, inode):
        raise pyfuse3.FUSEError(errno.ENODATA) if inode == 1 else NodeNotFound(b"x")

    operations = guarded(body)
    assert await failure(operations, 1) == errno.ENODATA
    assert await failure(operations, 2) == errno.ENOENT
    assert operations.counters.errors == 0


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("getattr", None),
        ("getxattr", "text"),
        ("read", None),
        ("read", memoryview(bytes(8))[::2]),
        ("readlink", b"a\0b"),
        ("listxattr", [b"good", "bad"]),
        ("opendir", -1),
        ("opendir", 1 << 64),
        ("access", 1),
        ("release", 5),
    ],
)
async def test_result_that_pyfuse3_can_not_send_becomes_eio(name, result):
    """A wrong result is found in the handler, because after it nobody could answer the request."""

    async def body(self, *_):
        return result

    assert await failure(guarded(body, name), 1, name=name) == errno.EIO


async def test_a_failure_is_logged_with_its_place_and_once(caplog):
    """The log names handler, arguments and error; a reader that tries a thousand times does not fill the disk."""

    async def body(self, inode, name, ctx):
        raise IntegrityError("span 7 of sha256:ab is damaged")

    operations = guarded(body)
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            await failure(operations, 5, b"weights", object())
    assert [record.getMessage() for record in caplog.records] == [
        "getxattr(5, b'weights'): IntegrityError: span 7 of sha256:ab is damaged"
    ]
    assert operations.counters.errors == 1000
