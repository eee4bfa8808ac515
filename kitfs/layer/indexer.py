"""What is in a layer, found in the one pass over its bytes that stores it.

Import, pull and pack feed a `LayerIndexer` the published bytes beside the store's ingest and record the result with
it, so a layer is never there without its index. In the pass: decode, read the tar's headers, SHA-256 of the blob, of
the decoded stream and of every member, checksums of the spans; of gzip and zstd also checkpoints (`span_builder`).

Three stages, each at most four pieces behind: the caller's thread hashes the blob of a plain layer, and whoever calls
does that of others; one thread decodes what is compressed; one hashes the rest, reads headers and packs windows; of a
plain layer one more hashes the published ranges, which takes half as much CPU again as all else. All
spend their time in C without the interpreter lock: plain tar 1430 MB/s on two cores (755 per CPU-second), zstd 410 to
600. A layer below 512 KiB is done in the caller's thread alone. An indexer that is dropped half way leaves nothing: its
threads end with it. One thread may use an indexer; a piece may be changed by its owner once `feed` has returned.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from kitfs.archive.tar_toc import MemberKind, Piece, TarMalformed, TocReader
from kitfs.digest import Digest, Digester
from kitfs.layer.block_inflater import SPACING, BlockInflater, Checkpoint
from kitfs.layer.builders import find_library
from kitfs.layer.decode import DecodeLimits, Decoder
from kitfs.layer.decoders import open_decoder
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.gzip_stream import GzipDecoder
from kitfs.layer.known import KnownMember
from kitfs.layer.pipeline import Pipeline, Step
from kitfs.layer.ranges import RangeWriter
from kitfs.layer.span_builder import SpanBuilder
from kitfs.layer.spans import SpanWriter
from kitfs.layer.zstd_stream import ZstdDecoder
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
        span_checksums: `spans` of a plain layer, `checkpoints` of another; empty for one that has none.
        checkpoints: `checkpoints`, of a plain layer `ranges`, as values to store; empty for a layer that has none.
        record: The same facts, as the store's record.
    """

    digest: Digest
    size: int
    diff_id: Digest
    size_decoded: int
    toc: list[TocMember]
    span_checksums: bytes
    checkpoints: list[bytes]
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
        spacing: int = SPACING,
    ) -> None:
        """Begin.

        Args:
            layer_format: Tar or raw.
            compression: None, gzip or zstd.
            limits: What decoding may cost, or None for the usual.
            hashes_blob: False when the caller hashes the same bytes anyway (an ingest does) and gives `finish` the
                digest: a third of the work of a plain layer.
            spacing: Decoded bytes from one checkpoint to where the next is due.
        """
        self._format = layer_format
        self._compression = compression
        self._blob = Digester() if hashes_blob else None
        self._size = 0
        self._stage = _HashStage(layer_format, compression)
        self._decoder = self._open_decoder(limits or DecodeLimits(), spacing)
        self._decoding: Pipeline | None = None
        self._hashing: Pipeline | None = None
        self._ranging: Pipeline | None = None
        self._ranges = RangeWriter()
        self._spans: tuple[bytes, list[bytes]] = b"", []
        self._failed: LayerMalformed | None = None

    @property
    def size_decoded(self) -> int:
        """Decoded bytes so far; some that were fed may not be among them yet."""
        return self._stage.size

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next published bytes.

        Raises:
            LayerMalformed: when the layer breaks its format or a limit, here or at a later call for a piece that
                was under way; and again at every call after that.
        """
        view = memoryview(data)
        for at in range(0, len(view), _PIECE_SIZE):
            piece = view[at : at + _PIECE_SIZE]
            if not isinstance(view.obj, bytes):
                piece = memoryview(bytes(piece))  # the other thread reads it after this call
            self._guard(functools.partial(self._take, piece))

    def expect(self, known: KnownMember) -> None:
        """Say that the bytes fed next are a member that is known, its header being fed; for a plain tar only.

        They are not hashed again. Who feeds them has compared them with the member's checksums.

        Raises:
            LayerMalformed: as `feed`.
        """
        if (self._format, self._compression) != (LayerFormat.TAR, Compression.NONE):
            raise ValueError("members are known of a plain tar only")
        offset, nothing = self._size, memoryview(b"")
        self._guard(lambda: self._submit(lambda _: self._stage.expect(known, offset), nothing))
        ranges = known.find_ranges(offset)
        if self._ranging is None:
            self._ranges.expect(ranges)
        else:
            self._ranging.submit(lambda _: self._ranges.expect(ranges), nothing)

    def _open_decoder(self, limits: DecodeLimits, spacing: int) -> Decoder:
        if self._compression is Compression.ZSTD:
            self._stage.builder = SpanBuilder()
            return ZstdDecoder(limits, self._begin_span, spacing)
        library = find_library() if self._compression is Compression.GZIP else None
        if library is None:
            return open_decoder(self._compression, limits)
        self._stage.builder = SpanBuilder()
        return GzipDecoder(limits, BlockInflater(library, self._begin_span, spacing))

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
        return LayerIndex(digest, self._size, diff_id, stage.size, toc, *self._spans, record)

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
            self._end_threads()
            raise self._failed from error
        except LayerMalformed as error:
            self._failed = error
            self._end_threads()
            raise

    def _end_threads(self) -> None:
        for pipeline in (self._decoding, self._hashing, self._ranging):
            if pipeline is not None:
                pipeline.close()
        self._decoding = self._hashing = self._ranging = None

    def _take(self, piece: memoryview) -> None:
        self._size += len(piece)
        if self._compression is Compression.NONE:
            self._submit(self._stage.take, piece)
            self._take_ranges(piece)
            if self._blob is not None:
                self._blob.update(piece)
            return
        if self._decoding is None and self._size > _INLINE_SIZE:
            self._decoding = Pipeline("kitfs-decode")
        if self._decoding is None:
            self._decode(piece)
        else:
            self._decoding.submit(self._decode, piece)

    def _take_ranges(self, piece: memoryview) -> None:
        """Hash published bytes of a plain layer once more, in a thread that does nothing else."""
        if self._ranging is None and self._size > _INLINE_SIZE:
            self._ranging = Pipeline("kitfs-range")
        if self._ranging is None:
            self._ranges.update(piece)
        else:
            self._ranging.submit(self._ranges.update, piece)

    def _decode(self, piece: memoryview) -> None:
        if self._blob is not None:
            self._submit(self._blob.update, piece)
        if self._stage.builder is not None:
            self._submit(self._stage.builder.take_published, piece)
        for decoded in self._decoder.feed(piece):
            self._submit(self._stage.take, memoryview(decoded))

    def _begin_span(self, checkpoint: Checkpoint) -> None:
        """Called by the decoder while it is run."""
        builder = self._stage.builder
        assert builder is not None
        self._submit(lambda _: builder.begin_span(checkpoint), memoryview(b""))

    def _submit(self, step: Step, data: memoryview) -> None:
        """Run a hashing step behind all earlier ones, on the other thread once the layer is large enough."""
        if self._hashing is None:
            if self._stage.size + len(data) <= _INLINE_SIZE:
                step(data)
                return
            self._hashing = Pipeline("kitfs-hash")
        self._hashing.submit(step, data)

    def _end(self) -> None:
        if self._decoding is not None:
            self._decoding.drain()
        self._decoder.close()
        if self._hashing is not None:
            self._hashing.drain()
        if self._ranging is not None:
            self._ranging.drain()
        self._end_threads()
        self._stage.close()
        self._spans = bytes(self._stage.spans.checksums), self._ranges.finish()
        decoder = self._decoder
        if isinstance(decoder, ZstdDecoder) and decoder.frame_count < 2:
            return  # one frame is decoded once and whole, not again for each read that the cache of spans forgot
        if self._stage.builder is not None and isinstance(decoder, GzipDecoder | ZstdDecoder):
            self._spans = self._stage.builder.finish(decoder.stream_stop)


class _HashStage:
    """What is done with decoded bytes, in order.

    Attributes:
        size: Decoded bytes so far.
        decoded: Their digest, kept for compressed layers only.
        toc: Members that are whole.
        spans: Checksums, kept for plain layers only.
        builder: What collects checkpoints, for compressed layers where there is something to find them with.
    """

    def __init__(self, layer_format: LayerFormat, compression: Compression) -> None:
        self.size = 0
        self.decoded = Digester()
        self.toc: list[TocMember] = []
        self.spans = SpanWriter()
        self.builder: SpanBuilder | None = None
        self._is_plain = compression is Compression.NONE
        self._reader = TocReader() if layer_format is LayerFormat.TAR else None
        self._member = Digester()
        self._known: KnownMember | None = None  # whose bytes come next, or are passing
        self._known_offset = 0

    def expect(self, known: KnownMember, offset: int) -> None:
        """Take no hash of the member that begins at an offset, which is the next byte."""
        self._known, self._known_offset = known, offset

    def take(self, data: memoryview) -> None:
        """Take the next decoded bytes.

        Raises:
            TarMalformed: when the tar is refused.
        """
        self.size += len(data)
        if not self._is_plain:
            self.decoded.update(data)
        if self.builder is not None:
            self.builder.take(data)
        if self._reader is not None:
            for piece in self._reader.feed(data):
                self._take_piece(piece)
        elif self._is_plain:
            self.spans.update(data)

    def _take_piece(self, piece: Piece) -> None:
        member = piece.member
        digest = None
        if self._known is not None:
            digest = self._take_known(self._known, piece)
            if not piece.ends:
                return
        elif member.kind is MemberKind.FILE and piece.starts and piece.ends:
            digest = hashlib.sha256(piece.data).digest()
            if self._is_plain:
                self.spans.add_member(piece.data)
        elif member.kind is MemberKind.FILE:
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

    def _take_known(self, known: KnownMember, piece: Piece) -> bytes:
        member = piece.member
        if (member.offset, member.size) != (self._known_offset, known.size):
            raise ValueError(f"member {member.path!r} is not the one that is known")
        if piece.ends:
            self.spans.add_known(known.checksums)
            self._known = None
        return known.digest.raw

    def close(self) -> None:
        """Say that there are no more bytes.

        Raises:
            TarMalformed: when the tar is cut short.
        """
        if self._reader is not None:
            self._reader.close()
        self.spans.end_member()
