"""The index made anew from the files of the store, when it is lost, damaged or not believed.

Used by ``kitfs fsck --rebuild-index``. One pass over every blob and member: each is hashed, layers are indexed as an
import does, and what is not the digest's bytes is recorded nowhere. Tags come from ``tags.log``, inode numbers
from the sessions and from what can still be read of the old index. Nobody else may have the index open; a crash at any
point leaves the old index or the new one (``store/index_swap.py``).

What no file tells is lost: when a blob was last used, and the origin of one that no tag leads to. Parents are those
that the ModelKits' references mean now.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.reindex import LayerWatcher
from kitfs.modelkit.inventory import Inventory, take_inventory
from kitfs.modelkit.sessions import inode_need
from kitfs.store import index_swap, rebuild_facts, salvage, sessions, stored
from kitfs.store.findings import Finding, FsckReport, Weight
from kitfs.store.fsck import check
from kitfs.store.index import Index, open_index
from kitfs.store.index_writer import FoundBlob, IndexWriter
from kitfs.store.layout import Layout, open_layout
from kitfs.store.reads import StoreReads
from kitfs.store.records import InodeRange, ManifestRecord
from kitfs.store.repair import quarantine_blob
from kitfs.store.salvage import OldIndex
from kitfs.store.store import Store
from kitfs.store.stored import Reading, StoredFile
from kitfs.transfer.intake import Progress
from kitfs.transfer.parents import find_parent_stored, follow_parents

_BATCH = 1000


def rebuild_index(home: Path, progress: Progress) -> FsckReport:
    """Make the index anew and check the store.

    On disk when it returns: the new index in its place; the old one, if it had any bytes, and corrupt blobs in
    ``quarantine/``.

    Args:
        home: The store's directory.
        progress: Is told of each layer, of all other blobs and of all members.

    Returns:
        What is wrong now, corrupt blobs among it; as repaired, what was wrong with the old index and with members.

    Raises:
        IndexInUse: when another process has the index open.
        StoreNotFound, StoreNotUsable, StoreOwnerMismatch, StoreVersionUnsupported: when there is no store of ours.
        StoreWriteFailed, IndexFailed: when writing failed; the old index is then in its place.
    """
    layout = open_layout(home, create=False)
    with index_swap.hold_unused(layout):
        old = salvage.read_old_index(layout.index)
        try:
            index = open_index(index_swap.make_scratch(layout))
            try:
                run = _Rebuild(layout, index, old, progress)
                run.run()
            finally:
                index.close()
        except BaseException:
            index_swap.drop_scratch(layout)
            raise
        aside = index_swap.replace_index(layout)
        with Store.open(home) as store:
            report = check(store)
    report.size_read = run.size_read
    report.findings += run.lost
    if old.problem:
        where = f"; kept as {aside.relative_to(layout.home)}" if aside else ""
        report.repaired.append(Finding("damaged-index", "index", old.problem + where, Weight.REPAIRABLE))
    report.repaired += run.repaired
    return report


class _Rebuild:
    """One run.

    Attributes:
        lost: Blobs that are corrupt, layers that are malformed.
        repaired: Derived things that were wrong and are made anew when they are needed.
        size_read: Bytes hashed.
    """

    def __init__(self, layout: Layout, index: Index, old: OldIndex, progress: Progress) -> None:
        self.lost: list[Finding] = []
        self.repaired: list[Finding] = []
        self.size_read = 0
        self._layout = layout
        self._old = old
        self._progress = progress
        self._writer = IndexWriter(index, int(time.time()))
        self._reads = StoreReads(layout, index)

    def run(self) -> None:
        """Fill the index."""
        logged = rebuild_facts.find_tags(self._layout, self._old)
        if logged.problem:
            self.repaired.append(Finding("corrupt-tags-log", "tags.log", logged.problem, Weight.REPAIRABLE))
        records = [record for record, _ in sessions.iter_sessions(self._layout)]
        inventory = take_inventory(self._layout, logged, records, self._progress)
        self._put_blobs(inventory)
        self._put_members()
        manifests = [
            (digest, ManifestRecord(manifest.config.digest, [layer.digest for layer in manifest.layers]))
            for digest, manifest in inventory.manifests.items()
        ]
        self._writer.put_manifests(manifests)
        self._writer.put_tags(logged.tags.values(), logged.size)
        self._put_parents(manifests)
        recorded = [
            InodeRange(key, record.inode_first, count) for record in records for key, count in [inode_need(record)]
        ]
        self._writer.put_inodes(*rebuild_facts.find_inodes(recorded, self._old))

    def _put_blobs(self, inventory: Inventory) -> None:
        batch: list[FoundBlob] = []
        for file in inventory.files.values():
            kinds = inventory.kinds.get(file.digest, [])
            reading = inventory.readings.get(file.digest)
            if reading is None or (reading.is_right and kinds):
                reading = self._read_layer(file, inventory)
            self.size_read += file.size
            if not reading.is_right:
                self._refuse(file, reading)
                continue
            types = list(inventory.media_types.get(file.digest, {}))
            batch.append(FoundBlob(file, reading, types, inventory.origins.get(file.digest, "here")))
            if len(batch) == _BATCH:
                self._writer.put_blobs(batch)
                batch.clear()
        self._writer.put_blobs(batch)

    def _read_layer(self, file: StoredFile, inventory: Inventory) -> Reading:
        """Hash a blob, and index it as each kind of layer that it is said to be, until it is one."""
        kinds = inventory.kinds.get(file.digest, [])
        self._progress.start(f"{kinds[0].kind if kinds else 'blob'} {file.digest.hex[:12]}", file.size)
        reading = None
        problems = []
        for kind in kinds:
            watcher = LayerWatcher(kind.format, kind.compression)
            reading = stored.read_whole(file, self._watch(watcher))
            if not reading.is_right:
                break
            try:
                found = watcher.finish(file.digest)
            except LayerMalformed as error:
                problems.append(error.reason)
                continue
            self._writer.put_layer(file.digest, found.record, found.toc, found.span_checksums, found.checkpoints)
            break
        else:
            if problems:
                detail = f"it is no layer of its kind: {problems[0]}"
                self.lost.append(Finding("malformed-layer", str(file.digest), detail, Weight.LOST))
        if reading is None:
            reading = stored.read_whole(file, lambda data: self._progress.advance(len(data)))
        self._progress.finish()
        return reading

    def _watch(self, watcher: LayerWatcher) -> stored.Watch:
        def watch(data: memoryview) -> None:
            self._progress.advance(len(data))
            watcher.watch(data)

        return watch

    def _refuse(self, file: StoredFile, reading: Reading) -> None:
        detail = reading.problem
        if reading.is_readable:
            quarantine_blob(self._layout, file.digest)
            detail += "; moved to quarantine/"
        self.lost.append(Finding("wrong-digest", str(file.digest), detail, Weight.LOST))

    def _put_members(self) -> None:
        files = list(stored.iter_members(self._layout))
        if not files:
            return
        self._progress.start(f"{len(files)} members", sum(file.size for file in files))
        batch: list[tuple[StoredFile, Reading]] = []
        for file in files:
            reading = stored.read_whole(file, lambda data: self._progress.advance(len(data)))
            self.size_read += file.size
            if reading.is_right:
                batch.append((file, reading))
            else:  # its layer has the bytes, and gc removes a file without a record
                self.repaired.append(
                    Finding("wrong-member-digest", str(file.digest), reading.problem, Weight.REPAIRABLE)
                )
            if len(batch) == _BATCH:
                self._writer.put_members(batch)
                batch.clear()
        self._writer.put_members(batch)
        self._progress.finish()

    def _put_parents(self, manifests: list[tuple[Digest, ManifestRecord]]) -> None:
        self._writer.put_manifests(list(self._iter_with_parents(manifests)))

    def _iter_with_parents(
        self, manifests: list[tuple[Digest, ManifestRecord]]
    ) -> Iterator[tuple[Digest, ManifestRecord]]:
        for digest, record in manifests:
            with contextlib.suppress(KitfsError):  # a ModelKit without a config that can be read shows no parents
                chain, _ = follow_parents(self._reads, find_parent_stored(self._reads, digest))
                if chain:
                    yield digest, ManifestRecord(record.config, record.layers, chain)
