"""The outline of a layer: its directories and what they hold, in columns, so that a mount need not read a whole TOC.

The store keeps the outline of a layer with more than ``MEMBERS_MIN`` members beside its TOC, as values of up to
``ENTRIES`` entries; that of a smaller one is made from the TOC whenever it is wanted. ``kitfs.modelkit.tree`` looks
names up in it. Parsing and encoding are pure; an `Outline` reads values through the function that it is given, from
any thread.

Entry 0 is the layer's root. Directories that paths only imply are entries too, of mode 0755. Numbers go level by
level: the root's entries, then those of its first directory, and so on; in a directory in the order of the archive, so
that reading files in the order of a listing reads the layer from front to back. All numbers are big-endian::

    value   header   <version u8 = 1> <entries in this value u32> <entries in all u32> <bytes of all files u64>
            then a column each, one item an entry:
            parent u32     the directory that holds it; of the root, itself
            children u32   the first entry that it holds, for a file where its would be; one item more at the end, so
                           that the entries of n are [children of n, children of n + 1)
            sorted u32     item n is one of the entries of n's parent: they are those of the parent's range by name
            member u32     its place in the TOC; 0xFFFFFFFF for the root and implied directories
            mode u16       permission bits; bit 15 says that it is a directory
            size u64       bytes of a file
            name u32       where its name ends in the names; the first begins at 0
            names          last components of the paths, one after another
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kitfs.errors import IntegrityError
from kitfs.store.records import KIND_DIRECTORY, TocMember

MEMBERS_MIN = 1024
"""A layer with more members has its outline stored: the TOC of a smaller one is one value anyway."""

ENTRIES = 4096
"""Entries in one value: 180 KiB with names of 15 bytes."""

IMPLIED = 0xFFFFFFFF
_IMPLIED_MODE = 0o755
_DIRECTORY = 1 << 15
_VERSION = 1
_HEADER = struct.Struct(">BIIQ")
_COLUMNS = "IIIIHQI"
_VALUES_MAX = 64
"""Parsed values kept: 10 MiB."""


class OutlineCorrupt(IntegrityError):
    """A value that is no part of an outline."""


class Entry(NamedTuple):
    """One file or directory of a layer.

    Attributes:
        number: Its number in the outline.
        parent: The number of the directory that holds it.
        name: The last component of its path.
        is_directory: Whether it is a directory.
        mode: Permission bits as recorded.
        size: Bytes of a file.
        member: Its place in the TOC, or ``IMPLIED``.
    """

    number: int
    parent: int
    name: bytes
    is_directory: bool
    mode: int
    size: int
    member: int


class _Value:
    """One parsed value."""

    __slots__ = (
        "children",
        "count",
        "ends",
        "members",
        "modes",
        "names",
        "parents",
        "size",
        "sizes",
        "sorted",
        "total",
    )

    def __init__(self, raw: bytes) -> None:
        if len(raw) < _HEADER.size:
            raise OutlineCorrupt(f"a value of {len(raw)} bytes")
        version, self.count, self.total, self.size = _HEADER.unpack_from(raw)
        if version != _VERSION:
            raise OutlineCorrupt(f"version {version} is not known")
        at = _HEADER.size
        columns = []
        for place, code in enumerate(_COLUMNS):
            column = array(code)
            stop = at + (self.count + (place == 1)) * column.itemsize
            column.frombytes(raw[at:stop])
            if sys.byteorder == "little":
                column.byteswap()
            columns.append(column)
            at = stop
        self.parents, self.children, self.sorted, self.members, self.modes, self.sizes, self.ends = columns
        self.names = raw[at:]
        if not self.count or len(self.ends) != self.count or self.ends[-1] != len(self.names):
            raise OutlineCorrupt(f"a value of {len(raw)} bytes for {self.count} entries")

    def name(self, place: int) -> bytes:
        return self.names[self.ends[place - 1] if place else 0 : self.ends[place]]


class Outline:
    """Directories and files of one layer.

    Attributes:
        count: Entries, the root among them.
        size: Bytes of all files.
    """

    def __init__(self, load: Callable[[int], bytes]) -> None:
        """Read the first value.

        Args:
            load: Gives the value of a number.

        Raises:
            OutlineCorrupt: when it is none.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not give it; so at every method.
        """
        self._load = load
        self._lock = threading.Lock()
        self._values: OrderedDict[int, _Value] = OrderedDict()
        first = self._value(0)
        self.count = first.total
        self.size = first.size

    @classmethod
    def of(cls, toc: Sequence[TocMember]) -> Outline:
        """The outline of a layer with a TOC."""
        return cls(encode_outline(toc).__getitem__)

    def get(self, number: int) -> Entry:
        """The entry of a number, which is in the range."""
        return next(self.iter(number, number + 1))

    def children(self, number: int) -> tuple[int, int]:
        """The numbers of what a directory holds, half open; an empty range for a file."""
        sequence, place = divmod(number, ENTRIES)
        children = self._value(sequence).children
        return children[place], children[place + 1]

    def find(self, directory: int, name: bytes) -> Entry | None:
        """What a directory holds under a name."""
        low, high = self.children(directory)
        while low < high:
            middle = (low + high) // 2
            sequence, place = divmod(middle, ENTRIES)
            number = self._value(sequence).sorted[place]
            sequence, place = divmod(number, ENTRIES)
            found = self._value(sequence).name(place)
            if found == name:
                return self.get(number)
            if found < name:
                low = middle + 1
            else:
                high = middle
        return None

    def iter(self, start: int, stop: int) -> Iterator[Entry]:
        """The entries of the numbers ``[start, stop)``."""
        while start < stop:
            sequence, place = divmod(start, ENTRIES)
            value = self._value(sequence)
            base = start - place
            for at in range(place, min(value.count, stop - base)):
                mode = value.modes[at]
                yield Entry(
                    base + at, value.parents[at], value.name(at), mode >= _DIRECTORY, mode & ~_DIRECTORY,
                    value.sizes[at], value.members[at],
                )  # fmt: skip
            start = base + ENTRIES

    def _value(self, sequence: int) -> _Value:
        with self._lock:
            value = self._values.get(sequence)
            if value is not None:
                self._values.move_to_end(sequence)
                return value
        value = _Value(self._load(sequence))
        with self._lock:
            self._values[sequence] = value
            if len(self._values) > _VALUES_MAX:
                self._values.popitem(last=False)
        return value


class _Growing:
    """What is collected from a TOC, by places in the order of the archive; place 0 is the root."""

    def __init__(self) -> None:
        self.parents = array("I", [0])
        self.names = [b""]
        self.members = array("I", [IMPLIED])
        self.modes = array("H", [_DIRECTORY | _IMPLIED_MODE])
        self.sizes = array("Q", [0])
        self.children: dict[int, array[int]] = {0: array("I")}
        self._directories = {b"": 0}

    def add(self, member: TocMember, index: int) -> None:
        """Take a member in; a directory that is there already stays as it is."""
        path, kind, mode, size = member.path, member.kind, member.mode, member.size
        if kind != KIND_DIRECTORY:
            self._put(path, index, mode, size)
        elif path not in self._directories:
            self._put_directory(path, index, mode)

    def _put_directory(self, path: bytes, index: int, mode: int) -> int:
        place = self._put(path, index, mode | _DIRECTORY, 0)
        self._directories[path] = place
        self.children[place] = array("I")
        return place

    def _put(self, path: bytes, index: int, mode: int, size: int) -> int:
        parent, _, name = path.rpartition(b"/")
        above = self._directories.get(parent)
        if above is None:
            above = self._put_directory(parent, IMPLIED, _IMPLIED_MODE)
        place = len(self.names)
        self.parents.append(above)
        self.names.append(name)
        self.members.append(index)
        self.modes.append(mode)
        self.sizes.append(size)
        self.children[above].append(place)
        return place


def encode_outline(toc: Sequence[TocMember]) -> list[bytes]:
    """The values of the outline of a layer with a TOC; at least one."""
    if len(toc) == 1 and not toc[0].path:  # a raw layer: its only member has no name of its own
        grown = _Growing()
        return _encode(grown, toc[0].size)
    grown = _Growing()
    for index, member in enumerate(toc):
        grown.add(member, index)
    return _encode(grown, sum(grown.sizes))


def _encode(grown: _Growing, size: int) -> list[bytes]:
    order = array("I", [0])
    directories = [0]
    for directory in directories:
        held = grown.children[directory]
        order += held
        directories += [place for place in held if place in grown.children]
    numbers = array("I", bytes(4 * len(order)))
    for number, place in enumerate(order):
        numbers[place] = number
    children = array("I")
    following = 1
    for place in order:
        children.append(following)
        following += len(grown.children.get(place, ()))
    children.append(following)
    by_name = array("I", [0])
    for directory in directories:
        by_name.extend(numbers[place] for place in sorted(grown.children[directory], key=grown.names.__getitem__))
    return [
        _encode_value(grown, order[start : start + ENTRIES], numbers, children[start : start + ENTRIES + 1],
                      by_name[start : start + ENTRIES], size)
        for start in range(0, len(order), ENTRIES)
    ]  # fmt: skip


def _encode_value(
    grown: _Growing, places: array[int], numbers: array[int], children: array[int], by_name: array[int], size: int
) -> bytes:
    names = [grown.names[place] for place in places]
    ends = array("I")
    end = 0
    for name in names:
        end += len(name)
        ends.append(end)
    columns = [
        array("I", [numbers[grown.parents[place]] for place in places]),
        children,
        by_name,
        array("I", [grown.members[place] for place in places]),
        array("H", [grown.modes[place] for place in places]),
        array("Q", [grown.sizes[place] for place in places]),
        ends,
    ]
    if sys.byteorder == "little":
        for column in columns:
            column.byteswap()
    header = _HEADER.pack(_VERSION, len(places), len(numbers), size)
    return b"".join((header, *(column.tobytes() for column in columns), *names))
