"""What garbage collection starts from, and everything that hangs on it.

Roots: tags; digests noted by live leases; the manifests and noted digests of sessions that are alive or wanted; the
manifests of staging directories that are there.
A root that is a manifest keeps its config, its layers, their image indexes and its chain of parents; a layer that is
kept keeps the members in its table of contents; GC adds those that a kept blob pins. Reads only; GC calls it inside the
exclusive ``gc.lock``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kitfs.digest import Digest
from kitfs.oci.mediatype import parse_layer_type
from kitfs.store import catalog, gate, sessions, staging, tags
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.lease import read_held
from kitfs.store.partials import iter_partials, map_of
from kitfs.store.records import ManifestRecord

TRASH_PREFIX = "trash-"


@dataclass(slots=True)
class Notes:
    """What leases and sessions say.

    Attributes:
        held: Digests that they keep.
        leases_alive: Ids of leases whose lock is held.
        leases_dead: Files of the others.
        sessions_dead: Files of sessions that are neither alive nor wanted.
        sessions_unreadable: Files of sessions that can not be read.
        staging_gone: Registrations of staging directories that were removed, and those that were not finished.
        staging_unreadable: Registrations that can not be read.
        ingests_dead: Files in ``ingest/`` of dead leases, and trash.
        partials_unused: Data files of partials that nobody reads.
    """

    held: set[Digest] = field(default_factory=set)
    leases_alive: set[str] = field(default_factory=set)
    leases_dead: list[Path] = field(default_factory=list)
    sessions_dead: list[Path] = field(default_factory=list)
    sessions_unreadable: list[Path] = field(default_factory=list)
    staging_gone: list[Path] = field(default_factory=list)
    staging_unreadable: list[Path] = field(default_factory=list)
    ingests_dead: list[Path] = field(default_factory=list)
    partials_unused: list[Path] = field(default_factory=list)


def read_notes(layout: Layout) -> Notes:
    """Read them all. Ingests are listed first: one that appears later belongs to a lease that is read later.

    Raises:
        StoreWriteFailed: when a file that is there can not be read.
    """
    notes = Notes()
    ingests = sorted(layout.ingest.iterdir())
    for path in sorted(layout.leases.iterdir()):
        if gate.is_alive(path):
            notes.leases_alive.add(path.name)
            notes.held.update(read_held(path))
        else:
            notes.leases_dead.append(path)
    for path in ingests:
        if path.name.startswith(TRASH_PREFIX) or path.name.rpartition(".")[0] not in notes.leases_alive:
            notes.ingests_dead.append(path)
    notes.partials_unused = [path for path in iter_partials(layout) if not gate.is_alive(map_of(path))]
    _read_sessions(layout, notes)
    _read_staging(layout, notes)
    return notes


def _read_staging(layout: Layout, notes: Notes) -> None:
    notes.staging_gone += staging.iter_scratch(layout)
    for path, registration in staging.iter_registrations(layout):
        if registration is None:
            notes.staging_unreadable.append(path)
        elif staging.is_gone(registration):
            link = path.with_suffix("")
            notes.staging_gone += [path, link] if link.is_symlink() else [path]
        else:
            notes.held.update(map(Digest.parse, registration.manifests))


def _read_sessions(layout: Layout, notes: Notes) -> None:
    kept: set[str] = set()
    paths = sorted(layout.sessions.iterdir())
    for path in paths:
        if path.suffix == ".new":
            if not gate.is_alive(path):
                notes.sessions_dead.append(path)
        elif path.suffix == ".json":
            alive = gate.is_alive(path)
            record = sessions.find_record(path)
            if record is None:
                if path.exists():  # else it has been ended since the folder was listed
                    notes.sessions_unreadable.append(path)
            elif alive or path.with_suffix(".wanted").exists():
                notes.held.update(map(Digest.parse, record.manifests))
            else:
                notes.sessions_dead.append(path)
                continue
            kept.add(path.stem)
            notes.held.update(read_held(path.with_suffix(".holds")))
    notes.sessions_dead += [
        path for path in paths if path.suffix in (".holds", ".names", ".wanted") and path.stem not in kept
    ]


@dataclass(slots=True)
class Marks:
    """What is kept.

    Attributes:
        blobs: Blobs, manifests and layers among them.
        members: Members.
        unindexed: Layers of a shown kind without a table of contents: what members they have is not known.
    """

    blobs: set[Digest] = field(default_factory=set)
    members: set[Digest] = field(default_factory=set)
    unindexed: set[Digest] = field(default_factory=set)


def mark(txn: Txn, held: Iterable[Digest], *, with_members: bool) -> Marks:
    """Everything that tags and ``held`` lead to.

    Args:
        txn: Begun after the notes were read, so that a lease which has ended since left its tags visible here.
        held: Digests to start from beside tags.
        with_members: Whether to read the tables of contents; without members in the store there is no need.

    Raises:
        RecordCorrupt, LayerNotIndexed: when a record on the way does not verify.
    """
    marks = Marks()
    layers: set[Digest] = set()
    marks.members.update(held)
    for digest, manifest in iter_reached(txn, [*held, *(record.manifest for _, _, record in tags.iter_tags(txn))]):
        marks.blobs.add(digest)
        if manifest is not None:
            layers.update(manifest.layers)
        if with_members and catalog.find_layer(txn, digest) is not None:
            marks.members.update(
                Digest.from_raw(member.digest) for member in catalog.get_toc(txn, digest) if member.digest
            )
    if with_members:
        marks.unindexed = {layer for layer in layers if _lacks_toc(txn, layer)}
    return marks


def iter_reached(txn: Txn, starts: Iterable[Digest]) -> Iterator[tuple[Digest, ManifestRecord | None]]:
    """Every blob that some blobs lead to, themselves among them, each once, with its record when it is a manifest.

    Raises:
        RecordCorrupt: when a record on the way does not verify.
    """
    seen: set[Digest] = set()
    waiting = list(starts)
    while waiting:
        digest = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        manifest = catalog.find_manifest(txn, digest)
        if manifest is not None:
            waiting += (manifest.config, *manifest.layers, *manifest.indexes, *manifest.parents)
        yield digest, manifest


def _lacks_toc(txn: Txn, layer: Digest) -> bool:
    """Whether a layer should have a table of contents and has none; its blob's record may have vanished as well."""
    if catalog.find_layer(txn, layer) is not None:
        return False
    blob = catalog.find_blob(txn, layer)
    return blob is None or any(map(parse_layer_type, blob.media_types))
