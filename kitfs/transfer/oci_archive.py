"""An OCI image layout in a tar archive, as a source that is read in place.

Nothing is extracted: a blob is (offset, size) of the archive's file, and one scan of the headers finds them all.
"""

from __future__ import annotations

import os
from pathlib import Path

from kitfs.archive.tar_toc import MemberKind, TocReader
from kitfs.digest import Digest
from kitfs.transfer.oci_layout import Layout
from kitfs.transfer.source import SourceBlob, SourceBlobMissing, SourceMalformed


class LayoutArchive(Layout):
    """A layout that is a tar archive, read in place.

    Only headers and the blobs that are asked for are read. An archive that changes meanwhile gives wrong bytes,
    which the importer refuses by their digest.

    Args:
        path: The archive.
        repository: What bare tags belong to; by default ``localhost/<name of the file without .tar and .oci>``.
    """

    def __init__(self, path: Path, *, repository: str | None = None) -> None:
        super().__init__(path, self, repository)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._places: dict[bytes, tuple[int, int]] | None = None

    def _find(self, name: bytes) -> tuple[int, int] | None:
        if self._places is None:
            self._places = scan_archive(self._fd, self.path)
        return self._places.get(name)

    def _read(self, name: str, limit: int) -> bytes:
        place = self._find(name.encode())
        if place is None:
            raise SourceMalformed(self.path, f"no {name} at its top, so it is not an archive of an OCI layout")
        if place[1] > limit:
            raise SourceMalformed(self.path / name, f"{place[1]} bytes, more than the {limit} that are read")
        return SourceBlob(self._fd, *place, None, owned=False).read()

    def open_blob(self, digest: Digest) -> SourceBlob:
        """A blob's place in the archive; see ``Blobs``.

        Raises:
            SourceBlobMissing: when it is not there.
        """
        place = self._find(b"blobs/sha256/" + digest.hex.encode())
        if place is None:
            raise SourceBlobMissing(digest, str(self.path))
        return SourceBlob(self._fd, *place, None, owned=False)

    def close(self) -> None:
        """Close descriptors; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


_HEADER_READ = 64 << 10
_ZEROS = memoryview(bytes(1 << 20))


def scan_archive(fd: int, path: Path) -> dict[bytes, tuple[int, int]]:
    """(offset, size) of each file in a tar archive, by its name.

    The bytes of large members are not read: the reader of headers is fed zeros in their place, so the 40 GB of a
    layout's blobs cost no I/O.

    Raises:
        TarMalformed: for what the tar reader refuses: links, duplicates, wrong headers, an archive cut short.
        SourceMalformed: when a member would lie beyond the end of the file.
    """
    reader, places = TocReader(), {}
    size_total = os.fstat(fd).st_size
    position = 0
    while position < size_total:
        data = os.pread(fd, _HEADER_READ, position)
        if not data:
            raise SourceMalformed(path, f"it was cut to {position} of {size_total} bytes while it was read")
        position += len(data)
        pieces = reader.feed(data)
        for piece in pieces:
            member = piece.member
            if member.offset + member.size > size_total:
                raise SourceMalformed(path, f"cut short: {member.path!r:.200} ends beyond the end of the archive")
            if member.kind is MemberKind.FILE:
                places[member.path] = (member.offset, member.size)
        if pieces and not pieces[-1].ends:
            stop = pieces[-1].member.offset + pieces[-1].member.size
            while position < stop:
                position += len(zeros := _ZEROS[: stop - position])
                reader.feed(zeros)
    reader.close()
    return places
