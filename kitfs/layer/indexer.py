"""What is in a layer, found in the one pass over its bytes that stores it.

Import, pull and pack feed a `LayerIndexer` the published bytes beside the store's ingest and record the result with
it, so a layer is never there without its index. In the pass: decode, read the tar's headers, SHA-256 of the blob, of
the decoded stream and of every member, checksums of the spans of what is not compressed.

Two stages: the caller's thread decodes (or hashes the blob of a plain layer); one thread more hashes the rest and
reads headers, at most four pieces behind. Both spend their time in C without the interpreter lock: plain tar
1430 MB/s on two cores (755 per CPU-second), gzip of bf16 weights 316 MB/s of output, zstd 410 to 600. A layer below
512 KiB is done in the caller's thread alone. An indexer that is dropped half way leaves nothing: its thread ends with
it. One thread may use an indexer; a piece may be changed by its owner once `feed` has returned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from kitfs.archive.tar_toc import MemberKind, Piece, TarMalformed, TocReader
from kitfs.digest import Digest, Digester
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.decoders import open_decoder
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.pipeline import Pipeline
from kitfs.layer.spans import SpanWriter
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.records import KIND_FILE, LayerRecord, TocMember

_PIECE_SIZE = 1 << 20
_INLINE_SIZE = 512 << 10
RAW_MODE = 0o644
"""Mode in the TOC of a raw layer, which records none; its descriptor's annotations may say another."""


@dataclass(frozen=True, slots=True)
class LayerIndex:
    """Everything the store records of a layer.

    Attributes:
        digest: Of the published bytes.
        size: Published bytes.
        diff_id: Digest of the decoded bytes.
        size_decoded: Decoded bytes.
        toc: Its members in the archive's order; the one member of a raw layer has an empty path.
        span_checksums: `spans`; empty for a compressed layer.
        record: The same facts, as the store's record.
    """

    digest: Digest
    size: int
    diff_id: Digest
    size_decoded: int
    toc: list[TocMember]
    span_checksums: bytes
    record: LayerRecord


class LayerIndexer:
    """Indexes one layer while its bytes go by."""

    def __init__(
        self,
        layer_format: LayerFormat,
        compression: Compression,
        *,
        limits: DecodeLimits | None = None,
        hashes_blob: bool = True,
    ) -> None:
        """Begin.

        Args:
            layer_format: Tar or raw.
            compression: None, gzip or zstd.
            limits: What decoding may cost, or None for the usual.
            hashes_blob: False when the caller hashes the same bytes anyway (an ingest does) and gives `finish` the
                digest: a third of the work of a plain layer.
        """
        self._format = layer_format
        self._compression = compression
        self._decoder = open_decoder(compression, limits)
        self._blob = Digester() if hashes_blob else None
        self._size = 0
        self._stage = _HashStage(layer_format, compression)
        self._pipeline: Pipeline | None = None
        self._failed: LayerMalformed | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next published bytes.

        Raises:
            LayerMalformed: when the layer breaks its format or a limit, here or at a later call for a piece that
                was under way; and again at every call after that.
        """
        view = memoryview(data)
        for at in range(0, len(view), _PIECE_SIZE):
            piece = view[at : at + _PIECE_SIZE]
            if not isinstance(data, bytes):
                piece = memoryview(bytes(piece))  # the other thread reads it after this call
            self._guard(functools.partial(self._take, piece))

    def finish(self, digest: Digest | None = None) -> LayerIndex:
        """Say that there are no more bytes.

        Args:
            digest: The digest of the published bytes, when the indexer does not hash them itself.

        Raises:
            LayerMalformed: when the layer is cut short, or broke its format or a limit before.
        """
        self._guard(self._end)
        if self._blob is not None:
            digest = self._blob.digest()
        if digest is None:
            raise ValueError("the digest of the published bytes is not known")
        stage = self._stage
        # A plain layer is its own decoded form, and a raw layer's decoded form is its one member.
        diff_id = digest if self._compression is Compression.NONE else stage.decoded.digest()
        toc = stage.toc
        if self._format is LayerFormat.RAW:
            toc = [TocMember(b"", KIND_FILE, RAW_MODE, stage.size, 0, diff_id.raw)]
        record = LayerRecord(
            diff_id=diff_id,
            format=self._format.value,
            compression=self._compression.value,
            member_count=len(toc),
            size_decoded=stage.size,
            size_members=sum(member.size for member in toc),
        )
        return LayerIndex(digest, self._size, diff_id, stage.size, toc, bytes(stage.spans.checksums), record)

    def _guard(self, action: Callable[[], None]) -> None:
        """Run a step; a failure is final and has one form."""
        if self._failed is not None:
            raise self._failed
        try:
            action()
        except TarMalformed as error:
            what = f"its tar is refused: {error.reason}"
            if error.member is not None:
                what += f" (member {error.member[:200]!r})"
            self._failed = LayerMalformed(None, error.offset, what)
            self._end_thread()
            raise self._failed from error
        except LayerMalformed as error:
            self._failed = error
            self._end_thread()
            raise

    def _end_thread(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def _take(self, piece: memoryview) -> None:
        self._size += len(piece)
        is_plain = self._compression is Compression.NONE
        if self._blob is not None and not is_plain:
            self._submit(self._blob.update, piece)
        for decoded in self._decoder.feed(piece):
            self._submit(self._stage.take, memoryview(decoded))
        if self._blob is not None and is_plain:
            self._blob.update(piece)

    def _submit(self, step: Callable[[memoryview], None], data: memoryview) -> None:
        """Run a hashing step behind all earlier ones, on the other thread once the layer is large enough."""
        if self._pipeline is None:
            if self._stage.size + len(data) <= _INLINE_SIZE:
                step(data)
                return
            self._pipeline = Pipeline("kitfs-hash")
        self._pipeline.submit(step, data)

    def _end(self) -> None:
        self._decoder.close()
        if self._pipeline is not None:
            self._pipeline.drain()
            self._end_thread()
        self._stage.close()


class _HashStage:
    """What is done with decoded bytes, in order.

    Attributes:
        size: Decoded bytes so far.
        decoded: Their digest, kept for compressed layers only.
        toc: Members that are whole.
        spans: Checksums, kept for plain layers only.
    """

    def __init__(self, layer_format: LayerFormat, compression: Compression) -> None:
        self.size = 0
        self.decoded = Digester()
        self.toc: list[TocMember] = []
        self.spans = SpanWriter()
        self._is_plain = compression is Compression.NONE
        self._reader = TocReader() if layer_format is LayerFormat.TAR else None
        self._member = Digester()

    def take(self, data: memoryview) -> None:
        """Take the next decoded bytes.

        Raises:
            TarMalformed: when the tar is refused.
        """
        self.size += len(data)
        if not self._is_plain:
            self.decoded.update(data)
        if self._reader is not None:
            for piece in self._reader.feed(data):
                self._take_piece(piece)
        elif self._is_plain:
            self.spans.update(data)

    def _take_piece(self, piece: Piece) -> None:
        member = piece.member
        digest = None
        if member.kind is MemberKind.FILE:
            if piece.starts:
                self._member = Digester()
            self._member.update(piece.data)
            if self._is_plain:
                self.spans.update(piece.data)
            if not piece.ends:
                return
            self.spans.end_member()
            digest = self._member.digest().raw
        self.toc.append(TocMember(member.path, int(member.kind), member.mode, member.size, member.offset, digest))

    def close(self) -> None:
        """Say that there are no more bytes.

        Raises:
            TarMalformed: when the tar is cut short.
        """
        if self._reader is not None:
            self._reader.close()
        self.spans.end_member()
