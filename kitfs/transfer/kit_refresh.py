"""kit's storage before a mount: what kit has pulled or moved since is imported, so no other command is needed.

Used by ``kitfs mount`` (kitops.md 8.6). A tag that came from kit's storage is looked up there each time, and so are
the parents of its ModelKit; a tag that kitfs or a layout set is left alone. Where kit has removed a tag, ours
stays. A look that finds nothing new reads two small files and writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.errors import MalformedError
from kitfs.oci.reference import Reference
from kitfs.transfer.kit_storage import KitStorage, storage_folder
from kitfs.transfer.parents import PARENTS_MAX, find_digest, find_parent_stored

if TYPE_CHECKING:
    from kitfs.progress import Progress
    from kitfs.store.store import Store


@dataclass(frozen=True, slots=True)
class KitMove:
    """A reference that means something new since kit's storage was looked at.

    Attributes:
        reference: Which.
        before: What it meant in the store, or None when it was not there.
        after: What it means now.
    """

    reference: Reference
    before: Digest | None
    after: Digest

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.reference.display} imported from kit's storage ({self.after})"
        return f"{self.reference.display} has moved in kit's storage: imported anew, {self.after} (was {self.before})"


@dataclass
class KitRefresh:
    """What a look at kit's storage brought.

    Attributes:
        moves: References that were imported, the one asked for before its parents.
        warnings: What a person should know.
    """

    moves: list[KitMove] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_in_kit_storage(kitops_home: Path, reference: Reference) -> Digest | None:
    """The ModelKitID that a reference means in kit's storage now, or None.

    Raises:
        SourceMalformed: when a file of the storage breaks its format.
    """
    folder = storage_folder(kitops_home)
    if folder is None:
        return None
    source = KitStorage(folder)
    try:
        entry = source.find_entry(reference)
    finally:
        source.close()
    return entry.descriptor.digest if entry else None


def is_import_due(store: Store, kitops_home: Path, reference: Reference) -> bool:
    """Whether ``refresh_from_kit_storage`` might do or say anything. Imports and writes nothing.

    True also where that can not be found out here: whoever asked may have other rights, or another mount namespace.
    """
    if not os.access(kitops_home, os.R_OK | os.X_OK):
        return True
    try:
        folder = storage_folder(kitops_home)
        if folder is None:
            return False
        source = KitStorage(folder)
        try:
            return any(_is_news(store, source, wanted) for wanted in _iter_chain(store, reference))
        finally:
            source.close()
    except (MalformedError, OSError):
        return True


def _iter_chain(store: Store, reference: Reference) -> Iterator[Reference]:
    """A reference and the parents of its ModelKit, each as the store has it once the one before was dealt with."""
    wanted: Reference | None = reference
    for _ in range(PARENTS_MAX + 1):
        if wanted is None:
            break
        yield wanted
        digest = find_digest(store, wanted)
        wanted = find_parent_stored(store, digest) if digest else None


def _is_news(store: Store, source: KitStorage, reference: Reference) -> bool:
    before = find_digest(store, reference)
    if before is not None and not _is_kits(store, reference):
        return False
    entry = source.find_entry(reference)
    return entry is not None and entry.descriptor.digest != before


def refresh_from_kit_storage(store: Store, kitops_home: Path, reference: Reference, *,
                             progress: Progress | None = None) -> KitRefresh:  # fmt: skip
    """Import a reference, and the parents of its ModelKit, where kit's storage has it and the store does not.

    On disk when it returns: everything that was imported, whole.

    Raises:
        MalformedError, IntegrityError: when what kit's storage has can not be imported.
        StoreWriteFailed, IndexFailed: when the store can not take it.
    """
    refresh = KitRefresh()
    folder = storage_folder(kitops_home)
    if folder is None:
        return refresh
    source = KitStorage(folder)
    try:
        for wanted in _iter_chain(store, reference):
            _refresh_one(store, source, wanted, refresh, progress)
    finally:
        source.close()
    return refresh


def _refresh_one(store: Store, source: KitStorage, reference: Reference, refresh: KitRefresh,
                 progress: Progress | None) -> None:  # fmt: skip
    before = find_digest(store, reference)
    if before is not None and not _is_kits(store, reference):
        return
    try:
        entry = source.find_entry(reference)
    except MalformedError as error:
        if before is None:
            raise
        refresh.warnings.append(f"kit's storage can not be read, {reference.display} stays as it was: {error}")
        return
    if entry is None or entry.descriptor.digest == before:
        return
    from kitfs.transfer.importer import import_source  # 30 ms that a look which finds nothing new does not need

    report = import_source(store, source, references=[reference], progress=progress)
    refresh.moves.append(KitMove(reference, before, entry.descriptor.digest))
    refresh.warnings += report.warnings


def _is_kits(store: Store, reference: Reference) -> bool:
    record = store.find_tag(reference.repository, reference.tag) if reference.tag else None
    return record is not None and record.origin == KitStorage.origin
