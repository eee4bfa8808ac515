"""The files that a layer's members are delivered into, and what each way of reading a layer has in common.

`deliver` and the ways that it chooses from use it. Tasks run on the crew; a file is placed by the task that writes its
last bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from kitfs.digest import Digest
from kitfs.layer.crew import Crew, Task
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.policy import MATERIALISED_SIZE_MIN
from kitfs.layer.reader import LayerReader
from kitfs.store.errors import MemberNotFound, RecordCorrupt
from kitfs.store.records import KIND_FILE, TocMember
from kitfs.store.store import Store

_COPIED_SIZE = 64 << 20  # by one task: an interrupt waits for it


class File(Protocol):
    """Where a member's bytes go; its methods raise what its maker says."""

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes; any thread, any order."""

    def copy(self, fd: int, start: int, stop: int) -> int:
        """Copy a range of another file to the same place; how many bytes there were."""

    def place(self) -> None:
        """All is written, and verified."""

    def discard(self) -> None:
        """It will never be; raises nothing."""


Create = Callable[[int, TocMember], File | None]
"""Begins the file of a member, by its place in the TOC; None when it is not wanted. Called in any thread."""

Advance = Callable[[int], None]
"""Told of bytes that are done, or passed over; called in any thread."""


class OpenFiles:
    """Files that are begun and not placed, and who writes them.

    Attributes:
        store: Where members may have files of their own.
        crew: Who works.
    """

    def __init__(self, store: Store, crew: Crew) -> None:
        self.store = store
        self.crew = crew
        self._begun: set[File] = set()
        self._lock = threading.Lock()

    def add(self, file: File) -> None:
        """A file is begun."""
        with self._lock:
            self._begun.add(file)

    def remove(self, file: File) -> None:
        """A file is about to be placed."""
        with self._lock:
            self._begun.discard(file)

    def discard(self) -> None:
        """Discard what is not placed; the crew has ended."""
        with self._lock:
            begun, self._begun = self._begun, set()
        for file in begun:
            file.discard()


class Begun:
    """A file that tasks write; the one that writes its last bytes places it."""

    __slots__ = ("_advance", "_files", "_left", "_lock", "file", "member")

    def __init__(self, files: OpenFiles, file: File, member: TocMember, advance: Advance) -> None:
        self.file = file
        self.member = member
        self._files = files
        self._advance = advance
        self._left = member.size
        self._lock = threading.Lock()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write verified bytes."""
        self.file.write(data, offset)
        self.note(len(data))

    def note(self, size: int) -> None:
        """So many bytes more are written."""
        with self._lock:
            self._left -= size
            is_last = self._left == 0
        if is_last:
            self._files.remove(self.file)
            self.file.place()
        self._advance(size)


class Job:
    """The files of one layer.

    Attributes:
        reader: The layer.
    """

    def __init__(self, files: OpenFiles, reader: LayerReader, create: Create, advance: Advance) -> None:
        self._files = files
        self.reader = reader
        self._create = create
        self._advance = advance

    def iter_files(self) -> Iterator[tuple[int, TocMember]]:
        """Files whose bytes are to be had from the layer, in its order."""
        for index, member in enumerate(self.reader.toc):
            if member.kind == KIND_FILE and not self._copy_own(index, member):
                yield index, member

    def begin(self, index: int, member: TocMember) -> Begun | None:
        """Begin a member's file; None when it is not wanted, or empty and so placed already."""
        file = self._create(index, member)
        if file is None:
            self._advance(member.size)
            return None
        if not member.size:
            file.place()
            return None
        self._files.add(file)
        return Begun(self._files, file, member, self._advance)

    def submit(self, task: Task) -> None:
        """Have a task done."""
        self._files.crew.submit(task)

    def _copy_own(self, index: int, member: TocMember) -> bool:
        """Have a member's own file copied, where the store has one that can be trusted."""
        own = self._find_own(member) if member.size >= MATERIALISED_SIZE_MIN else None
        if own is None:
            return False
        begun = self.begin(index, member)
        for start in range(0, member.size if begun else 0, _COPIED_SIZE):
            assert begun is not None
            stop = min(start + _COPIED_SIZE, member.size)
            self.submit(partial(self._copy, begun, own, index, start, stop))
        return True

    def _find_own(self, member: TocMember) -> Descriptor | None:
        assert member.digest is not None  # files have one
        try:
            fd, is_trusted = self._files.store.open_member(Digest.from_raw(member.digest))
        except (MemberNotFound, RecordCorrupt):
            return None
        own = Descriptor(fd)
        return own if is_trusted and os.fstat(fd).st_size == member.size else None

    def _copy(self, begun: Begun, own: Descriptor, index: int, start: int, stop: int) -> None:
        fd = os.open(f"/proc/self/fd/{own.fd}", os.O_RDONLY | os.O_CLOEXEC)  # the kernel reads ahead by descriptor
        try:
            size = begun.file.copy(fd, start, stop)
        finally:
            os.close(fd)
        if size != stop - start:
            raise self.corrupt(f"the file of its own was cut to {start + size} bytes", index, start + size)
        begun.note(size)

    def corrupt(self, reason: str, index: int | None, offset: int) -> LayerCorrupt:
        """The error for what is wrong with the layer, or with a member."""
        return LayerCorrupt(self.reader.layer, member=index, span=None, offset=offset, reason=reason)
