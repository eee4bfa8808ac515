"""Push: a ModelKit of the store goes to a registry, byte for byte as it was published.

Used by ``kitfs push``. What the registry has is not sent; what another repository of it may have is asked for there
first. The manifest goes last, so that a ModelKit is never visible before it is whole. Interrupted, the same push sends
what is missing. Blobs that the store keeps split are put together while they are sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kitfs.digest import Digest, Digester, DigestMismatch
from kitfs.oci.manifest import Descriptor, parse_manifest
from kitfs.oci.mediatype import OCI_MANIFEST, parse_layer_type
from kitfs.oci.reference import Reference
from kitfs.progress import NoProgress, Progress, Step
from kitfs.store.store import Store
from kitfs.transfer.registry.client import Registry
from kitfs.transfer.registry.remote_source import CONCURRENCY

_OTHERS_MAX = 4
"""Repositories that are asked for a blob before it is sent."""


@dataclass
class PushReport:
    """What a push did.

    Attributes:
        manifest: The ModelKitID.
        sent: Blobs that were sent.
        mounted: Blobs that were taken over from another repository of the registry.
        kept: Blobs that were there.
        size_sent: Bytes sent.
    """

    manifest: Digest
    sent: int = 0
    mounted: int = 0
    kept: int = 0
    size_sent: int = 0


def push(store: Store, manifest: Digest, target: Reference, registry: Registry, *, progress: Progress | None = None,
         concurrency: int = CONCURRENCY) -> PushReport:  # fmt: skip
    """Push a ModelKit under a name.

    In the registry when it returns: all of it, under the tag, or under its digest where the name has no tag.

    Args:
        store: Where it is.
        manifest: Which.
        target: Its name in the registry.
        registry: That of the name's host.
        progress: Is told of each blob.
        concurrency: Simultaneous uploads.

    Raises:
        BlobNotFound, BlobCorrupt: when the store does not have its bytes.
        DigestMismatch: when the store's bytes are not what they were; the registry does not get them.
        NetworkError, AuthenticationError: when the registry does not take them.
    """
    report = PushReport(manifest)
    with store.lease(f"push {target.display}") as lease:
        lease.hold(manifest)
        parsed = parse_manifest(store.read_blob(manifest))
        run = _Push(store, registry, target, report, progress or NoProgress(), _find_others(store, target))
        blobs = {one.digest: one for one in (*parsed.layers, parsed.config)}
        with ThreadPoolExecutor(concurrency, "kitfs-push") as pool:
            futures = [pool.submit(run.send, one) for one in blobs.values()]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                run.is_over = True
                pool.shutdown(cancel_futures=True)
                raise
        name = target.tag or str(manifest)
        registry.put_manifest(target.path, name, parsed.raw, parsed.media_type or OCI_MANIFEST)
    return report


def _find_others(store: Store, target: Reference) -> dict[Digest, list[str]]:
    """By blob, other repositories of the same registry that have had it, as far as the store knows."""
    found: dict[Digest, list[str]] = {}
    for repository, _, record in store.iter_tags():
        host, _, path = repository.partition("/")
        if host != target.host or path == target.path:
            continue
        known = store.find_manifest(record.manifest)
        for digest in (known.config, *known.layers) if known else ():
            paths = found.setdefault(digest, [])
            if path not in paths and len(paths) < _OTHERS_MAX:
                paths.append(path)
    return found


class _Push:
    """One push; ``send`` may be called from any thread."""

    def __init__(self, store: Store, registry: Registry, target: Reference, report: PushReport, progress: Progress,
                 others: dict[Digest, list[str]]) -> None:  # fmt: skip
        self.is_over = False
        self._store = store
        self._registry = registry
        self._path = target.path
        self._report = report
        self._progress = progress
        self._others = others
        self._lock = threading.Lock()  # of the report

    def send(self, blob: Descriptor) -> None:
        """See that the registry has a blob."""
        kind = parse_layer_type(blob.media_type)
        step = self._progress.begin(f"{kind.kind if kind else 'config'} {blob.digest.hex[:12]}", blob.size)
        if self._registry.has_blob(self._path, blob.digest):
            with self._lock:
                self._report.kept += 1
            step.advance(blob.size)
        else:
            self._bring(blob, step)
        step.finish()

    def _bring(self, blob: Descriptor, step: Step) -> None:
        location = None
        for other in self._others.get(blob.digest, ()):
            location = self._registry.mount_blob(self._path, blob.digest, other)
            if location is None:
                with self._lock:
                    self._report.mounted += 1
                step.advance(blob.size)
                return
        location = location or self._registry.begin_upload(self._path)
        with self._store.open_content(blob.digest) as content:
            reader = _Reader(content.iter_pieces(), blob, step, lambda: self.is_over)
            self._registry.upload_blob(self._path, location, blob.digest, reader.read, blob.size)
        with self._lock:
            self._report.sent += 1
            self._report.size_sent += blob.size


class _Reader:
    """Gives a blob's bytes to curl and hashes them; the last are held back until all are right."""

    def __init__(self, pieces: Iterator[bytes], blob: Descriptor, step: Step, is_over: Callable[[], bool]) -> None:
        self._pieces = pieces
        self._blob = blob
        self._step = step
        self._is_over = is_over
        self._digester = Digester()
        self._rest = memoryview(b"")
        self._left = blob.size

    def read(self, size: int) -> bytes:
        """Up to so many bytes; nothing at the end."""
        if not self._rest and self._left:
            self._next()
        piece = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        self._step.advance(len(piece))
        return piece

    def _next(self) -> None:
        if self._is_over():
            raise InterruptedError("the push has ended")
        piece = next(self._pieces, b"")
        self._digester.update(piece)
        self._left -= len(piece)
        if not piece or self._left < 0 or (not self._left and self._digester.digest() != self._blob.digest):
            raise DigestMismatch(self._blob.digest, self._digester.digest(), "the store's file")
        self._rest = memoryview(piece)
