"""Writes the layers of one pack, several at once; those that the store has already are found and not written.

Used by pack. On disk when ``pack_layers`` returns: every layer under its digest, held by the lease, not yet in the
index. A layer in work has a few MiB in memory: pieces on their way to be hashed, compressed and written. One failure
ends the others at their next piece; nothing stays of what was not whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from kitfs.layer.compress import compress
from kitfs.layer.index_blob import get_layer_index
from kitfs.layer.indexer import LayerIndex
from kitfs.modelkit.entries import Advance, Reading
from kitfs.modelkit.layerwriter import iter_tar, iter_tar_parts, write_layer
from kitfs.modelkit.pack_options import LayerPlan
from kitfs.modelkit.pack_source import Source
from kitfs.modelkit.stored_layers import find_candidates, find_same
from kitfs.oci import go_json
from kitfs.oci.manifest import ANNOTATION_FILE_METADATA, ANNOTATION_FILEPATH, ANNOTATION_SUBTYPE
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.progress import Progress, Step
from kitfs.store.lease import Lease
from kitfs.store.split_ingest import is_worth_splitting
from kitfs.store.store import Store

LAYERS_MAX = 4
"""Layers in work at once; each hashes on three threads."""

_AHEAD = 2
"""Pieces under way for each thread that compresses, so that none waits for the disk."""

_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A layer that is in the store.

    Attributes:
        plan: What it was to be.
        index: What is in it.
        annotations: Of its descriptor.
        is_new: Whether it was written.
    """

    plan: LayerPlan
    index: LayerIndex
    annotations: dict[str, str]
    is_new: bool


class _Stopped(Exception):
    """Another layer failed."""


def pack_layers(
    store: Store,
    lease: Lease,
    source: Source,
    plans: Sequence[LayerPlan],
    progress: Progress,
    *,
    finds: bool = True,
) -> list[PackedLayer]:
    """Bring all layers into the store; in the order of the plans.

    Args:
        store: Where to.
        lease: Holds them from now on.
        source: Where their files are.
        plans: What they are to be.
        progress: Told of each.
        finds: Whether to look for the same layer in the store first; of no use where it is known to be another.

    Raises:
        FileChanged, PathUnreadable, PathsUnpackable: when the directory does not give a layer.
        MemberUnwritable, LayerMalformed: when a layer is beyond what we read back.
        StoreWriteFailed, LeaseEnded and the store's other errors: when it can not be stored.
    """
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        compressing = stack.enter_context(ThreadPoolExecutor(cores, "kitfs-compress"))
        run = _Packing(store, lease, source, progress, compressing, _AHEAD * cores, finds=finds)
        # A thread whose start was interrupted is not known to its pool, and is not waited for there.
        stack.callback(run.wait)
        writing = stack.enter_context(ThreadPoolExecutor(min(cores, LAYERS_MAX), "kitfs-pack"))
        stack.callback(run.stop)
        futures = [writing.submit(run.pack, plan) for plan in plans]
        # A signal that comes while this thread is about to wait does not wake it; it looks again soon.
        left = set(futures)
        while left and not any(future.done() and future.exception() for future in futures):
            _, left = wait(left, _LOOK_S, FIRST_EXCEPTION)
        if left:
            run.stop()
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, _Stopped):
                raise error
        return [future.result() for future in futures]


class _Packing:
    def __init__(
        self,
        store: Store,
        lease: Lease,
        source: Source,
        progress: Progress,
        compressing: ThreadPoolExecutor,
        ahead: int,
        *,
        finds: bool,
    ) -> None:
        self._store = store
        self._lease = lease
        self._source = source
        self._progress = progress
        self._compressing = compressing
        self._ahead = ahead
        self._finds = finds
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._count = 0  # of layers in work

    def stop(self) -> None:
        """End all layers at their next piece."""
        with self._changed:
            self._stopping.set()

    def wait(self) -> None:
        """Wait until no layer is in work."""
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0)

    def pack(self, plan: LayerPlan) -> PackedLayer:
        """Find or write one layer."""
        with self._changed:
            if self._stopping.is_set():
                raise _Stopped
            self._count += 1
        try:
            return (self._find(plan) if self._finds else None) or self._write(plan)
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def _find(self, plan: LayerPlan) -> PackedLayer | None:
        layer_format, compression = plan.type.format, plan.type.compression
        count = 1 if layer_format is LayerFormat.RAW else plan.entry_count
        candidates = find_candidates(self._store, layer_format, compression, count, plan.size)
        if not candidates:
            return None
        step = self._progress.begin(f"{plan.name}, as stored", plan.size)
        with self._open(plan, step) as (pieces, annotations):
            digest = find_same(self._store, self._lease, candidates, pieces)
        if digest is None:
            return None
        step.finish()
        return PackedLayer(plan, get_layer_index(self._store, digest), annotations, is_new=False)

    def _write(self, plan: LayerPlan) -> PackedLayer:
        layer_format, compression = plan.type.format, plan.type.compression
        is_plain_tar = (layer_format, compression) == (LayerFormat.TAR, Compression.NONE)
        step = self._progress.begin(plan.name, plan.size)
        if is_plain_tar and is_worth_splitting(plan.entry_count, plan.size, plan.size):
            parts = iter_tar_parts(self._source.iter_entries(plan.path), self._advance(step), plan.prefix)
            index = write_layer(self._store, self._lease, parts, layer_format, compression, splits=True)
            annotations = _annotations(plan)
        else:
            with self._open(plan, step) as (pieces, annotations):
                index = write_layer(self._store, self._lease, pieces, layer_format, compression)
        step.finish()
        return PackedLayer(plan, index, annotations, is_new=True)

    @contextmanager
    def _open(self, plan: LayerPlan, step: Step) -> Iterator[tuple[Iterator[bytes], dict[str, str]]]:
        """The published bytes of a layer, and its annotations."""
        annotations, advance = _annotations(plan), self._advance(step)
        with ExitStack() as stack:
            if plan.type.format is LayerFormat.RAW:
                file = stack.enter_context(self._source.open_file(plan.path, advance))
                annotations[ANNOTATION_FILE_METADATA] = _file_metadata(plan.path, file)
                pieces = file.pieces
            else:
                pieces = iter_tar(self._source.iter_entries(plan.path), advance, plan.prefix)
            yield compress(pieces, plan.compression, self._compressing, self._ahead), annotations

    def _advance(self, step: Step) -> Advance:
        """Tells of bytes that were read, and ends the layer when another failed."""

        def advance(size: int) -> None:
            if self._stopping.is_set():
                raise _Stopped
            step.advance(size)

        return advance


def _annotations(plan: LayerPlan) -> dict[str, str]:
    annotations = {ANNOTATION_FILEPATH: plan.path}
    if plan.artifact.subtype:
        annotations[ANNOTATION_SUBTYPE] = plan.artifact.subtype
    return annotations


def _file_metadata(path: str, file: Reading) -> str:
    """What model-spec records of a raw layer's file; the time is the epoch, so that equal files pack equally."""
    metadata = {
        "name": path.rpartition("/")[2],
        "mode": file.mode & 0o777,
        "uid": 0,
        "gid": 0,
        "size": file.size,
        "mtime": "1970-01-01T00:00:00Z",
        "typeflag": 0,
    }
    return go_json.encode(metadata).decode()
