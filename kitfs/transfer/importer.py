"""Import: ModelKits of a source become ModelKits of the store.

Used by ``kitfs import`` and, for kit's storage, by ``kit_refresh``. Each ModelKit is one change: its blobs, its
layers' tables of contents, its manifest and its tags appear together or not at all; one that fails leaves the
store as it was, and those before it stay. Every byte is verified against its digest and size, whatever the source
claims. Synchronous; one import at a time per call, any number of calls and processes at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from kitfs.digest import Digest
from kitfs.errors import IntegrityError, KitfsError, MalformedError, NotFoundError
from kitfs.oci.manifest import ANNOTATION_INDEX, Manifest, NotAModelKit, parse_manifest
from kitfs.oci.mediatype import OCI_MANIFEST, parse_layer_type
from kitfs.oci.reference import Reference
from kitfs.progress import NoProgress, Progress
from kitfs.store.records import ManifestRecord
from kitfs.store.store import Store
from kitfs.transfer.expansion import EXPANSION_MAX, Expansion
from kitfs.transfer.intake import Counts, Intake
from kitfs.transfer.parents import PARENTS_MAX, find_parent, follow_parents, parse_config
from kitfs.transfer.source import Source, SourceEntry

NAMES_SHOWN = 10


class ReferenceNotInSource(NotFoundError):
    """A reference that the source does not name."""

    def __init__(self, reference: Reference, source: Source, names: Sequence[str]) -> None:
        shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
        super().__init__(f"{reference.display} is not in {source.path}")
        self.reference = reference
        self.hint = f"it holds {shown}" if names else "it holds no ModelKit"


@dataclass(frozen=True, slots=True)
class ImportedKit:
    """One ModelKit that is in the store now.

    Attributes:
        manifest: Its ModelKitID.
        names: (repository, tag) that were set; empty for one that the source does not name.
    """

    manifest: Digest
    names: tuple[tuple[str, str], ...]


@dataclass
class ImportReport:
    """What an import did.

    Attributes:
        kits: ModelKits in the order in which they became visible.
        warnings: What was passed over, one sentence each.
        failures: ModelKits of a whole source that were refused, by name; those asked for by name raise.
        counts: What became of the blobs.
    """

    kits: list[ImportedKit] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failures: list[tuple[str, KitfsError]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    @property
    def tags(self) -> list[tuple[str, str, Digest]]:
        """(repository, tag, ModelKitID) of every tag that was set, in order."""
        return [(*name, kit.manifest) for kit in self.kits for name in kit.names]


def import_source(store: Store, source: Source, *, references: Sequence[Reference] | None = None,
                  copy: bool = False, progress: Progress | None = None,
                  expansion_max: int = EXPANSION_MAX) -> ImportReport:  # fmt: skip
    """Import what a source holds, or the given references and their parents.

    Args:
        store: Where to.
        source: Where from; see ``detect.open_source``.
        references: Only these, by tag or digest; a parent that a Kitfile names comes along when the source has it.
        copy: Write every blob anew instead of linking files.
        progress: Is told of each layer.
        expansion_max: Bytes that its compressed layers together may decode to beyond what is usual.

    Returns:
        What became visible. On disk when it returns: all of it.

    Raises:
        ReferenceNotInSource: when a reference is not there.
        NotAModelKit: when a reference names something else.
        MalformedError: when the source or a ModelKit asked for by name breaks its format.
        IntegrityError: when bytes are not what a digest or size says.
        StoreWriteFailed, IndexFailed: when the store can not take it.
    """
    expansion = Expansion(store.home, expansion_max)
    run = _Import(store, source, copy=copy, progress=progress or NoProgress(), expansion=expansion)
    if references is None:
        run.import_all()
    else:
        run.import_references(references)
    run.report.warnings[:0] = source.warnings
    return run.report


class _Import:
    def __init__(self, store: Store, source: Source, *, copy: bool, progress: Progress, expansion: Expansion) -> None:
        self.report = ImportReport()
        self._store = store
        self._source = source
        self._copy = copy
        self._progress = progress
        self._expansion = expansion
        self._parents: dict[Digest, Reference | None] = {}

    def import_all(self) -> None:
        """Every ModelKit; other artifacts are passed over, and a broken one does not keep the others out."""
        for entries in group_entries(self._source.iter_entries()):
            try:
                self._import_kit(entries)
            except NotAModelKit as error:
                self.report.warnings.append(f"{entries[0].display}: {error}: passed over")
            except (MalformedError, IntegrityError) as error:
                self.report.failures.append((entries[0].display, error))
        self._record_parents()

    def import_references(self, references: Iterable[Reference]) -> None:
        """The ModelKits that were asked for, all found before the first is read, then their parents."""
        waiting = [(entries, 0) for entries in group_entries(self._get_entry(item) for item in references)]
        while waiting:
            entries, depth = waiting.pop(0)
            self._import_kit(entries)
            parent = self._find_parent_entry(entries[0].descriptor.digest)
            if parent is not None and depth < PARENTS_MAX:
                waiting.append(([parent], depth + 1))
        self._record_parents()

    def _get_entry(self, reference: Reference) -> SourceEntry:
        entry = self._source.find_entry(reference)
        if entry is None:
            names = [entry.display for entry in self._source.iter_entries()]
            raise ReferenceNotInSource(reference, self._source, names)
        return entry

    def _find_parent_entry(self, digest: Digest) -> SourceEntry | None:
        """The parent to bring along: not where the store's tag is somebody else's, nor where it is here already."""
        parent = self._parents[digest]
        if parent is None:
            return None
        entry = self._source.find_entry(parent)
        record = self._store.find_tag(parent.repository, parent.tag) if parent.tag else None
        if entry is None or (record is not None and record.origin != self._source.origin):
            return None
        done = entry.descriptor.digest in self._parents
        return None if done and (record or parent.digest) else entry

    def _import_kit(self, entries: Sequence[SourceEntry]) -> None:
        """One manifest under all its names, in one change."""
        entry = entries[0]
        if entry.descriptor.media_type != OCI_MANIFEST:
            raise NotAModelKit(f"its media type is {entry.descriptor.media_type[:200]!r}")
        names = tuple(dict.fromkeys((item.repository, item.tag) for item in entries if item.repository and item.tag))
        with self._store.lease(f"import {entry.display}") as lease:
            change = self._store.change(lease)
            intake = Intake(self._store, lease, change, entry.blobs, origin=self._source.origin, copy=self._copy,
                            progress=self._progress, counts=self.report.counts,
                            expansion=self._expansion)  # fmt: skip
            manifest = parse_manifest(intake.read_small(entry.descriptor))
            config = intake.read_small(manifest.config)
            kitfile = parse_config(manifest, config)
            self._take_layers(intake, manifest, entry.display)
            indexes = self._take_indexes(intake, manifest, entry.display)
            intake.take_small(manifest.config, config)
            intake.take_small(entry.descriptor, manifest.raw)
            layers = [layer.digest for layer in manifest.layers]
            change.add_manifest(manifest.digest, ManifestRecord(manifest.config.digest, layers, [], indexes))
            for repository, tag in names:
                change.set_tag(repository, tag, manifest.digest, self._source.origin)
            change.commit()
        self._parents[manifest.digest] = find_parent(kitfile)
        self.report.kits.append(ImportedKit(manifest.digest, names))

    def _take_layers(self, intake: Intake, manifest: Manifest, display: str) -> None:
        for number, layer in enumerate(manifest.layers, start=1):
            kind = parse_layer_type(layer.media_type)
            if kind is None:
                text = f"{display}: layer {number} has an unknown media type, {layer.media_type!r}: kept, not shown"
                self.report.warnings.append(text)
            what = str(kind.kind) if kind else "layer"
            intake.take_layer(layer, kind, f"{display}  {what} {layer.digest.hex[:12]}")

    def _take_indexes(self, intake: Intake, manifest: Manifest, display: str) -> list[Digest]:
        """The image indexes that layers name, made anew of the layers; one that differs is left out."""
        indexes: dict[Digest, None] = {}
        for number, layer in enumerate(manifest.layers, start=1):
            if ANNOTATION_INDEX not in layer.annotations:
                continue
            digest = intake.take_image_index(layer)
            if digest is not None:
                indexes[digest] = None
                continue
            named = layer.annotations[ANNOTATION_INDEX][:100]
            self.report.warnings.append(
                f"{display}: layer {number} ({layer.digest}) has another image index than its descriptor names, "
                f"{named!r}: the layer itself is right"
            )
        return list(indexes)

    def _record_parents(self) -> None:
        """Once all are here: note each kit's chain of parents, so that they stay while it does."""
        for digest, parent in self._parents.items():
            if parent is None:
                continue
            chain, missing = follow_parents(self._store, parent)
            if missing is not None:
                self.report.warnings.append(f"{digest}: its parent {missing.display} is not in the store")
            record = self._store.get_manifest(digest)
            if chain and chain != record.parents:
                with self._store.lease("import parents") as lease:
                    lease.hold(digest)
                    change = self._store.change(lease)
                    change.add_manifest(digest, msgspec.structs.replace(record, parents=chain))
                    change.commit()


def group_entries(entries: Iterable[SourceEntry]) -> list[list[SourceEntry]]:
    """Entries of one manifest together, in the order in which manifests first appear."""
    groups: dict[Digest, list[SourceEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.descriptor.digest, []).append(entry)
    return list(groups.values())
