"""The one wrapper around every FUSE handler, and the one table from errors to errno.

Anything but ``FUSEError`` that leaves a pyfuse3 handler ends the session with the request unanswered, and the kernel
would hand the same request to the next worker. So nothing else leaves one: a result of a wrong type is an error too,
because pyfuse3 would raise it after the handler. Used by ``kitfs.fuse.operations`` only.

Each request is noted while it is in hand (``kitfs.fuse.deliveries``); one that has killed workers is EIO unseen.

A handler must not be cancelled: the reader would get an error for a request that a successor could have answered.
Where a handler awaits anything it shields itself.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pyfuse3

from kitfs.errors import IntegrityError, KitfsError
from kitfs.fuse.deliveries import READ, Key
from kitfs.fuse.memory import COUNTERS, COUNTERS_SIZE
from kitfs.modelkit.served import IsADirectory, NotADirectory
from kitfs.modelkit.tree import NodeNotFound

log = logging.getLogger(__name__)

_EXPECTED: dict[type[KitfsError], int] = {
    NodeNotFound: errno.ENOENT,
    NotADirectory: errno.ENOTDIR,
    IsADirectory: errno.EISDIR,
}
"""Errors that answer a question; every other one means that something is broken, is logged and is EIO."""

_PASSED = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT})
"""Errno of a resource that ran out, which readers may see. Any other comes from the store's files and would say
something wrong about the mount's: EAGAIN "try again", ENOSYS "never ask this again", ENOENT "no such name" for ever."""

_MESSAGES_MAX = 1000


def _counter(name: str) -> Any:
    number = COUNTERS.index(name)

    def get(self: Counters) -> int:
        return self._room[number]

    def put(self: Counters, count: int) -> None:
        self._room[number] = count

    return property(get, put)


class Counters:
    """What the workers of a session have done: this one goes on with the counts of those before it.

    Attributes:
        reads: READ requests answered.
        bytes_read: Bytes in those answers.
        opens: Files opened.
        lookups: Names looked up.
        errors: Requests that failed because something is broken.
        spans_decoded: Spans of compressed layers decoded.
    """

    reads = _counter("reads")
    bytes_read = _counter("bytes_read")
    opens = _counter("opens")
    lookups = _counter("lookups")
    errors = _counter("errors")
    spans_decoded = _counter("spans_decoded")

    def __init__(self, room: memoryview | None = None) -> None:
        """Count in a session's memory, or for itself."""
        self._room = (memoryview(bytearray(COUNTERS_SIZE)) if room is None else room).cast("Q")
        self._spans_before: int = self.spans_decoded
        self._messages: set[str] = set()

    def note_spans(self, count: int) -> None:
        """So many spans has this process decoded by now."""
        self.spans_decoded = self._spans_before + count

    def note_failure(self, message: str, error: BaseException) -> None:
        """Count a failure and log it with its place; the same message once, a thousand messages at most."""
        self.errors += 1
        if len(self._messages) < _MESSAGES_MAX and message not in self._messages:
            self._messages.add(message)
            known = isinstance(error, KitfsError | OSError)
            log.error("%s", message, exc_info=None if known else error)


class ResultWrong(KitfsError):
    """A handler's result is nothing that pyfuse3 can send."""

    def __init__(self, handler: str, result: object) -> None:
        super().__init__(f"{handler} returned {type(result).__name__}")
        self.handler = handler


class ReadShort(IntegrityError):
    """Fewer or more bytes than a READ must be answered with.

    The kernel would take a short answer for the end of the file and keep the file that short for every later open.
    """

    def __init__(self, inode: int, start: int, stop: int, size: int) -> None:
        super().__init__(f"inode {inode}: {size} bytes for the range {start} to {stop}")
        self.inode = inode
        self.start = start
        self.stop = stop
        self.size = size


def errno_of(error: BaseException) -> int:
    """The errno that a reader gets for an error."""
    for kind, number in _EXPECTED.items():
        if isinstance(error, kind):
            return number
    if isinstance(error, OSError) and error.errno in _PASSED:
        return error.errno
    return errno.EIO


def _is_handle(result: object) -> bool:
    return isinstance(result, int) and 0 <= result < 1 << 64


def _is_buffer(result: object) -> bool:
    return isinstance(result, bytes | bytearray) or (isinstance(result, memoryview) and result.c_contiguous)


def _is_name(result: object) -> bool:
    return isinstance(result, bytes) and b"\0" not in result


def _is_names(result: object) -> bool:
    return isinstance(result, list | tuple) and all(_is_name(name) for name in result)


def _is_nothing(result: object) -> bool:
    return result is None


def _is(kind: type) -> Callable[[object], bool]:
    return lambda result: isinstance(result, kind)


_CHECKS: dict[str, Callable[[object], bool]] = {
    "lookup": _is(pyfuse3.EntryAttributes),
    "getattr": _is(pyfuse3.EntryAttributes),
    "readlink": _is_name,
    "open": _is(pyfuse3.FileInfo),
    "read": _is_buffer,
    "opendir": _is_handle,
    "statfs": _is(pyfuse3.StatvfsData),
    "getxattr": _is(bytes),
    "listxattr": _is_names,
    "access": _is(bool),
}
"""What a handler must return; a handler that is not here returns nothing."""

HANDLERS = tuple(name for name, _ in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction))
"""Every request handler that this pyfuse3 knows."""

_Handler = Callable[..., Awaitable[Any]]
_Class = TypeVar("_Class", bound=type[pyfuse3.Operations])


_NUMBERS = {name: number for number, name in enumerate(sorted(HANDLERS, key=lambda name: name != "read"), READ)}
_U64 = (1 << 64) - 1


def guard(operations: _Class) -> _Class:
    """Wrap every handler of a class, inherited ones too. The instances have ``counters`` and ``deliveries``."""
    for name in HANDLERS:
        handler = _guarded(name, getattr(operations, name))
        setattr(operations, name, handler if name == "forget" else _noted(name, handler))
    return operations


class RequestKillsWorkers(KitfsError):
    """A request in whose hands workers died."""


def key_of(number: int, arguments: tuple[Any, ...]) -> Key:
    """What a request is known by: its handler's number, the first three numbers, a name as its checksum."""
    if number == READ and len(arguments) == 3:
        inode, first, second = arguments
    else:
        inode, first, second, *_ = (*(_number_of(one) for one in arguments if isinstance(one, int | bytes)), 0, 0, 0)
    return number, inode, first, second


def _number_of(argument: int | bytes) -> int:
    return zlib.crc32(argument) if isinstance(argument, bytes) else argument & _U64


def _noted(name: str, handler: _Handler) -> _Handler:
    """Have a handler's requests noted; a FUSEError is all that leaves it, as it is all that leaves the handler."""
    number = _NUMBERS[name]

    @functools.wraps(handler)
    async def noted(self: Any, *arguments: Any) -> Any:
        deliveries = self.deliveries
        key = key_of(number, arguments)
        if deliveries.is_calm:
            place = deliveries.begin(key)
            try:
                return await handler(self, *arguments)
            finally:
                deliveries.end(place)
        if deliveries.is_convicted(key):
            error = RequestKillsWorkers("workers died of it each time")
            self.counters.note_failure(_describe(name, arguments, error), error)
            raise pyfuse3.FUSEError(errno.EIO)
        place = await deliveries.admit(key)
        try:
            return await handler(self, *arguments)
        finally:
            deliveries.leave(key, place)

    return noted


def _guarded(name: str, handler: _Handler) -> _Handler:
    fits = _CHECKS.get(name, _is_nothing)

    @functools.wraps(handler)
    async def guarded(self: Any, *arguments: Any) -> Any:
        try:
            result = await handler(self, *arguments)
            if fits(result):
                return result
            raise ResultWrong(name, result)
        except (pyfuse3.FUSEError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - one that leaves ends the session, SystemExit and Cancelled too
            number = errno_of(error)
            if type(error) not in _EXPECTED:
                self.counters.note_failure(_describe(name, arguments, error), error)
        raise pyfuse3.FUSEError(number)

    return guarded


def _describe(name: str, arguments: tuple[Any, ...], error: BaseException) -> str:
    place = ", ".join(repr(argument) for argument in arguments if isinstance(argument, int | bytes))
    return f"{name}({place[:200]}): {type(error).__name__}: {error}"
