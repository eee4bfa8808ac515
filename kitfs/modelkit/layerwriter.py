"""The bytes of one layer: a tar as kit writes it or one file, as a stream, and a stream's way into the store.

The stream goes to an ingest and to the indexer in one pass; on disk when ``write_layer`` returns is the whole layer
under its digest, not yet in the index. Used by pack. A file that changes while it is read is an error, and nothing of
its layer stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from kitfs.archive.tar_toc import MemberKind
from kitfs.archive.tar_write import END_OF_ARCHIVE, encode_member_header, padding
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.layer.known import KnownPart
from kitfs.modelkit.entries import Advance, Entry
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.ingest import Ingest
from kitfs.store.lease import Lease
from kitfs.store.split_ingest import SplitIngest
from kitfs.store.store import Store

_PIECE_SIZE = 1 << 20


def iter_tar(entries: Iterable[Entry], advance: Advance, prefix: str = "") -> Iterator[bytes]:
    """The bytes of a tar of the entries, in their order, in pieces of about 1 MiB.

    Args:
        entries: As ``entries.iter_layer`` gives them.
        advance: Told of each piece of a file.
        prefix: Directory that the names in the tar are relative to (kit before 0.5).

    Raises:
        FileChanged: while iterating, when a file's size or time changed meanwhile.
        PathUnreadable: when a file can not be read.
        MemberUnwritable: when a name is beyond what we read back.
    """
    for part in iter_tar_parts(entries, advance, prefix):
        if isinstance(part, KnownPart):
            yield from map(bytes, part.pieces)
        else:
            yield part


def iter_tar_parts(entries: Iterable[Entry], advance: Advance, prefix: str = "") -> Iterator[bytes | KnownPart]:
    """As ``iter_tar``; members that the store knows come as parts of their own, to be read before the next one."""
    pending: list[bytes] = []
    pending_size = 0
    for part in _iter_tar_parts(entries, advance, prefix):
        is_known = isinstance(part, KnownPart)
        if not isinstance(part, KnownPart):
            pending.append(part)
            pending_size += len(part)
        if pending and (is_known or pending_size >= _PIECE_SIZE):
            yield pending[0] if len(pending) == 1 else b"".join(pending)
            pending, pending_size = [], 0
        if isinstance(part, KnownPart):
            yield part
    yield b"".join(pending)


def _iter_tar_parts(entries: Iterable[Entry], advance: Advance, prefix: str) -> Iterator[bytes | KnownPart]:
    for entry in entries:
        name = _name(entry.path, prefix)
        if name is None:
            continue
        if entry.kind is MemberKind.DIRECTORY:
            yield encode_member_header(name, kind=MemberKind.DIRECTORY, size=0, mode=entry.mode)
            continue
        with entry.open(advance) as (mode, size, pieces, known):
            yield encode_member_header(name, kind=MemberKind.FILE, size=size, mode=mode)
            if known is not None:
                yield known
            else:
                yield from pieces
        yield padding(size)
    yield END_OF_ARCHIVE


def _name(path: str, prefix: str) -> bytes | None:
    """An entry's name in the tar; None for a directory that the names are relative to, or one above it."""
    if not prefix:
        return os.fsencode(path)
    return os.fsencode(path.removeprefix(f"{prefix}/")) if path.startswith(f"{prefix}/") else None


def write_layer(
    store: Store,
    lease: Lease,
    parts: Iterable[bytes | KnownPart],
    layer_format: LayerFormat,
    compression: Compression,
    *,
    splits: bool = False,
) -> LayerIndex:
    """Write a layer's published bytes; a plain tar as a recipe and members where ``splits`` says so.

    Of a split tar the members that the store has are neither written nor hashed but for the layer's digest.

    Raises:
        LayerMalformed: when it has more members than we read back.
        StoreWriteFailed, LeaseEnded: when the store can not take it.
        KitfsError: what the parts raise. Nothing of the layer stays then.
    """
    with store.split_ingest(lease) if splits else store.ingest(lease) as ingest:
        indexer = LayerIndexer(layer_format, compression, hashes_blob=False)
        for part in parts:
            for piece in _open_part(part, ingest, indexer):
                ingest.write(piece)
                indexer.feed(piece)
        index = indexer.finish(ingest.digest())
        if isinstance(ingest, SplitIngest):
            ingest.commit(index.toc, index.digest, index.size)
        else:
            ingest.commit_blob(index.digest, index.size)
        return index


def _open_part(
    part: bytes | KnownPart, ingest: Ingest | SplitIngest, indexer: LayerIndexer
) -> Iterable[bytes | memoryview]:
    if isinstance(part, bytes):
        return (part,)
    if isinstance(ingest, SplitIngest) and ingest.adopt(part.member.digest):
        indexer.expect(part.member)
    return part.pieces
