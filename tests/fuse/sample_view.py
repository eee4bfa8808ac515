"""A view of made-up files, good and faulty, and a program that serves it as a worker does.

``python sample_view.py DEVICE INIT CONTROL RESEND`` is started by the fixtures in ``conftest.py``.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kitfs.errors import IntegrityError
from kitfs.fuse.deliveries import Deliveries
from kitfs.fuse.guard import Counters
from kitfs.fuse.handover import Handover
from kitfs.fuse.memory import SessionMemory
from kitfs.fuse.worker import serve
from kitfs.modelkit.served import Attributes, IsADirectory, NativeShare, NotADirectory
from kitfs.modelkit.tree import NodeKind, NodeNotFound
from kitfs.modelkit.view import Statistics

HELLO = b"hello\n"
BIG_SIZE = (8 << 20) + 13
MANY = 10_000
MTIME_NS = 1_700_000_000_123_456_789
STUCK_S = 3600.0
STUCK_FIFO = "SAMPLE_VIEW_STUCK_FIFO"
"""Name of the environment variable with the path of a FIFO that a stuck read writes to."""


def content(start: int, stop: int) -> bytes:
    """Bytes of every large file: its 8-byte words are numbered, so that a wrong place shows."""
    words = array("Q", range(start // 8, -(-stop // 8)))
    return words.tobytes()[start % 8 : start % 8 + stop - start]


def _raise(error: BaseException) -> None:
    raise error


def _stick(start: int, stop: int) -> None:
    with open(os.environ[STUCK_FIFO], "wb") as fifo:
        fifo.write(b"!")
    time.sleep(STUCK_S)


@dataclass(frozen=True)
class SampleFile:
    """A file whose bytes are computed: at once, in a thread, or not as they should be."""

    size: int
    make: Callable[[int, int], object] = content
    ready: bool = True
    state: str = "lazy"

    def read_ready(self, start: int, stop: int) -> object:
        return self.make(start, stop) if self.ready else None

    def begin_read(self, start: int, stop: int) -> None:
        return None

    def read(self, start: int, stop: int) -> object:
        return self.make(start, stop)


def _failing(error: BaseException, **options: bool) -> SampleFile:
    return SampleFile(4096, lambda start, stop: _raise(error), **options)


FILES: dict[bytes, SampleFile] = {
    b"hello.txt": SampleFile(len(HELLO), lambda start, stop: HELLO[start:stop], state="native"),
    b"empty": SampleFile(0),
    b"big.bin": SampleFile(BIG_SIZE),
    b"slow.bin": SampleFile(BIG_SIZE, ready=False),
    b"views.bin": SampleFile(BIG_SIZE, lambda start, stop: memoryview(content(start, stop))),
    b"stuck": SampleFile(4096, _stick, ready=False),
    b"faulty-exception": _failing(RuntimeError("a bug")),
    b"faulty-exception-in-thread": _failing(RuntimeError("a bug"), ready=False),
    b"faulty-exit": _failing(SystemExit(3)),
    b"faulty-interrupt": _failing(KeyboardInterrupt()),
    b"faulty-digest": _failing(IntegrityError("a span is damaged")),
    b"faulty-oserror": _failing(OSError(errno.ENOSYS, "never ask again")),
    b"faulty-blocking": _failing(BlockingIOError(errno.EAGAIN, "not in the page cache")),
    b"faulty-errno": _failing(OSError(100_000, "no such errno")),
    b"faulty-missing": _failing(FileNotFoundError(errno.ENOENT, "a blob is gone")),
    b"faulty-text": SampleFile(4096, lambda start, stop: "x" * (stop - start)),
    b"faulty-nothing": SampleFile(4096, lambda start, stop: None, ready=False),
    b"faulty-strided": SampleFile(4096, lambda start, stop: memoryview(bytes(2 * (stop - start)))[::2]),
    b"faulty-short": SampleFile(4096, lambda start, stop: bytes(stop - start - 1)),
    b"faulty-short-in-thread": SampleFile(4096, lambda start, stop: bytes(stop - start - 1), ready=False),
    b"faulty-long": SampleFile(4096, lambda start, stop: bytes(stop - start + 1)),
    b"killer": SampleFile(1 << 20),
    b"victim": SampleFile(1 << 20),
    b"full": _failing(OSError(errno.EMFILE, "too many open files")),
}

ROOT, MANY_INODE, LINK_INODE, BAD_INODE, FIRST_FILE, FIRST_OF_MANY = 1, 2, 3, 4, 100, 1000
NAMES = {name: FIRST_FILE + number for number, name in enumerate(FILES)}
DIRECTORIES = {b"many": MANY_INODE, b"link": LINK_INODE}


class SampleView:
    """Serves ``FILES``, a directory of ten thousand files, and a symlink."""

    blocking = False
    negative_timeout_s = 1000.0

    def attributes(self, inode: int) -> Attributes:
        if inode in (ROOT, MANY_INODE):
            return self._make(inode, NodeKind.DIRECTORY, 0o555, 0)
        if inode == LINK_INODE:
            return self._make(inode, NodeKind.SYMLINK, 0o777, len(b"hello.txt"))
        if FIRST_OF_MANY <= inode < FIRST_OF_MANY + MANY:
            return self._make(inode, NodeKind.FILE, 0o444, 0)
        if inode == BAD_INODE:
            return self._make(inode, NodeKind.FILE, "not a mode", 0)  # type: ignore[arg-type] # a bug in a view
        return self._make(inode, NodeKind.FILE, 0o444, self.open(inode).size)

    def _make(self, inode: int, kind: NodeKind, mode: int, size: int) -> Attributes:
        return Attributes(inode, kind, mode, size, MTIME_NS, os.getuid(), os.getgid(), timeout_s=1000.0)

    def lookup(self, inode: int, name: bytes) -> Attributes:
        if name == b"faulty-lookup":
            raise RuntimeError("a bug")
        if name == b"faulty-attributes":
            return self.attributes(BAD_INODE)
        for entry, _, number in self._entries(inode):
            if entry == name:
                return self.attributes(number)
        raise NodeNotFound(name)

    def _entries(self, inode: int) -> list[tuple[bytes, Attributes | None, int]]:
        if inode == ROOT:
            return [(name, None, number) for name, number in {**DIRECTORIES, **NAMES}.items()]
        if inode == MANY_INODE:
            return [(b"%05d" % number, None, FIRST_OF_MANY + number) for number in range(MANY)]
        raise NotADirectory(f"inode {inode}")

    def iter_directory(self, inode: int, after: int) -> Iterator[tuple[bytes, Attributes, int]]:
        for name, _, number in self._entries(inode):
            if number > after:
                yield name, self.attributes(number), number

    def read_link(self, inode: int) -> bytes:
        return b"hello.txt"

    def open(self, inode: int) -> SampleFile:
        if inode in (ROOT, MANY_INODE):
            raise IsADirectory(f"inode {inode}")
        if 0 <= inode - FIRST_FILE < len(FILES):
            return list(FILES.values())[inode - FIRST_FILE]
        if FIRST_OF_MANY <= inode < FIRST_OF_MANY + MANY:
            return SampleFile(0)
        raise NodeNotFound(inode)

    def state(self, inode: int) -> str | None:
        return self.open(inode).state if self.attributes(inode).kind is NodeKind.FILE else None

    def find_backing(self, inode: int, *, renew: bool = False) -> None:
        """No file is a plain file."""

    def warm(self) -> None:
        """Nothing is read ahead."""

    def measure_native(self) -> NativeShare:
        return NativeShare(0, sum(file.size for file in FILES.values()), is_begun=False)

    def statistics(self) -> Statistics:
        return Statistics(sum(file.size for file in FILES.values()), MANY + len(FILES) + 3)


class BlockingView(SampleView):
    """The same, but every method belongs in a thread."""

    blocking = True


class FreedView(SampleView):
    """The same, but nothing is stuck."""

    def open(self, inode: int) -> SampleFile:
        return SampleFile(4096) if inode == NAMES[b"stuck"] else super().open(inode)


class KillingView(SampleView):
    """Two files more: a read of ``killer`` waits for as many reads of ``victim`` as its page says, then SIGSEGV."""

    victims_wait = True

    def __init__(self) -> None:
        self._waiting = threading.Semaphore(0)

    def open(self, inode: int) -> SampleFile:
        if inode == NAMES[b"killer"]:
            return SampleFile(1 << 20, self._kill, ready=False)
        if inode == NAMES[b"victim"]:
            return SampleFile(1 << 20, self._wait, ready=False)
        return super().open(inode)

    def _wait(self, start: int, stop: int) -> object:
        self._waiting.release()
        if self.victims_wait:
            time.sleep(STUCK_S)
        return content(start, stop)

    def _kill(self, start: int, stop: int) -> object:
        for _ in range(start // 4096 if self.victims_wait else 0):
            self._waiting.acquire()
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError


class KillingAgainView(KillingView):
    """The same for a successor: reads of ``victim`` are answered at once."""

    victims_wait = False


VIEWS = {
    "sample": SampleView,
    "blocking": BlockingView,
    "freed": FreedView,
    "killing": KillingView,
    "killing-again": KillingAgainView,
}


def main(view: str, device: str, init: str, control: str, memory: str, resend: str, blame: str) -> None:
    """Serve as a worker, until the mount is gone."""
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s", level=logging.INFO)
    os.chdir("/")
    handover = Handover(device=int(device), init=int(init), resend=resend == "True")
    shared = SessionMemory.map(int(memory))
    shared.lock_life()
    deliveries = Deliveries(shared.deliveries)
    deliveries.blame(int(blame))
    serve(VIEWS[view](), handover, socket.socket(fileno=int(control)), deliveries, Counters(shared.counters))


if __name__ == "__main__":
    main(*sys.argv[1:])
