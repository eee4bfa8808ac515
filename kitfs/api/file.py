"""An open file of a ModelKit: raw I/O over verified ranges.

``KitPath.open`` gives one of these inside of the buffers that builtin ``open`` would use. ``read_range`` may be called
by any thread; the position that ``read`` and ``seek`` have in common is, as with any file, one thread's.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from kitfs.api.kit import ModelKit
    from kitfs.modelkit.served import OpenFile

STEP_SIZE = 4 << 20
"""Bytes that are asked for at once: memory beside the result, however large that is."""


class KitFile(io.RawIOBase):
    """A file of a ModelKit, read only; every byte is verified before it is given away.

    Attributes:
        name: Its path in the ModelKit.
        mode: ``rb``.
        size: Its bytes.
    """

    mode = "rb"

    def __init__(self, kit: ModelKit, name: str, file: OpenFile) -> None:
        self._source: tuple[ModelKit, OpenFile] | None = kit, file
        self._position = 0
        self._reference = kit.reference
        self.name = name
        self.size = file.size

    def close(self) -> None:
        """Give the file back, and the ModelKit when nothing else refers to it; harmless when closed."""
        super().close()
        self._source = None

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)``, wherever the position is; any thread.

        Raises:
            ValueError: when the range is not within the file, or the file or its ModelKit is closed.
            LayerCorrupt: when the store's bytes are not those that were verified.
            KitfsError, OSError: when the store or the disk fails.
        """
        kit, file = self._get_open()
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"range [{start}, {stop}) of a file of {self.size} bytes")
        with kit.using():
            if stop - start <= STEP_SIZE:
                return bytes(file.read(start, stop))
            buffer = io.BytesIO()  # gives its memory away; joining pieces would take twice as much
            for at in range(start, stop, STEP_SIZE):
                buffer.write(file.read(at, min(at + STEP_SIZE, stop)))
            return buffer.getvalue()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer from the position on; fewer bytes only at the end of the file."""
        kit, file = self._get_open()
        view = memoryview(buffer).cast("B")
        start = min(self._position, self.size)
        stop = min(start + len(view), self.size)
        with kit.using():
            for at in range(start, stop, STEP_SIZE):
                piece = file.read(at, min(at + STEP_SIZE, stop))
                view[at - start : at - start + len(piece)] = piece
        self._position += stop - start
        return stop - start

    def read(self, size: int | None = -1, /) -> bytes:
        """At most so many bytes from the position on; all that follow when it is negative or None."""
        self._get_open()
        start = min(self._position, self.size)
        stop = self.size if size is None or size < 0 else min(start + size, self.size)
        data = self.read_range(start, stop)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """All bytes from the position on."""
        return self.read()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position, which may lie beyond the end.

        Raises:
            ValueError: when it would be negative, or ``whence`` is none of the three.
        """
        self._get_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if bases[whence] + offset < 0:
            raise ValueError(f"negative seek value {bases[whence] + offset}")
        self._position = bases[whence] + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        self._get_open()
        return self._position

    def readable(self) -> bool:
        """Yes."""
        self._get_open()
        return True

    def seekable(self) -> bool:
        """Yes."""
        self._get_open()
        return True

    def __repr__(self) -> str:
        return f"<kitfs.KitFile {self.name!r} of {self._reference}>"

    def _get_open(self) -> tuple[ModelKit, OpenFile]:
        if self._source is None:
            raise ValueError("I/O operation on closed file")
        return self._source
