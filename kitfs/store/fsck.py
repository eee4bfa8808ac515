"""The check: one function per class of damage, named after it (invariants I1 to I7 of reliability.md).

Used by ``kitfs fsck`` and by tests after every crash. Each ``find_<damage>`` takes a ``View`` and yields findings;
none changes anything. The view is one read transaction over the index, and files are looked at beside it, so
while other operations run GC may take a file between the two: what concerns a file is looked at again in the end,
inside the shared ``gc.lock``, and is no finding when its record is gone too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitfs.digest import Digest
from kitfs.oci.mediatype import parse_layer_type
from kitfs.store import agreement, catalog, gate, schema, tags, tags_log
from kitfs.store.errors import RecordCorrupt, TagsLogCorrupt
from kitfs.store.findings import Finding, FsckReport, Weight
from kitfs.store.fsck_split import (
    find_corrupt_recipes,
    find_damaged_members,
    find_wrong_pins,
    find_wrong_split,
)
from kitfs.store.fsck_weights import weigh_blob, weigh_content, weigh_member
from kitfs.store.gc import iter_files
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.link import hash_file
from kitfs.store.records import (
    BlobRecord,
    CountRecord,
    InodeRange,
    LayerRecord,
    LogPosition,
    ManifestRecord,
    MemberRecord,
    MemberTotal,
    NextInode,
    TagRecord,
    TocMember,
    parse_value,
)
from kitfs.store.roots import read_notes
from kitfs.store.stamp import find_status, matches

if TYPE_CHECKING:
    from kitfs.store.store import Store

_KINDS: dict[str, Any] = {
    schema.BLOBS: BlobRecord,
    schema.MANIFESTS: ManifestRecord,
    schema.TAGS: TagRecord,
    schema.LAYERS: LayerRecord,
    schema.TOCS: list[TocMember],
    schema.CHECKPOINTS: bytes,
    schema.OUTLINES: bytes,
    schema.MEMBERS: MemberRecord,
    schema.INODE_BASES: InodeRange,
}
_COUNT_KINDS: dict[bytes, Any] = {
    schema.COUNT_TAGS: CountRecord,
    schema.COUNT_MANIFESTS: CountRecord,
    schema.LOG_POSITION: LogPosition,
    schema.NEXT_INODE: NextInode,
    schema.MEMBER_TOTAL: MemberTotal,
}


@dataclass(slots=True)
class View:
    """What the checks look at.

    Attributes:
        layout: The files.
        txn: The index.
        blobs: Records of blobs that verify.
        manifests: Records of manifests that verify.
        layers: Records of layers that verify.
        members: Records of members that verify.
        corrupt: Records that do not, found while the others were read.
        size_read: Bytes hashed so far.
    """

    layout: Layout
    txn: Txn
    blobs: dict[Digest, BlobRecord] = field(default_factory=dict)
    manifests: dict[Digest, ManifestRecord] = field(default_factory=dict)
    layers: dict[Digest, LayerRecord] = field(default_factory=dict)
    members: dict[Digest, MemberRecord] = field(default_factory=dict)
    corrupt: list[RecordCorrupt] = field(default_factory=list)
    size_read: int = 0


def open_view(layout: Layout, txn: Txn) -> View:
    """Read the index once, remembering what does not verify."""
    view = View(layout, txn)
    targets: dict[str, dict[Digest, Any]] = {
        schema.BLOBS: view.blobs,
        schema.MANIFESTS: view.manifests,
        schema.LAYERS: view.layers,
        schema.MEMBERS: view.members,
    }
    view.corrupt += iter_corrupt_records(txn, targets)
    return view


def iter_corrupt_records(txn: Txn, targets: dict[str, dict[Digest, Any]] | None = None) -> Iterator[RecordCorrupt]:
    """Read all records; yields what does not verify, and puts the others into the dictionary of their table."""
    for table, kind in _KINDS.items():
        target = (targets or {}).get(table)
        for key, value in txn.iter_raw(table):
            try:
                record = parse_value(table, key, value, kind)
                if target is not None:
                    target[Digest.from_raw(key)] = record
            except RecordCorrupt as error:
                yield error
    for key, value in txn.iter_raw(schema.COUNTS):
        try:
            parse_value(schema.COUNTS, key, value, _COUNT_KINDS[key])
        except (RecordCorrupt, KeyError) as error:
            yield error if isinstance(error, RecordCorrupt) else RecordCorrupt("counts", key, "unknown")


def find_corrupt_records(view: View) -> Iterator[Finding]:
    """Records whose checksum or form is wrong, and keys of no table."""
    for error in view.corrupt:
        derived = error.table in (schema.MEMBERS, schema.TAGS, schema.COUNTS, schema.MANIFESTS, schema.BLOBS)
        weight = Weight.REPAIRABLE if derived else Weight.LOST
        yield Finding("corrupt-record", f"{error.table}[{error.key.hex()[:80]}]", error.reason, weight)
    for key in view.txn.iter_unknown():
        yield Finding("corrupt-record", key.hex()[:80], "the key belongs to no table", Weight.LOST)


def find_disagreeing_counts(view: View) -> Iterator[Finding]:
    """Counts, tables and ``tags.log`` that tell different stories."""
    try:
        for problem in agreement.find_disagreements(view.txn, view.layout):
            yield Finding("disagreeing-counts", "index", problem, Weight.REPAIRABLE)
        position = tags.log_position(view.txn)
        if tags_log.find_replaced(view.layout.tags_log, position) is None:
            tags_log.read_lines(view.layout.tags_log, position)
    except TagsLogCorrupt as error:
        yield Finding("corrupt-tags-log", "tags.log", error.reason, Weight.REPAIRABLE)
    except RecordCorrupt:
        return  # named by find_corrupt_records


def find_missing_blobs(view: View) -> Iterator[Finding]:
    """Records of blobs without a regular file, or without a recipe where they are split."""
    for digest, record in view.blobs.items():
        status = find_status(view.layout.blob_in_form(digest, record.form))
        if status is None or not stat.S_ISREG(status.st_mode):
            yield Finding("missing-blob", str(digest), "its file is not there", weigh_content(view, digest))


def find_wrong_sizes(view: View) -> Iterator[Finding]:
    """Blobs whose file has another size than its record."""
    for digest, record in view.blobs.items():
        status = find_status(view.layout.blob(digest)) if record.form != "split" else None
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_size != record.size:
            detail = f"its file has {status.st_size} bytes, expected {record.size}"
            yield Finding("wrong-size", str(digest), detail, weigh_content(view, digest))


def find_wrong_digests(view: View) -> Iterator[Finding]:
    """Blobs and members whose bytes have another digest: reads them all."""
    for digest, blob in view.blobs.items():
        if blob.form == "split":
            yield from find_wrong_split(view, digest)
            continue
        detail = _compare_digest(view, view.layout.blob(digest), digest)
        if detail:
            yield Finding("wrong-digest", str(digest), detail, weigh_content(view, digest))
    for digest, member in view.members.items():
        detail = _compare_digest(view, view.layout.member(digest), digest)
        if detail:
            yield Finding("wrong-member-digest", str(digest), detail, weigh_member(member))


def _compare_digest(view: View, path: Path, digest: Digest) -> str:
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return ""  # named as missing; a pipe would wait for ever
        view.size_read += status.st_size
        actual = hash_file(path)
    except FileNotFoundError:
        return ""  # named by find_missing_blobs or find_missing_members
    except OSError as error:
        return f"it can not be read: {error.strerror}"
    return "" if actual == digest else f"its bytes have digest {actual}"


def find_tags_without_manifest(view: View) -> Iterator[Finding]:
    """Tags that point at nothing."""
    try:
        for repository, tag, record in tags.iter_tags(view.txn):
            if record.manifest not in view.manifests:
                detail = f"it points at {record.manifest}, which is not in the index"
                yield Finding("tag-without-manifest", f"{repository}:{tag}", detail, weigh_blob(view, record.manifest))
    except RecordCorrupt:
        return  # named by find_corrupt_records


def find_lost_tags(view: View) -> Iterator[Finding]:
    """Tags of ``tags.log`` that the table can not have, because their manifest's blob is gone."""
    try:
        logged = tags_log.replay(view.layout.tags_log, tags.log_position(view.txn))
        known = {(repository, tag) for repository, tag, _ in tags.iter_tags(view.txn)}
    except (RecordCorrupt, TagsLogCorrupt):
        return  # named by find_corrupt_records and find_disagreeing_counts
    for (repository, tag), text in logged.items():
        if (repository, tag) not in known and weigh_blob(view, Digest.parse(text)) is Weight.LOST:
            detail = f"tags.log says that it is {text}, whose blob is not there; importing it again heals that"
            yield Finding("lost-tag", f"{repository}:{tag}", detail, Weight.LOST)


def find_incomplete_manifests(view: View) -> Iterator[Finding]:
    """Manifests whose own blob, config, layer or image index is not recorded."""
    for digest, record in view.manifests.items():
        for needed in dict.fromkeys((digest, record.config, *record.layers, *record.indexes)):
            if needed not in view.blobs:
                weight = weigh_blob(view, needed)
                yield Finding("incomplete-manifest", str(digest), f"blob {needed} is not recorded", weight)


def find_layers_without_blob(view: View) -> Iterator[Finding]:
    """Layers whose blob is not recorded."""
    for digest in view.layers:
        if digest not in view.blobs:
            yield Finding("layer-without-blob", str(digest), "its blob is not recorded", weigh_blob(view, digest))


def find_incomplete_layers(view: View) -> Iterator[Finding]:
    """Layers with a batch of members, checksums or checkpoints missing."""
    for digest in view.layers:
        try:
            catalog.check_layer(view.txn, digest)
        except RecordCorrupt as error:
            yield Finding("incomplete-layer", str(digest), error.reason, Weight.LOST)


def find_unindexed_layers(view: View) -> Iterator[Finding]:
    """Layers of a kind that is shown, without a table of contents: their ModelKit can not be mounted."""
    for layer in dict.fromkeys(layer for record in view.manifests.values() for layer in record.layers):
        blob = view.blobs.get(layer)
        if blob is not None and layer not in view.layers and any(map(parse_layer_type, blob.media_types)):
            detail = "it has no table of contents; --rebuild-index makes it, and so does importing its ModelKit again"
            yield Finding("unindexed-layer", str(layer), detail, Weight.LOST)


def find_missing_members(view: View) -> Iterator[Finding]:
    """Records of members without a regular file; their layers have the bytes, unless they are split."""
    for digest, record in view.members.items():
        status = find_status(view.layout.member(digest))
        if status is None or not stat.S_ISREG(status.st_mode):
            yield Finding("missing-member", str(digest), "its file is not there", weigh_member(record))


def find_wrong_member_total(view: View) -> Iterator[Finding]:
    """A running total of members that is not the sum of their records: the quota would not hold."""
    try:
        noted = view.txn.find(schema.COUNTS, schema.MEMBER_TOTAL, MemberTotal)
    except RecordCorrupt:
        return  # named by find_corrupt_records
    actual = catalog.count_members(view.txn)
    if noted is not None and noted != actual:
        detail = f"it says {noted.count} members of {noted.size} bytes, there are {actual.count} of {actual.size}"
        yield Finding("wrong-member-total", "index", detail, Weight.REPAIRABLE)


def find_stale_members(view: View) -> Iterator[Finding]:
    """Members whose file does not look as it did when it was verified."""
    for digest, record in view.members.items():
        status = find_status(view.layout.member(digest))
        if status is None or not stat.S_ISREG(status.st_mode):
            continue  # named by find_missing_members
        if status.st_size != record.size:
            detail = f"its file has {status.st_size} bytes, expected {record.size}"
            yield Finding("stale-member", str(digest), detail, weigh_member(record))
        elif record.stamp is None:
            detail = "its file has not stood still since it was placed; it is hashed when it is next opened"
            yield Finding("unstamped-member", str(digest), detail, Weight.NOTE)
        elif not matches(record.stamp, status):
            detail = "its file was changed or replaced since it was verified"
            yield Finding("stale-member", str(digest), detail, Weight.REPAIRABLE)


def find_overlapping_inodes(view: View) -> Iterator[Finding]:
    """Ranges of inode numbers that overlap, or reach beyond what is noted as given out."""
    try:
        ranges = sorted((record.first, record.count) for _, record in view.txn.iter(schema.INODE_BASES, InodeRange))
        following = view.txn.find(schema.COUNTS, schema.NEXT_INODE, NextInode) or NextInode(schema.INODE_FIRST)
    except RecordCorrupt:
        return  # named by find_corrupt_records
    stop = schema.INODE_FIRST
    for first, count in ranges:
        if first < stop or first + count > following.number:
            detail = f"numbers [{first}, {first + count}) overlap others"
            yield Finding("overlapping-inodes", str(first), detail, Weight.LOST)
        stop = max(stop, first + count)


def find_unknown_files(view: View) -> Iterator[Finding]:
    """Files that have no record: in flight, or left by an operation that did not finish, or not ours."""
    split = {digest for digest, record in view.blobs.items() if record.form == "split"}
    for kind, records in (("blobs", view.blobs.keys() - split), ("recipes", split), ("members", view.members.keys())):
        for digest, _ in iter_files(view.layout, kind):
            if digest not in records:
                yield Finding("unknown-file", f"{kind} {digest}", "no record names it; gc removes it", Weight.NOTE)
        for path in view.layout.content(kind).glob("*/*"):
            if len(path.name) != 64 or path.name[:2] != path.parent.name:
                yield Finding("unknown-file", str(path), "it is not the store's", Weight.NOTE)


def find_leftovers(view: View) -> Iterator[Finding]:
    """Ingests, leases and sessions that nobody holds, staging directories that are gone, and what can not be read."""
    notes = read_notes(view.layout)
    for what, paths in (
        ("ingest", notes.ingests_dead),
        ("lease", notes.leases_dead),
        ("session", notes.sessions_dead),
        ("entry of staging", notes.staging_gone),
    ):
        for path in paths:
            yield Finding("leftover", path.name, f"an {what} that nobody holds; gc removes it", Weight.NOTE)
    for path in notes.sessions_unreadable:
        yield Finding("unreadable-session", path.stem, "its file can not be read", Weight.LOST)
    for path in notes.staging_unreadable:
        detail = "its registration can not be read; mounting it makes that anew, kitfs staging remove forgets it"
        yield Finding("unreadable-staging", path.stem, detail, Weight.LOST)


CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    find_corrupt_records,
    find_disagreeing_counts,
    find_missing_blobs,
    find_wrong_sizes,
    find_corrupt_recipes,
    find_tags_without_manifest,
    find_lost_tags,
    find_incomplete_manifests,
    find_layers_without_blob,
    find_incomplete_layers,
    find_unindexed_layers,
    find_missing_members,
    find_stale_members,
    find_wrong_member_total,
    find_damaged_members,
    find_wrong_pins,
    find_overlapping_inodes,
    find_unknown_files,
    find_leftovers,
)
"""All but ``find_wrong_digests``, which reads every byte."""

_OF_LOG = frozenset({"disagreeing-counts", "corrupt-tags-log"})
_OF_FILES = {
    "missing-blob": schema.BLOBS,
    "corrupt-recipe": schema.BLOBS,
    "missing-member": schema.MEMBERS,
    "wrong-digest": schema.BLOBS,
}


def check(store: Store, *, read_data: bool = False) -> FsckReport:
    """Look for every class of damage; changes nothing.

    Args:
        store: The store.
        read_data: Also hash every blob and member, and what recipes and members give.

    Raises:
        IndexFailed, IndexCorrupt, StoreWriteFailed: when the index or a folder can not be read at all.
    """
    report = FsckReport()
    with store.index.read() as txn:
        view = open_view(store.layout, txn)
        for find in CHECKS:
            report.findings += find(view)
    if read_data:  # for hours, and a transaction that is open so long keeps LMDB from using any page again
        report.findings += find_wrong_digests(view)
    report.blobs, report.members, report.size_read = len(view.blobs), len(view.members), view.size_read
    with gate.shared(store.layout.gc_lock), store.index.read() as txn:
        report.findings = [finding for finding in report.findings if _still_holds(txn, finding)]
        if any(finding.damage in _OF_LOG for finding in report.findings):  # GC may have compacted the log meanwhile
            report.findings = [finding for finding in report.findings if finding.damage not in _OF_LOG]
            report.findings += find_disagreeing_counts(View(store.layout, txn))
    return report


def _still_holds(txn: Txn, finding: Finding) -> bool:
    table = _OF_FILES.get(finding.damage)
    return table is None or txn.contains(table, Digest.parse(finding.name).raw)
