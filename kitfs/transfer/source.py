"""What an import reads from: a place that names ModelKits and holds their blobs.

Used by ``importer``; implemented by ``oci_layout`` and ``kit_storage``. Nothing here writes, follows a symbolic
link below the folder that was named, or believes a size or digest: the importer verifies both. A caller closes
every ``SourceBlob`` and every ``Source``. Not for use by several threads at once.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from kitfs.digest import Digest
from kitfs.errors import MalformedError, NotFoundError, UsageError
from kitfs.oci.manifest import Descriptor
from kitfs.oci.reference import UNNAMED_REPOSITORY, Reference
from kitfs.oci.strict_json import LIMIT_BYTES

T = TypeVar("T")

INDEX_SIZE_MAX = LIMIT_BYTES
"""Largest ``index.json`` or ``…-tags.json`` that is read: some 16 000 manifests."""

SMALL_SIZE_MAX = 4 << 20
"""Largest manifest or config (OCI distribution specification 1.1, what registries must take)."""

ENTRIES_MAX = 100_000
"""Most ModelKits that one source may name."""

PIECE_SIZE = 1 << 20
"""Bytes per read: from 256 KiB to 4 MiB no difference was seen in the time of an import."""


class SourceNotFound(NotFoundError):
    """The path that was given as SOURCE does not exist."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} does not exist")
        self.path = path


class SourceNotRecognised(UsageError):
    """A path that is neither an OCI layout, nor a tar archive of one, nor kit's local storage."""

    hint = "SOURCE is an OCI layout (folder or tar), kit's home or storage folder, or one repository's folder in it"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not a place to import from: {reason}")
        self.path = path
        self.reason = reason


class SourceMalformed(MalformedError):
    """A file of a source that breaks its format."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class SourceBlobMissing(MalformedError):
    """A blob that a manifest or index names and the source does not hold."""

    def __init__(self, digest: Digest, place: str) -> None:
        super().__init__(f"blob {digest} is missing from {place}")
        self.digest = digest
        self.place = place


@dataclass(slots=True)
class SourceBlob:
    """An open blob: ``size`` bytes from ``offset`` on of a file.

    Attributes:
        fd: Descriptor for reading; owned when ``owned`` is set.
        offset: Where the blob starts in the file.
        size: Its size on disk now.
        path: The file, when the blob is the whole of it and may be linked; else None.
        owned: Whether ``close`` closes the descriptor.
    """

    fd: int
    offset: int
    size: int
    path: Path | None
    owned: bool = True

    def iter_pieces(self) -> Iterator[memoryview]:
        """The bytes in order; a file that became shorter gives fewer. Each piece is valid until the next one."""
        buffer = memoryview(bytearray(min(PIECE_SIZE, max(self.size, 1))))
        position, stop = self.offset, self.offset + self.size
        while position < stop:
            count = os.preadv(self.fd, [buffer[: min(len(buffer), stop - position)]], position)
            if count == 0:
                return
            yield buffer[:count]
            position += count

    def wait(self, _size: int) -> int:
        """Wait until so many of its first bytes can be read at any offset, if it still arrives; how many can."""
        return self.size

    def read(self) -> bytes:
        """All bytes; for blobs whose size was looked at."""
        return b"".join(bytes(piece) for piece in self.iter_pieces())

    def close(self) -> None:
        """Close the descriptor if it is owned; may be called again."""
        if self.owned and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()


class Blobs(Protocol):
    """Where the blobs of an entry are."""

    def open_blob(self, digest: Digest) -> SourceBlob:
        """Open a blob for reading.

        Raises:
            SourceBlobMissing: when it is not there.
            SourceMalformed: when what is there is not a plain file.
        """
        ...


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One manifest that a source names.

    Attributes:
        repository: Full name, or None when the source does not say.
        tag: Tag, or None when the manifest has none.
        descriptor: The manifest's descriptor; not verified.
        blobs: Where its blobs are.
    """

    repository: str | None
    tag: str | None
    descriptor: Descriptor
    blobs: Blobs

    @property
    def display(self) -> str:
        """How messages name it."""
        repository = (self.repository or "").removeprefix("localhost/")
        if self.tag:
            return f"{repository}:{self.tag}" if repository else self.tag
        return f"{repository}@{self.descriptor.digest}" if repository else str(self.descriptor.digest)


class Source(Protocol):
    """A place to import from.

    Attributes:
        path: What was given.
        origin: What a tag that comes from here is recorded with: ``kit`` or ``layout``.
        warnings: What was passed over while reading, one sentence each.
    """

    path: Path
    origin: str
    warnings: list[str]

    def iter_entries(self) -> Iterator[SourceEntry]:
        """All manifests that the source names, in its order.

        Raises:
            SourceMalformed: when a file of the source breaks its format.
        """
        ...

    def find_entry(self, reference: Reference) -> SourceEntry | None:
        """The entry for a reference, by digest where it has one, else by tag."""
        ...

    def close(self) -> None:
        """Close descriptors; may be called again."""
        ...


def find_in_entries(entries: Iterator[SourceEntry], reference: Reference) -> SourceEntry | None:
    """The first entry that a reference means: its digest in its repository or an unnamed one, else its tag."""
    for entry in entries:
        if reference.digest is not None:
            anywhere = UNNAMED_REPOSITORY in (reference.repository, entry.repository or UNNAMED_REPOSITORY)
            if entry.descriptor.digest == reference.digest and (anywhere or entry.repository == reference.repository):
                return SourceEntry(entry.repository, None, entry.descriptor, entry.blobs)
        elif (entry.repository, entry.tag) == (reference.repository, reference.tag):
            return entry
    return None


def placed(parse: Callable[[bytes], T], raw: bytes, place: Path) -> T:
    """Parse a file of a source, so that an error names the file.

    Raises:
        SourceMalformed: when the parser refuses it.
    """
    try:
        return parse(raw)
    except MalformedError as error:
        raise SourceMalformed(place, str(error)) from error


class BlobFolder:
    """The ``blobs/sha256`` folder of a layout, opened below its root without following any link."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fd = -1

    def open_blob(self, digest: Digest) -> SourceBlob:
        """Open a blob for reading.

        Raises:
            SourceBlobMissing: when it is not there.
            SourceMalformed: when it or a folder above it is a link, a folder or a device.
        """
        path = self._root / "blobs" / "sha256" / digest.hex
        try:
            if self._fd < 0:
                self._fd = open_folder(self._root, "blobs", "sha256")
            fd, size = open_plain(digest.hex, path, self._fd)
        except FileNotFoundError:
            raise SourceBlobMissing(digest, str(self._root)) from None
        return SourceBlob(fd, 0, size, path)

    def close(self) -> None:
        """Close the folder; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_folder(root: Path, *names: str) -> int:
    """A descriptor of a folder below ``root``, which itself may be a link; those below it may not.

    Raises:
        FileNotFoundError: when it is not there.
        SourceMalformed: when a name is a link or not a folder.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        parent = fd
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SourceMalformed(root / "/".join(names), f"not a folder ({error.strerror})") from error
        finally:
            os.close(parent)
    return fd


def open_plain(name: str, path: Path, folder: int) -> tuple[int, int]:
    """Descriptor and size of a plain file in an open folder; never waits for a pipe and follows no link.

    Raises:
        FileNotFoundError: when it is not there.
        SourceMalformed: when it is a link, a folder or a device; ``path`` is for the message.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
        raise SourceMalformed(path, f"not a plain file ({error.strerror})") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise SourceMalformed(path, "not a plain file")
    return fd, status.st_size


def read_plain(root: Path, name: str, *, limit: int = INDEX_SIZE_MAX) -> bytes:
    """A small file of a source, whole.

    Raises:
        FileNotFoundError: when it is not there.
        SourceMalformed: when it is not a plain file or above the limit.
    """
    folder = open_folder(root)
    try:
        fd, size = open_plain(name, root / name, folder)
    finally:
        os.close(folder)
    with SourceBlob(fd, 0, size, None) as blob:
        if size > limit:
            raise SourceMalformed(root / name, f"{size} bytes, more than the {limit} that are read")
        return blob.read()
