"""The image index of a layer: everything that is needed to read and verify it by ranges, as one blob.

A function of the layer's bytes and of the kind of layer it is read as: whoever makes it gets the same bytes, and so the
same digest, which a descriptor can name (`ANNOTATION_INDEX`). `index_blob` makes and stores them, whoever fetches a
layer by ranges parses them. All numbers are little-endian. In this order, nothing before, between or behind::

    magic         8    "KITFSIMG"
    version       u16  1
    format        u8   0 tar, 1 raw
    compression   u8   0 none, 1 gzip, 2 zstd
    members       u32  entries of the table of contents, at least 1 of a raw layer
    spans         u32  of a plain layer those of its files; else checkpoints, 0 for a layer that has none
    digest        32   SHA-256 of the layer as published
    size          u64  its bytes
    diff_id       32   SHA-256 of the decoded layer; of a plain layer its digest
    size_decoded  u64  its bytes; of a plain layer its size
    stop          u64  byte of the published layer behind the last gzip member or zstd frame; 0 without checkpoints
    table of contents  (`image_toc`)
    checksums     16   for each span: xxh3-128 of its decoded bytes (`spans`, `checkpoints`)

    of a plain layer
    range digest  32   for each 4 MiB of the layer, the last being shorter: SHA-256 (`ranges`)

    of another, for each checkpoint; `checkpoints` says what they mean, and how far apart they can be
    bit u64, offset u64, lead u32, lead_bits u32, range digest 32, each a column
    window             for each (`window_runs`); those of zstd are empty, and so are its leads

`parse_image_index` takes nothing else: each image index has one encoding. It does not know the layer's bytes; who
does not trust the index compares the digests. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kitfs.digest import CHECKSUM_SIZE, Digest
from kitfs.layer.checkpoints import CheckpointsBroken, Entry, SpanMap, count_directory_values, encode_checkpoints
from kitfs.layer.columns import Cursor, ImageIndexMalformed, encode_column
from kitfs.layer.image_toc import check_toc, encode_toc, parse_toc
from kitfs.layer.indexer import RAW_MODE, LayerIndex
from kitfs.layer.ranges import RANGE_SIZE, encode_ranges, parse_ranges
from kitfs.layer.spans import first_spans
from kitfs.layer.sparse_window import pack_window, unpack
from kitfs.layer.window_runs import encode_window, parse_window
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.records import KIND_FILE, LayerRecord, TocMember

__all__ = ["SIZE_MAX", "ImageIndexMalformed", "encode_image_index", "iter_image_index", "parse_image_index"]

SIZE_MAX = 1 << 30
"""Bytes of an image index: that of 50 GB of text by gzip, or of 1 TB of weights."""

_MAGIC = b"KITFSIMG"
_VERSION = 1
_HEADER = struct.Struct("<8sHBBII32sQ32sQQ")
_FORMATS = (LayerFormat.TAR, LayerFormat.RAW)
_COMPRESSIONS = (Compression.NONE, Compression.GZIP, Compression.ZSTD)
_DIGEST_SIZE = 32
_WINDOWS = 64  # in a piece of `iter_image_index`


def encode_image_index(layer: LayerIndex) -> bytes:
    """The image index of a layer, from what indexing it found.

    Raises:
        CheckpointsBroken, RangesBroken: when its checkpoints or ranges are none, or not all of it.
    """
    return b"".join(iter_image_index(layer))


def iter_image_index(layer: LayerIndex) -> Iterator[bytes]:
    """`encode_image_index` piece by piece: windows take 20 MB of a GB of text.

    Raises:
        CheckpointsBroken, RangesBroken: while iterating, as there.
    """
    record = layer.record
    is_plain = record.compression == Compression.NONE
    spans = None if is_plain or not layer.checkpoints else _read_map(layer)
    yield _HEADER.pack(
        _MAGIC,
        _VERSION,
        _FORMATS.index(LayerFormat(record.format)),
        _COMPRESSIONS.index(Compression(record.compression)),
        len(layer.toc),
        len(layer.span_checksums) // CHECKSUM_SIZE,
        layer.digest.raw,
        layer.size,
        layer.diff_id.raw,
        layer.size_decoded,
        spans.stop if spans else 0,
    )
    yield encode_toc(layer.toc)
    yield layer.span_checksums
    if is_plain:
        yield parse_ranges(layer.checkpoints)[1]
    if spans is None:
        return
    numbers = range(spans.count)
    leads = [spans.lead(number) for number in numbers]
    yield encode_column("Q", [spans.bit(number) + leads[number][1] for number in numbers])
    yield encode_column("Q", [spans.range(number)[0] for number in numbers])
    yield encode_column("I", [lead for lead, _ in leads])
    yield encode_column("I", [lead_bits for _, lead_bits in leads])
    yield b"".join(spans.range_digest(number) for number in numbers)
    for start in range(0, spans.count, _WINDOWS):
        part = range(start, min(start + _WINDOWS, spans.count))
        yield b"".join(encode_window(_window(layer, spans, number)) for number in part)


def _read_map(layer: LayerIndex) -> SpanMap:
    count = count_directory_values(layer.checkpoints[0])
    spans = SpanMap(layer.checkpoints[:count], layer.size_decoded)
    if len(layer.span_checksums) != spans.count * CHECKSUM_SIZE:
        raise CheckpointsBroken(f"{len(layer.span_checksums)} bytes of checksums for {spans.count} spans")
    return spans


def _window(layer: LayerIndex, spans: SpanMap, number: int) -> bytes:
    place = spans.window_place(number)
    if place is None:
        return b""
    value, at, size = place
    try:
        return unpack(layer.checkpoints[value][at : at + size])
    except ValueError as error:
        raise CheckpointsBroken(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Header:
    """The fields of the header, each with what it can be."""

    layer_format: LayerFormat
    compression: Compression
    members: int
    spans: int
    digest: Digest
    size: int
    diff_id: Digest
    size_decoded: int
    stop: int


def parse_image_index(raw: bytes | memoryview) -> LayerIndex:
    """What indexing the layer found, from its image index: the same, to the bytes of each value to store.

    Raises:
        ImageIndexMalformed: when it is none, or could be written otherwise.
    """
    if len(raw) > SIZE_MAX:
        raise ImageIndexMalformed(SIZE_MAX, f"{len(raw)} bytes, at most {SIZE_MAX}")
    cursor = Cursor(raw)
    header = _parse_header(cursor)
    start = cursor.offset
    toc = parse_toc(cursor, header.members)
    if header.layer_format is LayerFormat.TAR:
        check_toc(toc, header.size_decoded, start)
    elif toc != [TocMember(b"", KIND_FILE, RAW_MODE, header.size_decoded, 0, header.diff_id.raw)]:
        raise ImageIndexMalformed(start, "the one member of a raw layer is all of it")
    span_checksums = cursor.take(header.spans * CHECKSUM_SIZE, "checksums of spans")
    if header.compression is Compression.NONE:
        checkpoints = _parse_plain(cursor, header, toc)
    else:
        checkpoints = _parse_checkpoints(cursor, header)
    if cursor.left:
        raise ImageIndexMalformed(cursor.offset, f"{cursor.left} bytes behind its end")
    record = LayerRecord(
        diff_id=header.diff_id,
        format=header.layer_format.value,
        compression=header.compression.value,
        member_count=len(toc),
        size_decoded=header.size_decoded,
        size_members=sum(member.size for member in toc),
    )
    return LayerIndex(
        header.digest, header.size, header.diff_id, header.size_decoded, toc, span_checksums, checkpoints, record
    )


def _parse_header(cursor: Cursor) -> _Header:
    fields = _HEADER.unpack(cursor.take(_HEADER.size, "its header"))
    magic, version, layer_format, compression, members, spans, digest, size, diff_id, size_decoded, stop = fields
    if magic != _MAGIC:
        raise ImageIndexMalformed(0, "its first bytes are others")
    if version != _VERSION:
        raise ImageIndexMalformed(8, f"version {version} is not known")
    if layer_format >= len(_FORMATS) or compression >= len(_COMPRESSIONS):
        raise ImageIndexMalformed(10, f"format {layer_format} with compression {compression} is not known")
    if max(size, size_decoded, stop) >= 1 << 60:
        raise ImageIndexMalformed(20, f"a layer of {size} bytes, decoded {size_decoded}")
    kind = _COMPRESSIONS[compression]
    if kind is Compression.NONE and (digest, size, 0) != (diff_id, size_decoded, stop):
        raise ImageIndexMalformed(20, "a plain layer is its own decoded form")
    if stop > size or (stop > 0) != (spans > 0 and kind is not Compression.NONE):
        raise ImageIndexMalformed(100, f"{spans} spans end at byte {stop} of {size}")
    return _Header(
        _FORMATS[layer_format],
        kind,
        members,
        spans,
        Digest.from_raw(digest),
        size,
        Digest.from_raw(diff_id),
        size_decoded,
        stop,
    )


def _parse_plain(cursor: Cursor, header: _Header, toc: Sequence[TocMember]) -> list[bytes]:
    expected = first_spans(toc)[-1]
    if header.spans != expected:
        raise ImageIndexMalformed(cursor.offset, f"{header.spans} spans of files that have {expected}")
    return encode_ranges(cursor.take(-(-header.size // RANGE_SIZE) * _DIGEST_SIZE, "digests of ranges"))


def _parse_checkpoints(cursor: Cursor, header: _Header) -> list[bytes]:
    if not header.spans:
        return []
    start = cursor.offset
    columns = [cursor.take_column(code, header.spans, "checkpoints") for code in ("Q", "Q", "I", "I")]
    digests = cursor.take(header.spans * _DIGEST_SIZE, "digests of ranges")
    check = _check_gzip if header.compression is Compression.GZIP else _check_zstd
    entries = []
    for number, (bit, offset, lead, lead_bits) in enumerate(zip(*columns, strict=True)):
        window_start = cursor.offset
        window = parse_window(cursor)
        digest = digests[number * _DIGEST_SIZE : (number + 1) * _DIGEST_SIZE]
        entry = Entry(bit, offset, pack_window(window), digest, lead, lead_bits)
        check(entry, len(window), window_start)
        entries.append(entry)
    values = encode_checkpoints(entries, header.stop)
    try:
        SpanMap(values[: count_directory_values(values[0])], header.size_decoded)
    except CheckpointsBroken as error:
        raise ImageIndexMalformed(start, str(error)) from error
    return values


def _check_gzip(entry: Entry, window_size: int, start: int) -> None:
    if (entry.lead > 0) != (entry.lead_bits > 0) or window_size > entry.offset - entry.lead:
        reason = f"{window_size} bytes of window, {entry.lead} before byte {entry.offset}"
        raise ImageIndexMalformed(start, reason)


def _check_zstd(entry: Entry, window_size: int, start: int) -> None:
    if entry.bit % 8 or entry.lead or entry.lead_bits or window_size:
        raise ImageIndexMalformed(start, "a zstd frame begins with a byte, and refers to nothing before it")
