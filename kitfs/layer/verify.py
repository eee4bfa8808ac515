"""Whether all that a mount would read of a layer is right, proven by reading all of it.

Used by ``kitfs verify``. In one pass over the blob it is hashed and indexed anew, which gives what the index should
say: digest, decoded digest, members. Then what a mount reads *through* is proven against that: a plain layer's span
checksums are compared with the fresh ones; a layer with checkpoints is decoded span by span as a mount does it, and the
spans in order must have the decoded digest; one without is only ever decoded whole, and member by member verified.
Files of members that are stored already are hashed; those of a split layer are as its bytes are read from them. Changes
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kitfs.digest import Digest, Digester
from kitfs.errors import KitfsError
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.index_blob import image_index_digest
from kitfs.layer.indexer import LayerIndex
from kitfs.layer.lazy_layer import LazyLayer
from kitfs.layer.reindex import LayerWatcher, find_wrong_members, name_wrong_members
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store import stored
from kitfs.store.records import LayerRecord, TocMember
from kitfs.store.store import Store
from kitfs.store.stored import Reading
from kitfs.store.verify import hash_and_stamp

IMPORT_AGAIN = "import the ModelKit again"
REBUILD_INDEX = "kitfs fsck --rebuild-index"
REPAIR_DATA = "kitfs fsck --read-data --repair"

_WRONG_FILE = "the stored file of member {!r} holds other bytes, or is gone"

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        reason: What, in words.
        mend: What mends it.
    """

    reason: str
    mend: str


@dataclass(slots=True)
class BlobVerdict:
    """What was looked at of a blob.

    Attributes:
        digest: The blob.
        size: Its bytes.
        damages: What is wrong.
        members: Files in it, where it is a layer.
        spans: Spans decoded as a mount does, or compared with their checksums.
        native: Member files of it that are stored and right.
        image_index: The image index that follows from its bytes, where it is a layer that is right.
    """

    digest: Digest
    size: int = 0
    damages: list[Damage] = field(default_factory=list)
    members: int = 0
    spans: int = 0
    native: int = 0
    image_index: Digest | None = None


def verify_blob(store: Store, digest: Digest, advance: Advance) -> BlobVerdict:
    """Hash a blob that is no layer, or none that is shown.

    Raises:
        IndexFailed, IndexCorrupt: when the index can not be read at all.
    """
    return _read(store, digest, advance, lambda _: None)[0]


def verify_layer(
    store: Store, digest: Digest, layer_format: LayerFormat, compression: Compression, advance: Advance
) -> BlobVerdict:
    """Prove a layer; see the module.

    Args:
        store: The store.
        digest: The layer's blob.
        layer_format: As its media type says.
        compression: Likewise.
        advance: Told of published bytes that were hashed.

    Raises:
        IndexFailed, IndexCorrupt: when the index can not be read at all.
    """
    watcher = LayerWatcher(layer_format, compression)
    verdict, reading = _read(store, digest, advance, watcher.watch)
    if verdict.damages and (reading is None or reading.recipe is None):
        return verdict
    try:
        fresh = watcher.finish(digest)
    except LayerMalformed as error:
        verdict.damages.append(Damage(f"it is no layer of its kind: {error.reason}", IMPORT_AGAIN))
        return verdict
    verdict.members = sum(member.digest is not None for member in fresh.toc)
    if reading is not None and reading.recipe is not None:
        wrong = find_wrong_members(fresh, reading.recipe, reading)
        if wrong:  # which is what is wrong with all of it
            verdict.damages = [damage for damage in verdict.damages if damage.reason != reading.problem]
        for path in name_wrong_members(fresh, wrong):
            verdict.damages.append(Damage(_WRONG_FILE.format(os.fsdecode(path)), IMPORT_AGAIN))
    if verdict.damages:
        return verdict
    verdict.image_index = image_index_digest(fresh)
    try:
        record = store.find_layer(digest)
        if record is None:
            verdict.damages.append(Damage("it has no table of contents", REBUILD_INDEX))
        else:
            verdict.damages += _compare(store, record, fresh, verdict)
    except KitfsError as error:
        verdict.damages.append(Damage(str(error), REBUILD_INDEX))
    for member in fresh.toc:
        verdict.damages += _check_member(store, member, verdict, reading)
    return verdict


def _read(store: Store, digest: Digest, advance: Advance, watch: stored.Watch) -> tuple[BlobVerdict, Reading | None]:
    verdict = BlobVerdict(digest)
    try:
        record = store.find_blob(digest)
    except KitfsError as error:
        verdict.damages.append(Damage(str(error), REBUILD_INDEX))
        record = None
    find = stored.find_split if record is not None and record.form == "split" else stored.find_blob
    file = find(store.layout, digest)
    if file is None:
        verdict.damages.append(Damage("it is not there", IMPORT_AGAIN))
        return verdict, None
    verdict.size = file.size
    if record is None and not verdict.damages:
        verdict.damages.append(Damage("the index does not have it", REBUILD_INDEX))
    elif record is not None and record.form != file.form == "split":
        verdict.damages.append(Damage(f"it is kept as {file.form}, the index says {record.form}", REBUILD_INDEX))
    elif record is not None and record.size != file.size and (file.form != "split" or file.size):
        verdict.damages.append(Damage(f"it has {file.size} bytes, expected {record.size}", IMPORT_AGAIN))

    def seen(data: memoryview) -> None:
        advance(len(data))
        watch(data)

    reading = stored.read_whole(store.layout, file, seen)
    if not reading.is_right:
        mend = IMPORT_AGAIN if file.form == "split" else f"{REPAIR_DATA}, then {IMPORT_AGAIN}"
        verdict.damages.append(Damage(reading.problem, mend))
    return verdict, reading


def _compare(store: Store, record: LayerRecord, fresh: LayerIndex, verdict: BlobVerdict) -> Iterator[Damage]:
    """What the index says, against what the blob says."""
    known = (record.diff_id, record.format, record.compression, record.size_decoded)
    if known != (fresh.diff_id, fresh.record.format, fresh.record.compression, fresh.size_decoded):
        yield Damage("the index describes another layer", REBUILD_INDEX)
        return
    if store.get_toc(fresh.digest) != fresh.toc:
        yield Damage("its table of contents differs from what is in it", REBUILD_INDEX)
    if record.checkpoint_values and record.compression != Compression.NONE:
        yield from _decode_spans(store, record, fresh, verdict)
    elif fresh.record.compression == Compression.NONE:
        verdict.spans = len(fresh.span_checksums) // 16
        if store.span_checksums(fresh.digest) != fresh.span_checksums:
            yield Damage("its span checksums differ from those of its bytes", REBUILD_INDEX)


def _decode_spans(store: Store, record: LayerRecord, fresh: LayerIndex, verdict: BlobVerdict) -> Iterator[Damage]:
    """Decode every span from its checkpoint; together they must be the decoded layer."""
    layer = LazyLayer(store, fresh.digest, record, fresh.toc)
    digester = Digester()
    try:
        for span in range(layer.spans.count):
            digester.update(layer.decode(span))
            verdict.spans += 1
    finally:
        layer.close()
    if digester.digest() != fresh.diff_id:
        yield Damage("its spans do not give the decoded layer", REBUILD_INDEX)


def _check_member(store: Store, member: TocMember, verdict: BlobVerdict, reading: Reading | None) -> Iterator[Damage]:
    """The file of a member that is stored: a mount would read it in place of the layer."""
    if member.digest is None:
        return
    digest = Digest.from_raw(member.digest)
    is_part = reading is not None and digest in reading.members
    try:
        record = store.find_member(digest)
        if record is None and not is_part:
            return
        is_right = is_part or hash_and_stamp(store.layout.member(digest), digest)[0]
    except KitfsError as error:
        yield Damage(f"member {os.fsdecode(member.path)!r}: {error}", REPAIR_DATA)
        return
    if is_part and (record is None or verdict.digest not in record.pins):
        yield Damage(f"member {os.fsdecode(member.path)!r} is not recorded as its", REPAIR_DATA)
    elif is_right:
        verdict.native += 1
    else:
        yield Damage(_WRONG_FILE.format(os.fsdecode(member.path) or digest.hex[:12]), REPAIR_DATA)
