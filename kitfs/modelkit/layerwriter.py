"""Writes one layer straight into the store: plain tar as kit writes it, or the bytes of one file.

The bytes go to an ingest and to the indexer in one pass; on disk when a function returns is the whole layer under
its digest, not yet in the index. Used by pack. A file that changes while it is read is an error, and nothing of its
layer stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from kitfs.archive.tar_toc import MemberKind
from kitfs.archive.tar_write import END_OF_ARCHIVE, encode_member_header, padding
from kitfs.errors import KitfsError
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.modelkit.walk import Entry, naming
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.progress import Step
from kitfs.store.ingest import Ingest
from kitfs.store.lease import Lease
from kitfs.store.split_ingest import SplitIngest
from kitfs.store.store import Store

_PIECE_SIZE = 1 << 20


class FileChanged(KitfsError):
    """A file that changed while it was being packed.

    Attributes:
        path: Relative to the packed directory.
    """

    hint = "pack again when nothing writes to the directory"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} changed while it was being packed")
        self.path = path


def write_tar_layer(
    store: Store, lease: Lease, entries: Iterable[Entry], step: Step, *, splits: bool = False
) -> LayerIndex:
    """Write a tar of the entries, in their order; as a recipe and members where ``splits`` says so.

    Raises:
        FileChanged: when a file's size or time changed meanwhile.
        PathUnreadable: when a file can not be read.
        MemberUnwritable, LayerMalformed: when a name or a number of members is beyond what we read back.
        StoreWriteFailed, LeaseEnded: when the store can not take it.
    """
    with store.split_ingest(lease) if splits else store.ingest(lease) as ingest:
        layer = _Layer(ingest, LayerFormat.TAR)
        for entry in entries:
            name = os.fsencode(entry.path)
            if entry.kind is MemberKind.DIRECTORY:
                mode = stat.S_IMODE(entry.status.st_mode)
                layer.write(encode_member_header(name, kind=MemberKind.DIRECTORY, size=0, mode=mode))
                continue
            with entry.open() as (fd, status):
                mode = stat.S_IMODE(status.st_mode)
                layer.write(encode_member_header(name, kind=MemberKind.FILE, size=status.st_size, mode=mode))
                _copy(fd, status, entry.path, layer, step)
            layer.write(padding(status.st_size))
        layer.write(END_OF_ARCHIVE)
        return layer.commit()


def write_raw_layer(store: Store, lease: Lease, entry: Entry, step: Step) -> tuple[LayerIndex, os.stat_result]:
    """Write the bytes of one file, and give its status when it was read.

    Raises:
        FileChanged, PathUnreadable, StoreWriteFailed, LeaseEnded: as ``write_tar_layer``.
    """
    with store.ingest(lease) as ingest, entry.open() as (fd, status):
        layer = _Layer(ingest, LayerFormat.RAW)
        _copy(fd, status, entry.path, layer, step)
        return layer.commit(), status


class _Layer:
    """An ingest and an indexer that get the same bytes, in pieces that are worth their calls."""

    def __init__(self, ingest: Ingest | SplitIngest, layer_format: LayerFormat) -> None:
        self._ingest = ingest
        self._indexer = LayerIndexer(layer_format, Compression.NONE, hashes_blob=False)
        self._pending: list[bytes] = []
        self._pending_size = 0

    def write(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= _PIECE_SIZE:
            self._flush()

    def commit(self) -> LayerIndex:
        self._flush()
        index = self._indexer.finish(self._ingest.digest())
        if isinstance(self._ingest, SplitIngest):
            self._ingest.commit(index.toc, index.digest, index.size)
        else:
            self._ingest.commit_blob(index.digest, index.size)
        return index

    def _flush(self) -> None:
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending = []
        self._pending_size = 0
        if data:
            self._ingest.write(data)
            self._indexer.feed(data)


def _copy(fd: int, status: os.stat_result, path: str, layer: _Layer, step: Step) -> None:
    left = status.st_size
    with naming(path):
        while left:
            data = os.read(fd, min(left, _PIECE_SIZE))
            if not data:
                raise FileChanged(path)
            layer.write(data)
            step.advance(len(data))
            left -= len(data)
        after = os.fstat(fd)
        if os.read(fd, 1) or (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise FileChanged(path)
