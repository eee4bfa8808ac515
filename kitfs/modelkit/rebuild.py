"""The index made anew from the files of the store, when it is lost, damaged or not believed.

Used by ``kitfs fsck --rebuild-index``. One pass over every blob and member: each is hashed, layers are indexed as an
import does, and what is not the digest's bytes is recorded nowhere. But a split blob with damaged members is
recorded as its recipe tells, and named as lost: the others can still be mounted. Tags come from ``tags.log``, inode
numbers from the sessions and from what can still be read of the old index. Nobody else may have the index open; a crash
at any point leaves the old index or the new one (``store/index_swap.py``).

What no file tells is lost: when a blob was last used, and the origin of one that no tag leads to. Parents are those
that the ModelKits' references mean now.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.indexer import LayerIndex
from kitfs.layer.reindex import LayerWatcher, find_wrong_members, name_wrong_members, without_wrong_members
from kitfs.modelkit.image_indexes import restore_indexes
from kitfs.modelkit.inventory import Inventory, take_inventory
from kitfs.modelkit.sessions import inode_need
from kitfs.oci.mediatype import Compression, LayerFormat, LayerType
from kitfs.progress import Progress, Step
from kitfs.store import index_swap, rebuild_facts, salvage, sessions, staging, stored
from kitfs.store.findings import Finding, FsckReport, Weight
from kitfs.store.fsck import check
from kitfs.store.index import Index, open_index
from kitfs.store.index_writer import FoundBlob, FoundMember, IndexWriter
from kitfs.store.layout import Layout, open_layout
from kitfs.store.reads import StoreReads
from kitfs.store.recipe import Recipe
from kitfs.store.records import InodeRange, ManifestRecord, Stamp
from kitfs.store.repair import quarantine_blob
from kitfs.store.salvage import OldIndex
from kitfs.store.store import Store
from kitfs.store.stored import Reading, StoredFile
from kitfs.transfer.parents import find_parent_stored, follow_parents

_BATCH = 1000
_NAMED_MAX = 5


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
            restored = restore_indexes(store)
            report = check(store)
    report.size_read = run.size_read
    report.findings += run.lost
    if old.problem:
        where = f"; kept as {aside.relative_to(layout.home)}" if aside else ""
        report.repaired.append(Finding("damaged-index", "index", old.problem + where, Weight.REPAIRABLE))
    report.repaired += run.repaired
    report.repaired += [finding for finding in restored if finding.name not in run.names]
    return report


class _Rebuild:
    """One run.

    Attributes:
        lost: Blobs that are corrupt, layers that are malformed.
        repaired: Derived things that were wrong and are made anew when they are needed.
        size_read: Bytes hashed.
        names: All blobs that have a file.
    """

    def __init__(self, layout: Layout, index: Index, old: OldIndex, progress: Progress) -> None:
        self.lost: list[Finding] = []
        self.repaired: list[Finding] = []
        self.size_read = 0
        self.names: set[str] = set()
        self._layout = layout
        self._old = old
        self._progress = progress
        self._writer = IndexWriter(index, int(time.time()))
        self._reads = StoreReads(layout, index)
        self._needed: dict[Digest, int] = {}  # members of the split blobs that are recorded, with their sizes
        self._proven: dict[Digest, Stamp] = {}  # members that were found right while such a blob was read

    def run(self) -> None:
        """Fill the index."""
        logged = rebuild_facts.find_tags(self._layout, self._old)
        if logged.problem:
            self.repaired.append(Finding("corrupt-tags-log", "tags.log", logged.problem, Weight.REPAIRABLE))
        records = [record for record, _ in sessions.iter_sessions(self._layout)]
        kept = [record for _, record in staging.iter_registrations(self._layout) if record is not None]
        inventory = take_inventory(self._layout, logged, [*records, *kept], self._progress)
        self.names = {str(digest) for digest in inventory.files}
        self._put_blobs(inventory)
        self._put_members()
        if self._needed:
            self._writer.put_pins(self._layout)
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
            found = self._find_right(file, inventory)
            if found is not None:
                batch.append(found)
            if len(batch) == _BATCH:
                self._writer.put_blobs(batch)
                batch.clear()
        self._writer.put_blobs(batch)

    def _find_right(self, file: StoredFile, inventory: Inventory) -> FoundBlob | None:
        """A blob that can be recorded: from its file, or from its recipe where that is wrong or not there."""
        kinds = inventory.kinds.get(file.digest, [])
        reading = inventory.readings.get(file.digest) if file.form != "split" else None
        is_usable = False
        if reading is None or (reading.is_right and kinds):
            reading, is_usable = self._read_layer(file, kinds)
        self.size_read += file.size
        if reading.is_right or is_usable:
            types = list(inventory.media_types.get(file.digest, {}))
            return FoundBlob(file, reading.stamp, types, inventory.origins.get(file.digest, "here"))
        refused = self._refuse(file, reading)
        other = stored.find_split(self._layout, file.digest) if file.form != "split" and reading.is_readable else None
        found = self._find_right(other, inventory) if other is not None else None
        is_made = found is not None or inventory.can_be_made(file.digest)
        (self.repaired if is_made else self.lost).append(refused)
        return found

    def _read_layer(self, file: StoredFile, kinds: list[LayerType]) -> tuple[Reading, bool]:
        """Hash a blob, and index it as each kind of layer that it is said to be, until it is one.

        Returns:
            What reading it told, and whether it is recorded as a layer although some of its members are wrong.
        """
        step = self._progress.begin(f"{kinds[0].kind if kinds else 'blob'} {file.digest.hex[:12]}", file.size)
        if file.form == "split":  # no other kind of layer ever is
            kinds = [kind for kind in kinds if (kind.format, kind.compression) == (LayerFormat.TAR, Compression.NONE)]
        reading, found, problem = None, None, ""
        for kind in kinds:
            watcher = LayerWatcher(kind.format, kind.compression)
            reading = stored.read_whole(self._layout, file, _watch(watcher, step))
            if not reading.is_right and reading.recipe is None:
                break
            try:
                found = watcher.finish(file.digest)
                break
            except LayerMalformed as error:
                problem = problem or error.reason
        if found is None and problem:
            detail = f"it is no layer of its kind: {problem}"
            self.lost.append(Finding("malformed-layer", str(file.digest), detail, Weight.LOST))
        if reading is None:
            reading = stored.read_whole(self._layout, file, lambda data: step.advance(len(data)))
        is_usable = False
        if found is not None and reading.recipe is not None:
            reading, found = self._prove_members(found, reading.recipe, reading)
            is_usable = found is not None and not reading.is_right
        if reading.recipe is not None and (reading.is_right or is_usable):
            self._needed |= reading.recipe.sizes()
        if found is not None:
            self._writer.put_layer(file.digest, found.record, found.toc, found.span_checksums, found.checkpoints)
        step.finish()
        return reading, is_usable

    def _prove_members(self, found: LayerIndex, recipe: Recipe, reading: Reading) -> tuple[Reading, LayerIndex | None]:
        """Of a split layer, which members are right; the reading and the layer as they are to be recorded.

        A recipe whose members are all right, or which gives the blob with others than it says, is wrong itself.
        """
        wrong = find_wrong_members(found, recipe, reading)
        missing = set(wrong.values())
        self._proven |= {
            digest: stamp for digest, stamp in reading.members.items() if stamp is not None and digest not in missing
        }
        if not wrong:
            return reading, found if reading.is_right else None
        if reading.is_right:
            problem = "its recipe names other members than those that give it"
            return dataclasses.replace(reading, is_right=False, problem=problem), None
        names = ", ".join(repr(os.fsdecode(name)) for name in name_wrong_members(found, wrong)[:_NAMED_MAX])
        if len(wrong) > _NAMED_MAX:
            names += f" and {len(wrong) - _NAMED_MAX} more"
        detail = f"files of its members hold other bytes or are gone: {names}; importing its ModelKit again heals it"
        self.lost.append(Finding("wrong-digest", str(found.digest), detail, Weight.LOST))
        return reading, without_wrong_members(found, wrong)

    def _refuse(self, file: StoredFile, reading: Reading) -> Finding:
        """Name a blob that is not recorded, and move it aside; a recipe stays, as its members do."""
        if file.form == "split":
            detail = reading.problem + "; importing its ModelKit again heals it"
            return Finding("corrupt-recipe", str(file.digest), detail, Weight.LOST)
        detail = reading.problem
        if reading.is_readable:
            quarantine_blob(self._layout, file.digest)
            detail += "; moved to quarantine/"
        return Finding("wrong-digest", str(file.digest), detail, Weight.LOST)

    def _put_members(self) -> None:
        files = list(stored.iter_members(self._layout))
        missing = self._needed.keys() - {file.digest for file in files}  # their pins are kept for when they come
        self._writer.put_members(FoundMember(digest, self._needed[digest], None, is_right=False) for digest in missing)
        if not files:
            return
        unread = sum(file.size for file in files if file.digest not in self._proven)
        step = self._progress.begin(f"{len(files)} members", unread)
        batch: list[FoundMember] = []
        for file in files:
            found = self._find_member(file, step)
            if found is not None:
                batch.append(found)
            if len(batch) == _BATCH:
                self._writer.put_members(batch)
                batch.clear()
        self._writer.put_members(batch)
        step.finish()

    def _find_member(self, file: StoredFile, step: Step) -> FoundMember | None:
        """A member as it is to be recorded, or None for one that is wrong and can be made anew."""
        stamp = self._proven.get(file.digest)
        if stamp is not None:
            return FoundMember(file.digest, file.size, stamp)
        reading = stored.read_whole(self._layout, file, lambda data: step.advance(len(data)))
        self.size_read += file.size
        if reading.is_right:
            return FoundMember(file.digest, file.size, reading.stamp)
        if file.digest in self._needed:  # the check names it, and nothing but an import has its bytes
            return FoundMember(file.digest, self._needed[file.digest], None, is_right=False)
        # Its layer has the bytes, and gc removes a file without a record.
        finding = Finding("wrong-member-digest", str(file.digest), reading.problem, Weight.REPAIRABLE)
        self.repaired.append(finding)
        return None

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


def _watch(watcher: LayerWatcher, step: Step) -> stored.Watch:
    def watch(data: memoryview) -> None:
        step.advance(len(data))
        watcher.watch(data)

    return watch
