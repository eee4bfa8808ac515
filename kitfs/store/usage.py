"""What each file of a store takes on disk, and which ModelKits it is there for.

Used by ``kitfs du``. Looks at names, sizes and the index, never into a file, and changes nothing; a file that appears
or goes meanwhile is counted or not. Each inode is counted once, as du(1) counts, and folders are counted too: so
everything together is what du(1) says of the store's home.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kitfs.digest import Digest, DigestMalformed
from kitfs.store import catalog, schema
from kitfs.store.index import Index, Txn
from kitfs.store.layout import Layout
from kitfs.store.roots import iter_reached

_BLOCK_SIZE = 512  # st_blocks, stat(2)

Part = Literal["blobs", "recipes", "members", "partials", "index", "ingest", "quarantine", "staging", "rest"]
PARTS: tuple[Part, ...] = (
    "blobs",
    "recipes",
    "members",
    "partials",
    "index",
    "ingest",
    "quarantine",
    "staging",
    "rest",
)
"""``rest``: folders, sessions, leases, ``tags.log``, and whatever else lies there."""

_FOLDERS: dict[str, Part] = {
    "blobs": "blobs",
    "recipes": "recipes",
    "members": "members",
    "partial": "partials",
    "index": "index",
    "index.new": "index",
    "ingest": "ingest",
    "quarantine": "quarantine",
    "staging": "staging",
}


class FileUse(NamedTuple):
    """One file or folder.

    Attributes:
        part: Where in the store it lies.
        digest: What it is named after: a blob's digest, also of a recipe; a member's; of a partial its layer's.
        allocated: Bytes on disk.
        apparent: Bytes as ``ls`` says.
    """

    part: Part
    digest: Digest | None
    allocated: int
    apparent: int


def iter_files(layout: Layout) -> Iterator[FileUse]:
    """Everything below a store's home, itself included.

    Raises:
        OSError: when the home can not be read.
    """
    seen: set[tuple[int, int]] = set()
    yield _use("rest", None, layout.home.stat())
    with os.scandir(layout.home) as entries:
        for entry in entries:
            yield from _iter_below(entry, _FOLDERS.get(entry.name, "rest"), seen)


def _iter_below(entry: os.DirEntry[str], part: Part, seen: set[tuple[int, int]]) -> Iterator[FileUse]:
    with contextlib.suppress(FileNotFoundError, PermissionError):  # the latter in a staging directory
        status = entry.stat(follow_symlinks=False)
        if not entry.is_dir(follow_symlinks=False):
            inode = status.st_dev, status.st_ino
            if status.st_nlink == 1 or inode not in seen:
                yield _use(part, _find_digest(entry.name, part), status)
            if status.st_nlink > 1:
                seen.add(inode)
            return
        yield _use("rest", None, status)
        with os.scandir(entry.path) as below:
            for inner in below:
                yield from _iter_below(inner, part, seen)


def _find_digest(name: str, part: Part) -> Digest | None:
    """The digest that a file is named after; a partial is ``<layer hex>.<index>``, its map with one suffix more."""
    if part not in ("blobs", "recipes", "members", "partials"):
        return None
    try:
        return Digest.parse(f"sha256:{name.partition('.')[0] if part == 'partials' else name}")
    except DigestMalformed:
        return None


def _use(part: Part, digest: Digest | None, status: os.stat_result) -> FileUse:
    return FileUse(part, digest, status.st_blocks * _BLOCK_SIZE, status.st_size)


@dataclass(slots=True)
class Owners:
    """Which of some manifests lead to what: a set of them is an integer with bit n for the n-th.

    Attributes:
        blobs: The owners of each blob that has any.
        members: The owners of each member that has any, of those that were asked for.
    """

    blobs: dict[Digest, int] = field(default_factory=dict)
    members: dict[Digest, int] = field(default_factory=dict)

    def find(self, use: FileUse) -> int:
        """The owners of a file; 0 when nobody leads to it."""
        if use.digest is None:
            return 0
        return (self.members if use.part == "members" else self.blobs).get(use.digest, 0)


def find_owners(index: Index, manifests: Sequence[Digest], members: Collection[Digest]) -> Owners:
    """Follow manifests as GC does, to their blobs and to those of ``members`` that their layers hold.

    Raises:
        RecordCorrupt, LayerNotIndexed, IndexFailed, IndexCorrupt: when the index can not tell.
    """
    owners = Owners()
    with index.read() as txn:
        for number, manifest in enumerate(manifests):
            for digest, _ in iter_reached(txn, [manifest]):
                owners.blobs[digest] = owners.blobs.get(digest, 0) | 1 << number
        if members:
            wanted = {digest.raw for digest in members}
            for layer, mask in owners.blobs.items():
                for digest in _iter_members(txn, layer, wanted):
                    owners.members[digest] = owners.members.get(digest, 0) | mask
    return owners


def _iter_members(txn: Txn, layer: Digest, wanted: Collection[bytes]) -> Iterator[Digest]:
    record = catalog.find_layer(txn, layer)
    for sequence in range(-(-record.member_count // schema.TOC_BATCH) if record else 0):
        for member in catalog.get_toc_batch(txn, layer, sequence):
            if member.digest is not None and member.digest in wanted:
                yield Digest.from_raw(member.digest)


class StoreSummary(NamedTuple):
    """What a store holds, and what is left of its disk.

    Attributes:
        size: Bytes on disk, each inode once.
        blobs: Blobs, those of split layers included.
        layers: Layers whose tables of contents are known.
        modelkits: Manifests.
        members: Members with a file of their own.
        members_size: Bytes of those on disk.
        disk_free: Bytes that this user may still write.
        disk_size: Bytes of the file system.
    """

    size: int
    blobs: int
    layers: int
    modelkits: int
    members: int
    members_size: int
    disk_free: int
    disk_size: int


def summarise(layout: Layout, index: Index) -> StoreSummary:
    """Count and add up; for ``kitfs status``, which asks again and again: no record is read but its key.

    Raises:
        IndexFailed, IndexCorrupt: when the index can not tell.
        OSError: when the home can not be read.
    """
    counts: dict[Part, int] = dict.fromkeys(PARTS, 0)
    sizes: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for use in iter_files(layout):
        counts[use.part] += use.digest is not None
        sizes[use.part] += use.allocated
    with index.read() as txn:
        layers, modelkits = (sum(1 for _ in txn.iter_raw(table)) for table in (schema.LAYERS, schema.MANIFESTS))
    disk = os.statvfs(layout.home)
    return StoreSummary(
        size=sum(sizes.values()),
        blobs=counts["blobs"] + counts["recipes"],
        layers=layers,
        modelkits=modelkits,
        members=counts["members"],
        members_size=sizes["members"],
        disk_free=disk.f_bavail * disk.f_frsize,
        disk_size=disk.f_blocks * disk.f_frsize,
    )
