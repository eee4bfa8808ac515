"""Garbage collection: everything that no root leads to goes (store.md 4).

Used by ``kitfs gc``. Safe beside any other operation, in this process or another. Candidates are listed before
the exclusive ``gc.lock`` is taken, so a file that appears later is none; inside it the notes of leases and sessions
are read, then the index is marked, then records go in one transaction, then files are renamed into
``ingest/trash-…``; after it they are unlinked. A crash leaves files without records or trash, which the next run
removes; never a record without its file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.store import agreement, catalog, downloads, durable, gate, index_swap, partials, pins, schema, tags
from kitfs.store.errors import IndexDisagrees
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.records import BlobRecord, MemberRecord
from kitfs.store.roots import TRASH_PREFIX, Marks, Notes, mark, read_notes

if TYPE_CHECKING:
    from kitfs.store.store import Store


_OTHER_FORM = "the store keeps this blob in another form"
_UNFINISHED = "the operation that stored it did not finish"


@dataclass(frozen=True, slots=True)
class Victim:
    """One thing that goes, or would go.

    Attributes:
        kind: ``ModelKit``, ``blob``, ``member``, ``partial``, ``download``, ``ingest``, ``lease``, ``session`` or
            ``staging``.
        name: Its digest or file name.
        size: Bytes that the disk gets back; 0 for a linked file that has another name.
        reason: Why.
    """

    kind: str
    name: str
    size: int
    reason: str


@dataclass(slots=True)
class GcReport:
    """What went, or would go.

    Attributes:
        dry_run: Whether nothing was touched.
        victims: Each thing, with its reason.
        kept: Blobs and members that stay.
    """

    dry_run: bool
    victims: list[Victim] = field(default_factory=list)
    kept: int = 0

    @property
    def size(self) -> int:
        """Bytes that the disk gets back."""
        return sum(victim.size for victim in self.victims)


@dataclass(slots=True)
class _File:
    path: Path
    size: int
    changed_s: float


@dataclass(slots=True)
class _Plan:
    blobs: dict[Digest, _File | None] = field(default_factory=dict)
    members: dict[Digest, _File | None] = field(default_factory=dict)
    others: list[_File] = field(default_factory=list)  # recipes, and files that another form replaced
    unpinned: set[Digest] = field(default_factory=set)  # split blobs that go
    victims: list[Victim] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    partials: list[Path] = field(default_factory=list)


def gc(store: Store, *, dry_run: bool = False, grace_s: float = 0) -> GcReport:
    """Remove what no tag, live lease, live session or wanted session leads to.

    Args:
        store: The store.
        dry_run: Only say what would go.
        grace_s: Keep what was added or used less than so many seconds ago, with all that it leads to.

    Raises:
        IndexDisagrees: when the index does not agree with itself or ``tags.log``; nothing went.
        RecordCorrupt, TagsLogCorrupt: when a record does not verify; nothing went.
        IndexFailed, StoreWriteFailed: when writing failed; what has not gone goes next time.
    """
    layout, index = store.layout, store.index
    files = {kind: dict(iter_files(layout, kind)) for kind in ("blobs", "recipes", "members")}
    report = GcReport(dry_run)
    with (gate.shared if dry_run else gate.exclusive)(layout.gc_lock):
        if not dry_run:
            with index.write() as txn:
                tags.catch_up(txn, layout)
        notes = read_notes(layout)
        with index.read() as txn:
            plan = _decide(txn, layout, notes, files, grace_s, report)
        if not dry_run:
            partials.drop_other_boots(layout)
            with index.write() as txn:
                _forget(txn, plan)
            trash = _take_away(layout, plan)
            with index.write() as txn:
                scratch = layout.ingest / f"{TRASH_PREFIX}tags-log-{secrets.token_hex(8)}"
                tags.compact_log(txn, layout, scratch, int(time.time()))
    if not dry_run:
        for path in trash:
            durable.remove(path)
        index_swap.drop_scratch(layout)  # left by a kill: while one is made nobody else has a store open
    report.victims = plan.victims
    return report


def iter_files(layout: Layout, kind: str) -> Iterator[tuple[Digest, _File]]:
    """The files under ``blobs``, ``recipes`` or ``members`` that have a digest for a name."""
    for folder in sorted(layout.content(kind).glob("*")):  # nothing where a full disk kept it from being made
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if len(entry.name) != 64 or not entry.is_file(follow_symlinks=False):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    size = status.st_size if status.st_nlink == 1 else 0
                    yield Digest(entry.name), _File(Path(entry.path), size, status.st_ctime)


def _decide(
    txn: Txn, layout: Layout, notes: Notes, files: dict[str, dict[Digest, _File]], grace_s: float, report: GcReport
) -> _Plan:
    problems = agreement.find_disagreements(txn, layout)
    problems += [f"session {path.stem} can not be read" for path in notes.sessions_unreadable]
    problems += [f"{path} can not be read" for path in notes.staging_unreadable]
    if problems:
        raise IndexDisagrees(problems)
    young_s = time.time() - grace_s
    blobs = {Digest.from_raw(key): record for key, record in txn.iter(schema.BLOBS, BlobRecord)}
    members = {Digest.from_raw(key): record for key, record in txn.iter(schema.MEMBERS, MemberRecord)}
    young = {digest for digest, record in blobs.items() if grace_s and record.last_used_s >= young_s}
    marks = mark(txn, notes.held | young, with_members=bool(members or files["members"]))
    marks.members -= files["members"].keys() - members.keys() - notes.held  # nobody can open what has no record
    if marks.unindexed:  # as after a bit flipped in the index: what such a layer has can not be told
        marks.members |= members.keys()
    if grace_s:
        _keep_young_files(marks, files, members, young_s)
    marks.members.update(digest for digest, record in members.items() if not marks.blobs.isdisjoint(record.pins))
    plan = _Plan()
    for digest in sorted((blobs.keys() | files["blobs"].keys() | files["recipes"].keys()) - marks.blobs):
        file, recipe = files["blobs"].get(digest), files["recipes"].get(digest)
        plan.blobs[digest] = file
        plan.others += [recipe] if recipe else []
        if digest in blobs and blobs[digest].form == "split":
            plan.unpinned.add(digest)
        is_kit = txn.contains(schema.MANIFESTS, digest.raw)
        reason = "no tag, lease, session or staging directory leads to it" if digest in blobs else _UNFINISHED
        size = (file.size if file else 0) + (recipe.size if recipe else 0)
        plan.victims.append(Victim("ModelKit" if is_kit else "blob", str(digest), size, reason))
    _plan_other_forms(plan, files, blobs, notes.held | young, young_s)
    for digest in sorted((members.keys() | files["members"].keys()) - marks.members):
        file = plan.members[digest] = files["members"].get(digest)
        reason = "no layer that is kept has it" if digest in members else _UNFINISHED
        plan.victims.append(Victim("member", str(digest), file.size if file else 0, reason))
    report.kept = len(blobs) + len(members) - len(plan.blobs.keys() & blobs.keys())
    report.kept -= len(plan.members.keys() & members.keys())
    _plan_leftovers(plan, notes)
    _plan_partials(plan, notes, young_s)
    _plan_downloads(plan, layout, young_s)
    return plan


def _keep_young_files(
    marks: Marks, files: dict[str, dict[Digest, _File]], members: dict[Digest, MemberRecord], young_s: float
) -> None:
    for kind in ("blobs", "recipes"):
        marks.blobs.update(digest for digest, file in files[kind].items() if file.changed_s >= young_s)
    marks.members.update(digest for digest, file in files["members"].items() if file.changed_s >= young_s)
    marks.members.update(digest for digest, record in members.items() if record.last_used_s >= young_s)


def _plan_other_forms(
    plan: _Plan,
    files: dict[str, dict[Digest, _File]],
    blobs: dict[Digest, BlobRecord],
    held: set[Digest],
    young_s: float,
) -> None:
    """Of blobs that are there in both forms, the one that is not recorded: two imports stored it in two ways."""
    for digest in sorted((files["blobs"].keys() & files["recipes"].keys() & blobs.keys()) - plan.blobs.keys() - held):
        file = files["blobs" if blobs[digest].form == "split" else "recipes"][digest]
        if file.changed_s < young_s:
            plan.others.append(file)
            plan.victims.append(Victim("blob", str(digest), file.size, _OTHER_FORM))


def _plan_leftovers(plan: _Plan, notes: Notes) -> None:
    for kind, paths, reason in (
        ("ingest", notes.ingests_dead, "its operation has ended"),
        ("lease", notes.leases_dead, "its process has ended"),
        ("session", notes.sessions_dead, "nobody serves it, and it is not wanted"),
        ("staging", notes.staging_gone, "its directory was removed"),
    ):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                size = status.st_size if status.st_nlink == 1 else 0
                plan.victims.append(Victim(kind, path.name, size, reason))
                plan.leftovers.append(path)


def _plan_partials(plan: _Plan, notes: Notes, young_s: float) -> None:
    for path in notes.partials_unused:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if status.st_mtime < young_s:
                size = 512 * status.st_blocks
                plan.victims.append(Victim("partial", path.name, size, "nobody reads it; its layer has the bytes"))
                plan.partials.append(path)


def _plan_downloads(plan: _Plan, layout: Layout, young_s: float) -> None:
    for path in downloads.iter_unused(layout):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if status.st_mtime < young_s:
                plan.victims.append(Victim("download", path.name, 512 * status.st_blocks, "no pull goes on with it"))
                plan.leftovers.append(path)


def _forget(txn: Txn, plan: _Plan) -> None:
    for digest in plan.blobs:
        catalog.delete_manifest(txn, digest)
        catalog.delete_layer(txn, digest)
        txn.delete(schema.BLOBS, digest.raw)
    if plan.members:
        catalog.delete_members(txn, plan.members)
    if plan.unpinned:
        pins.unpin_members(txn, plan.unpinned)


def _take_away(layout: Layout, plan: _Plan) -> list[Path]:
    """Rename files of victims into trash and unlink dead notes; the trash is for after the lock."""
    trash: list[Path] = []
    prefix = f"{TRASH_PREFIX}{secrets.token_hex(8)}"
    for file in (*plan.blobs.values(), *plan.others, *plan.members.values()):
        if file is not None:
            target = layout.ingest / f"{prefix}.{len(trash)}"
            with durable.naming(file.path, "removing"), contextlib.suppress(FileNotFoundError):
                file.path.rename(target)  # another GC that listed it too may have been first
            trash.append(target)
    for path in plan.leftovers:
        durable.remove(path)
    for path in plan.partials:
        partials.remove_unused(path)
    return trash
