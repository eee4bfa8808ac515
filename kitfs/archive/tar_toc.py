"""The table of contents of a tar archive, read while its bytes stream by.

The layer indexer feeds a `TocReader` whatever pieces it has and gets each member with its data, in order. V7, ustar,
GNU and PAX archives are read; only regular files and directories pass, as with kit. Any split of the bytes gives the
same members; a piece in the middle of a member costs one slice. Nothing is kept but the set of paths
(`tar_names`), and only `TarMalformed` leaves. Not thread safe.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

from kitfs.archive.tar_header import Header, PaxRecords, parse_header, parse_pax
from kitfs.archive.tar_member import BLOCK_SIZE, MemberKind, TarMalformed, TarMember
from kitfs.archive.tar_names import PathSet, TocLimits

__all__ = ["MemberKind", "Piece", "TarMalformed", "TarMember", "TocLimits", "TocReader"]

_ZERO_BLOCK = bytes(BLOCK_SIZE)
_NO_DATA = memoryview(b"")
_INT64_MAX = (1 << 63) - 1
_REFUSED_TYPES = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "fifo",
    b"7": "contiguous file",
    b"g": "global extended header",
    b"D": "GNU directory dump",
    b"K": "GNU long link name",
    b"M": "continuation of a GNU multi-volume file",
    b"S": "GNU sparse file",
    b"V": "GNU volume label",
    b"X": "Solaris extended header",
}


class Piece(NamedTuple):
    """Some bytes of one member.

    Attributes:
        member: The member, the same object in each of its pieces.
        data: A view of the bytes that were fed; empty for a directory or an empty file, which have one piece.
        starts: Whether this is the member's first piece.
        ends: Whether it is its last.
    """

    member: TarMember
    data: memoryview
    starts: bool
    ends: bool


class TocReader:
    """Reads an archive that arrives in pieces.

    Attributes:
        offset: Bytes fed so far, up to the end of the archive proper.
    """

    def __init__(self, limits: TocLimits | None = None) -> None:
        self._limits = limits or TocLimits()
        self._paths = PathSet(self._limits)
        self.offset = 0
        self._failed: TarMalformed | None = None
        self._buffer = bytearray()  # a header block, or the blocks of an extended header, in part
        self._buffer_size = BLOCK_SIZE
        self._extension: Header | None = None  # whose body is being collected
        self._skip_size = 0  # padding ahead
        self._member: TarMember | None = None  # whose data are ahead
        self._data_left = 0
        self._pax: PaxRecords | None = None
        self._long_name: bytes | None = None
        self._zero_blocks = 0

    def feed(self, data: bytes | bytearray | memoryview) -> list[Piece]:
        """Take the next bytes of the archive.

        Returns:
            Pieces in the archive's order; their data are views of `data`. Bytes after the two blocks that end the
            archive are passed over, as all readers do.

        Raises:
            TarMalformed: at the first thing refused, and again at every later call.
        """
        if self._failed is not None:
            raise self._failed
        view = memoryview(data).toreadonly()
        pieces: list[Piece] = []
        at = 0
        try:
            while at < len(view) and self._zero_blocks < 2:
                if self._data_left:
                    used = self._take_data(view[at : at + self._data_left], pieces)
                elif self._skip_size:
                    used = min(self._skip_size, len(view) - at)
                    self._skip_size -= used
                else:
                    used = self._collect(view[at : at + self._buffer_size], pieces)
                at += used
                self.offset += used
        except TarMalformed as error:
            self._failed = error
            raise
        return pieces

    @property
    def is_over(self) -> bool:
        """Whether the two blocks that end the archive were read."""
        return self._zero_blocks >= 2

    def pass_over(self) -> int:
        """Leave out the data and padding that are ahead, for who only looks at headers.

        Returns:
            How many bytes; they count as read.
        """
        if self._data_left and self._member is not None:
            self._skip_size = -self._member.size % BLOCK_SIZE
        size = self._data_left + self._skip_size
        self._data_left = self._skip_size = 0
        self.offset += size
        return size

    def close(self) -> None:
        """Say that there are no more bytes.

        Raises:
            TarMalformed: when the archive is empty or ends inside a member, header or padding.
        """
        if self._failed is not None:
            raise self._failed
        member = self._member.path if self._member else None
        if self._data_left:
            self._refuse(self.offset, f"cut short: {self._data_left} bytes of data are missing", member)
        if self._extension or self._pax or self._long_name is not None:
            self._refuse(self.offset, "cut short: extended header without its member")
        if self._skip_size or self._buffer:
            self._refuse(self.offset, "cut short inside a block of 512 bytes", member)
        if self.offset == 0:
            self._refuse(0, "empty: not even the blocks that end an archive")

    def _refuse(self, offset: int, reason: str, member: bytes | None = None) -> NoReturn:
        self._failed = TarMalformed(offset, reason, member)
        raise self._failed

    def _take_data(self, data: memoryview, pieces: list[Piece]) -> int:
        member = self._member
        assert member is not None
        starts = self._data_left == member.size
        self._data_left -= len(data)
        pieces.append(Piece(member, data, starts, self._data_left == 0))
        if self._data_left == 0:
            self._skip_size = -member.size % BLOCK_SIZE
        return len(data)

    def _collect(self, view: memoryview, pieces: list[Piece]) -> int:
        """Complete the block or body that is being collected, and act on it when it is whole."""
        used = min(self._buffer_size - len(self._buffer), len(view))
        if used == self._buffer_size:
            whole = bytes(view[:used])
        else:
            self._buffer += view[:used]
            if len(self._buffer) < self._buffer_size:
                return used
            whole = bytes(self._buffer)
            self._buffer.clear()
        start = self.offset + used - len(whole)
        if self._extension is not None:
            self._take_extension(self._extension, whole, start)
        elif whole == _ZERO_BLOCK:
            self._take_zero_block(start)
        else:
            self._take_header(parse_header(whole, start), start, pieces)
        return used

    def _take_zero_block(self, start: int) -> None:
        if self._pax or self._long_name is not None:
            raise TarMalformed(start, "extended header without its member")
        self._zero_blocks += 1

    def _take_header(self, header: Header, start: int, pieces: list[Piece]) -> None:
        if self._zero_blocks:
            raise TarMalformed(start, "header after a single zero block", header.name)
        if header.typeflag in (b"x", b"L"):
            self._start_extension(header, start)
        elif header.typeflag in (b"0", b"\0", b"5"):
            self._start_member(header, start, pieces)
        else:
            kind = _REFUSED_TYPES.get(header.typeflag, f"member of unknown type {header.typeflag!r}")
            raise TarMalformed(start, f"{kind}: a ModelKit holds files and directories only", header.name)

    def _start_extension(self, header: Header, start: int) -> None:
        if self._pax or self._long_name is not None:
            raise TarMalformed(start, "several extended headers for one member")
        limit = self._limits.path_size + 1 if header.typeflag == b"L" else self._limits.extension_size
        if not 0 < header.size <= limit:
            raise TarMalformed(start, f"extended header of {header.size} bytes (limit {limit})")
        self._extension = header
        self._buffer_size = header.size + -header.size % BLOCK_SIZE

    def _take_extension(self, header: Header, body: bytes, start: int) -> None:
        self._extension = None
        self._buffer_size = BLOCK_SIZE
        if header.typeflag == b"x":
            self._pax = parse_pax(body[: header.size], start)
            return
        # GNU tar and tarfile read a name that no NUL ends on into the padding; bsdtar and Go stop at its size.
        name, _, rest = body.partition(b"\0")
        if not name or len(name) > header.size or rest.strip(b"\0"):
            raise TarMalformed(start, "GNU long name is empty, holds a NUL or is longer than its size", name)
        self._long_name = name

    def _start_member(self, header: Header, start: int, pieces: list[Piece]) -> None:
        name, size, mtime_s = header.name, header.size, header.mtime_s
        if self._long_name is not None:
            name = self._long_name
        if self._pax is not None:
            name = name if self._pax.path is None else self._pax.path
            size = size if self._pax.size is None else self._pax.size
            mtime_s = mtime_s if self._pax.mtime_s is None else self._pax.mtime_s
        self._pax = self._long_name = None
        kind = _kind_of(header, name, start)
        offset = start + BLOCK_SIZE
        if kind is MemberKind.DIRECTORY and size:
            raise TarMalformed(start, f"directory with a size of {size}", name)
        if offset + size > _INT64_MAX:
            raise TarMalformed(start, f"size {size}", name)
        path = self._paths.add(name, kind, start)
        if not path:
            return  # the root itself
        member = TarMember(path, kind, header.mode, size, offset, mtime_s)
        if size:
            self._member = member
            self._data_left = size
        else:
            pieces.append(Piece(member, _NO_DATA, True, True))


def _kind_of(header: Header, name: bytes, start: int) -> MemberKind:
    """File or directory; V7 marks a directory by the slash at the end of its name.

    Raises:
        TarMalformed: where readers disagree: a slash after a file's name, or only in one of its two names.
    """
    if header.typeflag == b"5":
        return MemberKind.DIRECTORY
    has_slash = name.endswith(b"/")
    if header.typeflag == b"\0" and has_slash == header.name.endswith(b"/"):
        return MemberKind.DIRECTORY if has_slash else MemberKind.FILE
    if has_slash or header.typeflag == b"\0":
        raise TarMalformed(start, "slash after the name of a file", name)
    return MemberKind.FILE
