"""A compressed layer being decoded into member files, in a thread of its own, while readers wait for members.

`materialise` starts one and shares it. The thread decodes the layer from its start; each member that is whole is
stored (`member_writer`, on one thread more), and whoever waits for it goes on while the rest is decoded. A member
whose bytes are others is given up alone, as long as the stream can be followed. No lock is held while anything is
read, decoded or written: waiting is on a condition that the thread signals. `cancel` ends it early: what is stored by
then stays, the member under way is dropped.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence

from kitfs.digest import Digest, DigestMismatch
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.decoders import open_decoder
from kitfs.layer.errors import LayerCorrupt, LayerMalformed
from kitfs.layer.member_writer import MemberWriter
from kitfs.layer.pipeline import Pipeline
from kitfs.oci.mediatype import Compression
from kitfs.store.records import LayerRecord, TocMember
from kitfs.store.stamp import find_status, stamp_of
from kitfs.store.store import Store

_READ_SIZE = 512 << 10

_log = logging.getLogger(__name__)


class _Cancelled(Exception):
    """The decoding has no reader left."""


class Decoding:
    """One layer being decoded; see the module. Methods may be called from any thread.

    Attributes:
        users: Readers that share it; kept by `materialise` under its lock.
        blob_stamp: What the blob's file looked like before it was read, or None when it is not there.
        ended_s: When it ended, on the monotonic clock.
    """

    def __init__(self, store: Store, layer: Digest, record: LayerRecord, toc: Sequence[TocMember]) -> None:
        self._store = store
        self._layer = layer
        self._record = record
        self._toc = toc
        self._changed = threading.Condition()
        self._stored: set[Digest] = set()
        self._corrupt: dict[Digest, LayerCorrupt] = {}
        self._wanted: set[Digest] = set()
        self._error: BaseException | None = None
        self._is_finished = False
        self._is_cancelled = False
        self._thread = threading.Thread(target=self._run, name=f"kitfs-decode-{layer.hex[:12]}", daemon=True)
        self.users = 0
        self.ended_s = 0.0
        status = find_status(store.layout.blob(layer))
        self.blob_stamp = None if status is None else stamp_of(status)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether members may still come."""
        return not self._is_finished

    def wait(self, digest: Digest) -> None:
        """Return when the member is stored, or the decoding ended without an error.

        Raises:
            LayerCorrupt: when the member's bytes, or the layer before them, are not what was verified.
            KitfsError, OSError: whatever else ended the decoding.
        """
        with self._changed:
            self._wanted.add(digest)
            self._changed.wait_for(lambda: digest in self._stored or digest in self._corrupt or self._is_finished)
        error = self.find_error(digest)
        if error is not None:
            raise error

    def forget(self, digest: Digest) -> None:
        """The member is not in the store any more; `wait` then returns when it is stored again, or at the end."""
        with self._changed:
            self._stored.discard(digest)

    def find_error(self, digest: Digest) -> BaseException | None:
        """What kept the member from being stored, as far as is known."""
        if digest in self._stored:
            return None
        return self._corrupt.get(digest) or self._error

    def cancel(self) -> None:
        """Ask the thread to end."""
        self._is_cancelled = True

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the thread's end."""
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._decode()
        except _Cancelled:
            pass
        except LayerMalformed as caught:
            error = LayerCorrupt(self._layer, member=None, span=None, offset=caught.offset, reason=caught.reason)
            error.__cause__ = caught
        except BaseException as caught:  # noqa: BLE001  # whoever waits gets it
            error = caught
        if error is not None:
            _log.error("decoding layer %s: %s", self._layer, error)
        with self._changed:
            self._error = error
            self.ended_s = time.monotonic()
            self._is_finished = True
            self._changed.notify_all()

    def _decode(self) -> None:
        with self._store.lease(f"decode layer {self._layer}") as lease:
            lease.hold(self._layer)
            writer = MemberWriter(
                self._store,
                lease,
                self._toc,
                is_wanted=self._wanted.__contains__,
                on_stored=self._add_stored,
                on_corrupt=self._add_corrupt,
            )
            fd = self._store.open_blob(self._layer)
            try:
                size = self._feed(fd, writer)
            finally:
                os.close(fd)
                writer.close()
            if not writer.is_done:
                raise LayerMalformed(None, size, "decodes to less than its table of contents says")

    def _feed(self, fd: int, writer: MemberWriter) -> int:
        """Decode the whole blob into the writer; the blob's size."""
        # The import admitted what it decodes to. A damaged one may decode to more: what is before the damage is kept.
        limits = DecodeLimits(free_size=self._record.size_decoded)
        decoder = open_decoder(Compression(self._record.compression), limits)
        pipeline = Pipeline("kitfs-write")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        offset = 0
        try:
            while data := os.pread(fd, _READ_SIZE, offset):
                for piece in decoder.feed(memoryview(data)):
                    if self._is_cancelled:
                        raise _Cancelled
                    pipeline.submit(writer.take, memoryview(piece))
                offset += len(data)
            decoder.close()
            pipeline.drain()
        except LayerMalformed:
            pipeline.drain()  # members before the damage are good
            raise
        finally:
            pipeline.close()
        return offset

    def _add_stored(self, digests: list[Digest]) -> None:
        with self._changed:
            self._stored.update(digests)
            self._changed.notify_all()

    def _add_corrupt(self, index: int, error: DigestMismatch) -> None:
        member = self._toc[index]
        corrupt = LayerCorrupt(self._layer, member=index, span=None, offset=member.offset, reason=str(error))
        _log.error("decoding layer %s: %s", self._layer, corrupt)
        with self._changed:
            self._corrupt[error.expected] = corrupt
            self._changed.notify_all()
