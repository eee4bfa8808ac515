"""The bytes of one layer: a tar as kit writes it or one file, as a stream, and a stream's way into the store.

The stream goes to an ingest and to the indexer in one pass; on disk when ``write_layer`` returns is the whole layer
under its digest, not yet in the index. Used by pack. A file that changes while it is read is an error, and nothing of
its layer stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator

from kitfs.archive.tar_toc import MemberKind
from kitfs.archive.tar_write import END_OF_ARCHIVE, encode_member_header, padding
from kitfs.errors import KitfsError
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.modelkit.walk import Entry, naming
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.lease import Lease
from kitfs.store.split_ingest import SplitIngest
from kitfs.store.store import Store

_PIECE_SIZE = 1 << 20

Advance = Callable[[int], None]
"""Told how many more bytes of files were read; what it raises ends the stream."""


class FileChanged(KitfsError):
    """A file that changed while it was being packed.

    Attributes:
        path: Relative to the packed directory.
    """

    hint = "pack again when nothing writes to the directory"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} changed while it was being packed")
        self.path = path


def iter_tar(entries: Iterable[Entry], advance: Advance) -> Iterator[bytes]:
    """The bytes of a tar of the entries, in their order, in pieces of about 1 MiB.

    Raises:
        FileChanged: while iterating, when a file's size or time changed meanwhile.
        PathUnreadable: when a file can not be read.
        MemberUnwritable: when a name is beyond what we read back.
    """
    pending: list[bytes] = []
    pending_size = 0
    for part in _iter_tar_parts(entries, advance):
        pending.append(part)
        pending_size += len(part)
        if pending_size >= _PIECE_SIZE:
            yield pending[0] if len(pending) == 1 else b"".join(pending)
            pending, pending_size = [], 0
    yield b"".join(pending)


def _iter_tar_parts(entries: Iterable[Entry], advance: Advance) -> Iterator[bytes]:
    for entry in entries:
        name = os.fsencode(entry.path)
        if entry.kind is MemberKind.DIRECTORY:
            mode = stat.S_IMODE(entry.status.st_mode)
            yield encode_member_header(name, kind=MemberKind.DIRECTORY, size=0, mode=mode)
            continue
        with entry.open() as (fd, status):
            mode = stat.S_IMODE(status.st_mode)
            yield encode_member_header(name, kind=MemberKind.FILE, size=status.st_size, mode=mode)
            yield from iter_file(fd, status, entry.path, advance)
        yield padding(status.st_size)
    yield END_OF_ARCHIVE


def iter_file(fd: int, status: os.stat_result, path: str, advance: Advance) -> Iterator[bytes]:
    """The bytes of an open file, as long as it was when its status was taken.

    Raises:
        FileChanged: while iterating, when its size or time is not what the status says.
        PathUnreadable: when it can not be read.
    """
    left = status.st_size
    while left:
        with naming(path):
            data = os.read(fd, min(left, _PIECE_SIZE))
        if not data:
            raise FileChanged(path)
        advance(len(data))
        left -= len(data)
        yield data
    with naming(path):
        after = os.fstat(fd)
        has_more = bool(os.read(fd, 1))
    if has_more or (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise FileChanged(path)


def write_layer(
    store: Store,
    lease: Lease,
    pieces: Iterable[bytes],
    layer_format: LayerFormat,
    compression: Compression,
    *,
    splits: bool = False,
) -> LayerIndex:
    """Write a layer's published bytes; a plain tar as a recipe and members where ``splits`` says so.

    Raises:
        LayerMalformed: when it has more members than we read back.
        StoreWriteFailed, LeaseEnded: when the store can not take it.
        KitfsError: what the pieces raise. Nothing of the layer stays then.
    """
    with store.split_ingest(lease) if splits else store.ingest(lease) as ingest:
        indexer = LayerIndexer(layer_format, compression, hashes_blob=False)
        for piece in pieces:
            ingest.write(piece)
            indexer.feed(piece)
        index = indexer.finish(ingest.digest())
        if isinstance(ingest, SplitIngest):
            ingest.commit(index.toc, index.digest, index.size)
        else:
            ingest.commit_blob(index.digest, index.size)
        return index
