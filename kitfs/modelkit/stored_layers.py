"""Layers that the store has already: found by comparing bytes, so that they are not written again.

Used by pack. A stored layer of as many members and bytes is a candidate; all are compared, byte by byte, with the one
that would be written, in one pass that ends as soon as none is equal: with others of the same shapes, such as the
checkpoints of one training, at the first weights that differ. Nothing is hashed and nothing written. Comparing with the
published bytes, compressed ones too, keeps a ModelKitID a function of what is packed, and not of what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.content import Content
from kitfs.store.lease import Lease
from kitfs.store.store import Store

CANDIDATES_MAX = 64
"""Layers that are compared at once; each has a descriptor or two open."""


def find_candidates(
    store: Store, layer_format: LayerFormat, compression: Compression, member_count: int, size_members: int
) -> list[Digest]:
    """Stored layers that may be the same, at most ``CANDIDATES_MAX``.

    Raises:
        RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
    """
    wanted = layer_format.value, compression.value, member_count, size_members
    found = (
        digest
        for digest, record in store.iter_layers()
        if (record.format, record.compression, record.member_count, record.size_members) == wanted
    )
    return [digest for _, digest in zip(range(CANDIDATES_MAX), found, strict=False)]


def find_same(store: Store, lease: Lease, candidates: Iterable[Digest], pieces: Iterable[bytes]) -> Digest | None:
    """The candidate whose published bytes are these; the lease holds it, and its bytes are its digest's.

    Raises:
        KitfsError: what the pieces raise.
    """
    with ExitStack() as stack:
        left = [content for digest in candidates if (content := _open(store, digest, stack)) is not None]
        offset = 0
        for piece in pieces:
            left = [content for content in left if _read(content, offset, len(piece)) == piece]
            offset += len(piece)
            if not left:
                return None
        for content in left:
            if content.size == offset and _is_held(store, lease, content.digest):
                return content.digest
    return None


def _open(store: Store, digest: Digest, stack: ExitStack) -> Content | None:
    try:
        return stack.enter_context(store.open_content(digest))
    except (KitfsError, OSError):
        return None  # it is written again, which heals it


def _read(content: Content, offset: int, size: int) -> bytes | None:
    try:
        return content.read(offset, size)
    except (KitfsError, OSError):
        return None


def _is_held(store: Store, lease: Lease, digest: Digest) -> bool:
    """Whether a layer is kept with all its records from now on, its file untouched since it was verified."""
    try:
        store.hold_verified(lease, digest)
        # Looked at once it is held: a collection may have taken it while it was compared.
        return store.find_blob(digest) is not None and store.find_layer(digest) is not None
    except KitfsError:
        return False
