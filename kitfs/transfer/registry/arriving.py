"""Blobs of a repository while they arrive: threads download, whoever takes a blob in follows behind.

Used by ``remote_source``. Blobs are fetched in the order in which they were announced, a bounded number at once, each
into a file that a later pull goes on with (``kitfs.store.downloads``). Bytes are followed from the page cache; nothing
here verifies them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.oci.manifest import Descriptor
from kitfs.store.downloads import Download
from kitfs.store.layout import Layout
from kitfs.transfer.registry.client import Registry
from kitfs.transfer.registry.errors import RegistryMisbehaves, RegistryUnreachable
from kitfs.transfer.source import PIECE_SIZE, SourceBlob

BREAKS_MAX = 5
"""So many breaks in a row without one more byte end a download."""

_AHEAD_MAX = 64
"""Files that wait to be followed; what comes after them is not fetched yet."""


class PullEnded(KitfsError):
    """A download that was stopped."""


class Arriving:
    """One blob under way.

    Attributes:
        descriptor: Which.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.download: Download | None = None
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_over = False

    def fetch(self, registry: Registry, path: str, layout: Layout, is_closed: Callable[[], bool]) -> None:
        """Download what is missing, until it is there or nobody wants it any more; raises nothing."""
        try:
            download = self.download = Download(layout, self.descriptor.digest)
            if download.size > self.descriptor.size:
                download.restart()
            self._tell()
            self._fetch(registry, path, download, is_closed)
        except BaseException as error:  # noqa: BLE001  # whoever follows gets it
            self._error = error
        finally:
            self._is_over = True
            self._tell()

    def _fetch(self, registry: Registry, path: str, download: Download, is_closed: Callable[[], bool]) -> None:
        size, breaks = self.descriptor.size, 0

        def take(data: bytes) -> None:
            if download.size + len(data) > size:
                raise RegistryMisbehaves(f"blob {self.descriptor.digest}", f"more than its {size} bytes")
            if is_closed():
                raise PullEnded("nobody waits for it any more")
            download.append(data)
            self._tell()

        while download.size < size:
            before = download.size
            try:
                registry.fetch_blob(path, self.descriptor.digest, take, start=before)
                if download.size == before:
                    raise RegistryUnreachable(f"blob {self.descriptor.digest}", f"it ends after {before} bytes")
            except RegistryUnreachable:
                breaks = 0 if download.size > before else breaks + 1
                if breaks >= BREAKS_MAX:
                    raise

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, size: int) -> int:
        """Wait until more than ``size`` bytes are there, or all of them; how many there are.

        Raises:
            BaseException: why no more come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or (self.download is not None and self.download.size > size))
        if self.download is not None and self.download.size > size:
            return self.download.size
        if self._error is not None:
            raise self._error
        return size

    def open(self) -> ArrivingBlob:
        """As a blob of a source."""
        self.wait_for(0)
        assert self.download is not None  # it has bytes, or is over without an error
        return ArrivingBlob(self, self.download.fd)

    def close(self, *, remove: bool) -> None:
        """Close the file, once its thread has ended."""
        if self.download is not None:
            self.download.close(remove=remove)


class ArrivingBlob(SourceBlob):
    """A blob that is read behind its download."""

    def __init__(self, arriving: Arriving, fd: int) -> None:
        super().__init__(fd, 0, arriving.descriptor.size, None, owned=False)
        self._arriving = arriving

    def iter_pieces(self) -> Iterator[memoryview]:
        """The bytes in order, as they come."""
        buffer = memoryview(bytearray(PIECE_SIZE))
        position = there = 0
        while position < self.size:
            if position == there:
                there = self._arriving.wait_for(position)
            count = os.preadv(self.fd, [buffer[: min(PIECE_SIZE, there - position)]], position)
            if count == 0:
                return
            yield buffer[:count]
            position += count

    def wait(self, size: int) -> int:
        """Wait until so many bytes are there; how many are."""
        there = 0
        while there < min(size, self.size):
            there = self._arriving.wait_for(there)
        return there


class Arrivals:
    """All blobs of one pull; a context manager. Leaving it stops what is under way and keeps it for the next pull."""

    def __init__(self, registry: Registry, path: str, layout: Layout, *, concurrency: int) -> None:
        self._registry = registry
        self._path = path
        self._layout = layout
        self._waiting: deque[Arriving] = deque()
        self._all: dict[Digest, Arriving] = {}
        self._wanted = threading.Condition()
        self._is_closed = False
        self._concurrency = concurrency
        self._threads: list[threading.Thread] = []

    def announce(self, descriptors: Sequence[Descriptor]) -> None:
        """These will be opened, in this order."""
        with self._wanted:
            for descriptor in descriptors[:_AHEAD_MAX]:
                if descriptor.digest not in self._all:
                    arriving = self._all[descriptor.digest] = Arriving(descriptor)
                    self._waiting.append(arriving)
            self._wanted.notify_all()
        while len(self._threads) < min(self._concurrency, len(self._all)):
            thread = threading.Thread(target=self._work, name="kitfs-pull", daemon=True)
            self._threads.append(thread)
            thread.start()

    def open(self, descriptor: Descriptor) -> SourceBlob:
        """A blob, as soon as its first bytes are there.

        Raises:
            KitfsError: why it does not come.
        """
        self.announce([descriptor])
        return self._all[descriptor.digest].open()

    def _work(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                arriving = self._waiting.popleft()
            arriving.fetch(self._registry, self._path, self._layout, lambda: self._is_closed)

    def close(self, *, remove: bool) -> None:
        """Stop; files are removed when all of them were taken in, else kept for the next pull."""
        with self._wanted:
            self._is_closed = True
            self._wanted.notify_all()
        for thread in self._threads:
            thread.join()
        for arriving in self._all.values():
            arriving.close(remove=remove)
