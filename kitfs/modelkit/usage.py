"""What ModelKits take on disk: each alone, and what several share; with the rest of the store it adds up.

Used by ``kitfs du``. A file is *unique* when one ModelKit leads to it, *shared* when several do; a parent belongs to
its children. Sizes are bytes allocated on disk unless they are called logical. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.store.roots import iter_reached
from kitfs.store.usage import PARTS, FileUse, Owners, Part, find_owners, iter_files

if TYPE_CHECKING:
    from kitfs.store.store import Store

CONTENT: tuple[Part, ...] = ("blobs", "recipes", "members", "partials")


@dataclass(slots=True)
class Size:
    """How much some files are.

    Attributes:
        allocated: Bytes on disk.
        apparent: Bytes as ``ls`` says.
    """

    allocated: int = 0
    apparent: int = 0

    def add(self, use: FileUse) -> None:
        """Count one more file."""
        self.allocated += use.allocated
        self.apparent += use.apparent


@dataclass(slots=True)
class KitUsage:
    """One ModelKit.

    Attributes:
        digest: The ModelKitID.
        references: Its names, as (repository, tag); none when it is untagged.
        unique: Bytes that it alone leads to.
        shared: Bytes that another leads to as well.
        logical: Bytes of its blobs as published, parents and image indexes included.
    """

    digest: Digest
    references: list[tuple[str, str]] = field(default_factory=list)
    unique: int = 0
    shared: int = 0
    logical: int = 0

    @property
    def size(self) -> int:
        """All of it."""
        return self.unique + self.shared


@dataclass(slots=True)
class Usage:
    """A whole store: ``unique + shared + loose`` and the parts that are no content are ``total``.

    Attributes:
        kits: The ModelKits that were asked for, the one that has most for itself first.
        together: Bytes of those, each file once.
        unique: Bytes that one ModelKit of the store leads to.
        shared: Bytes that several lead to, each file once.
        loose: Bytes of content that none leads to.
        parts: What lies in each part of the store.
        total: Everything: what du(1) says of the store's home.
    """

    kits: list[KitUsage] = field(default_factory=list)
    together: int = 0
    unique: int = 0
    shared: int = 0
    loose: int = 0
    parts: dict[Part, Size] = field(default_factory=lambda: {part: Size() for part in PARTS})
    total: Size = field(default_factory=Size)


def measure_usage(store: Store, wanted: Collection[Digest] | None = None) -> Usage:
    """What a store holds, and for which ModelKits.

    Args:
        store: The store.
        wanted: ModelKits to tell of; None for all that have a tag, and those without that no other leads to.

    Raises:
        RecordCorrupt, LayerNotIndexed, IndexFailed, IndexCorrupt: when the index can not tell.
    """
    kits = _find_kits(store, wanted or ())
    files = list(iter_files(store.layout))
    members = {use.digest for use in files if use.part == "members" and use.digest is not None}
    owners = find_owners(store.index, [kit.digest for kit in kits], members)
    usage = Usage()
    _count(usage, kits, files, owners, wanted)
    _count_logical(store, kits, owners)
    usage.kits = [kit for kit in kits if wanted is None or kit.digest in wanted]
    usage.kits.sort(key=lambda kit: (-kit.unique, -kit.shared, kit.references, kit.digest))
    return usage


def _find_kits(store: Store, wanted: Iterable[Digest]) -> list[KitUsage]:
    kits: dict[Digest, KitUsage] = {}
    for repository, tag, record in store.iter_tags():
        kits.setdefault(record.manifest, KitUsage(record.manifest)).references.append((repository, tag))
    for digest in wanted:
        kits.setdefault(digest, KitUsage(digest))
    untagged = [digest for digest, _ in store.iter_manifests() if digest not in kits]
    with store.index.read() as txn:
        reached = {digest for digest, _ in iter_reached(txn, kits)}
        # A parent that is untagged as well goes with its child, so whoever is led to by another is none of its own.
        for digest in untagged:
            reached.update(inner for inner, _ in iter_reached(txn, [digest]) if inner != digest)
    for digest in untagged:
        if digest not in reached:
            kits[digest] = KitUsage(digest)
    return list(kits.values())


def _count(
    usage: Usage, kits: Sequence[KitUsage], files: Iterable[FileUse], owners: Owners, wanted: Collection[Digest] | None
) -> None:
    selected = sum(1 << number for number, kit in enumerate(kits) if wanted is None or kit.digest in wanted)
    for use in files:
        usage.total.add(use)
        usage.parts[use.part].add(use)
        mask = owners.find(use)
        is_shared = mask.bit_count() > 1
        if mask & selected:
            usage.together += use.allocated
        if is_shared:
            usage.shared += use.allocated
        elif mask:
            usage.unique += use.allocated
        elif use.part in CONTENT:
            usage.loose += use.allocated
        for kit in _owning(kits, mask):
            if is_shared:
                kit.shared += use.allocated
            else:
                kit.unique += use.allocated


def _count_logical(store: Store, kits: Sequence[KitUsage], owners: Owners) -> None:
    sizes = {digest: record.size for digest, record in store.iter_blobs()}
    for digest, mask in owners.blobs.items():
        for kit in _owning(kits, mask):
            kit.logical += sizes.get(digest, 0)


def _owning(kits: Sequence[KitUsage], mask: int) -> Iterable[KitUsage]:
    while mask:
        lowest = mask & -mask
        yield kits[lowest.bit_length() - 1]
        mask ^= lowest
