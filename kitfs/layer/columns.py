"""Columns of little-endian numbers of one width, of which an image index is made, and a reader that stays within it.

Used by `image_index` and its parts. An item has one encoding only, so equal facts are equal bytes. Pure.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

from kitfs.errors import MalformedError

SIZES = {"B": 1, "H": 2, "I": 4, "Q": 8}
"""Bytes of a number by its code in `array`; these are the same on all machines that Linux runs on."""


class ImageIndexMalformed(MalformedError):
    """Bytes that are no image index, or none that `encode_image_index` writes.

    Attributes:
        offset: The byte where that shows.
        reason: What is wrong, in words.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"malformed image index, byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason


def encode_column(code: str, numbers: Iterable[int]) -> bytes:
    """Numbers one after another, of the width that `SIZES` has for a code."""
    column = array(code, numbers)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


class Cursor:
    """Takes one part after another from the front of some bytes.

    Attributes:
        offset: Of the next byte.
    """

    __slots__ = ("_data", "offset")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.offset = 0

    @property
    def left(self) -> int:
        """Bytes that have not been taken."""
        return len(self._data) - self.offset

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes.

        Raises:
            ImageIndexMalformed: when there are not so many.
        """
        if size > self.left:
            raise ImageIndexMalformed(self.offset, f"{what}: {size} bytes expected, {self.left} are there")
        start = self.offset
        self.offset += size
        return bytes(self._data[start : self.offset])

    def take_column(self, code: str, count: int, what: str) -> array[int]:
        """The next `count` numbers.

        Raises:
            ImageIndexMalformed: when there are not so many.
        """
        column = array(code, self.take(count * SIZES[code], what))
        if sys.byteorder == "big":
            column.byteswap()
        return column
