"""Gzip streams by many encoders, and the check that every span of one decodes alone; for tests of this folder.

Loaded by path, because test folders are no packages.
"""

import functools
import gzip
import hashlib
import json
import random
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy
import pytest
from isal import igzip_lib, isal_zlib
from zlib_ng import gzip_ng

from kitfs.digest import checksum
from kitfs.layer import indexer as indexer_module
from kitfs.layer.block_inflater import SPACING
from kitfs.layer.checkpoints import SpanMap, count_directory_values
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.layer.inflate import InflateLibrary
from kitfs.layer.span_decode import decode_span, decode_span_behind
from kitfs.layer.sparse_window import unpack
from kitfs.oci.mediatype import Compression, LayerFormat

MIB = 1 << 20


def weights(size: int) -> bytes:
    values = numpy.random.default_rng(1).standard_normal(size // 2 + 1, dtype=numpy.float32) * numpy.float32(0.02)
    return (values.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()[:size]


@functools.cache
def _lines() -> bytes:
    rng = random.Random(2)
    words = [rng.randbytes(rng.randrange(2, 9)).hex() for _ in range(900)]
    return b"".join(
        json.dumps({"id": number, "text": " ".join(rng.choices(words, k=30)), "score": rng.random()}).encode() + b"\n"
        for number in range(6001)
    )


def text(size: int) -> bytes:
    return (_lines() * (size // len(_lines()) + 1))[:size]


CONTENTS = {
    "weights": weights,
    "text": text,
    "zeros": bytes,
    "noise": lambda size: random.Random(3).randbytes(size),
    "mixed": lambda size: (weights(size // 3) + bytes(size // 3) + text(size))[:size],
}


@functools.lru_cache(maxsize=16)
def content(name: str, size: int) -> bytes:
    return CONTENTS[name](size)


def concatenate(data: bytes) -> bytes:
    """Members of several encoders and sizes one after another, and zero padding."""
    sizes = [1, 0, 70_000, 3, 200_000, 600_000]
    parts, at = [], 0
    while at < len(data) or not parts:
        size = sizes[len(parts) % len(sizes)]
        parts.append(gzip.compress(data[at : at + size], (6, 1, 9, 0)[len(parts) % 4]))
        at += size
    return b"".join(parts) + bytes(1000)


def flush_fully(data: bytes) -> bytes:
    """Independent pieces of 256 KiB in one member, as kitfs is to write them."""
    encoder = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
    body = b""
    for at in range(0, len(data), 256 << 10):
        body += encoder.compress(data[at : at + (256 << 10)]) + encoder.flush(isal_zlib.Z_FULL_FLUSH)
    body += encoder.flush()
    trailer = struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + trailer


COMMANDS = {
    "GNU gzip 1": ["gzip", "-1"],
    "GNU gzip 6": ["gzip", "-6"],
    "GNU gzip 9": ["gzip", "-9"],
    "pigz": ["pigz"],
    "pigz -i": ["pigz", "-i"],
    "bgzip": ["bgzip"],
    **{f"igzip {level}": ["igzip", f"-{level}"] for level in range(4)},
    "zopfli": ["zopfli", "--i1"],
    "libdeflate 6": ["libdeflate-gzip", "-6"],
    "libdeflate 12": ["libdeflate-gzip", "-12"],
}
ENCODERS = {
    **{
        f"isal {level}": lambda data, level=level: igzip_lib.compress(data, level, igzip_lib.COMP_GZIP)
        for level in range(4)
    },
    **{f"zlib {level}": lambda data, level=level: gzip.compress(data, level) for level in (0, 1, 6, 9)},
    **{f"zlib-ng {level}": lambda data, level=level: gzip_ng.compress(data, level) for level in (1, 3, 6)},
    "concatenated": concatenate,
    "full flush": flush_fully,
}
ONE_BLOCK = {"isal 0", "igzip 0", "zlib-ng 1"}
"""They write one block of any size; the command igzip one for each 8 MiB."""

SIZE_MAX = {"zopfli": 128 << 10, "libdeflate 12": 8 * MIB}
"""Bytes that the slow ones are given."""


def encode(encoder: str, data: bytes, folder: Path) -> bytes:
    if encoder in ENCODERS:
        return ENCODERS[encoder](data)
    command = COMMANDS[encoder]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    path = folder / "plain"
    path.write_bytes(data)
    return subprocess.run([*command, "-c", path.name], cwd=folder, stdout=subprocess.PIPE, check=True).stdout


def index(
    raw: bytes,
    spacing: int = SPACING,
    size: int = MIB,
    layer_format: LayerFormat = LayerFormat.RAW,
    library: InflateLibrary | None = None,
) -> LayerIndex:
    """The index of a gzip layer fed in pieces, made with a library or the usual one."""
    with pytest.MonkeyPatch.context() as patch:
        if library is not None:
            patch.setattr(indexer_module, "find_library", lambda: library)
        indexer = LayerIndexer(layer_format, Compression.GZIP, spacing=spacing)
    for at in range(0, len(raw), size):
        indexer.feed(raw[at : at + size])
    return indexer.finish()


def map_of(found: LayerIndex) -> SpanMap:
    return SpanMap(found.checkpoints[: count_directory_values(found.checkpoints[0])], found.size_decoded)


def check_spans(raw: bytes, data: bytes, found: LayerIndex) -> int:
    """Decode every span alone and compare it; how many there are."""
    assert found.size_decoded == len(data)
    if not found.checkpoints:
        assert found.span_checksums == b""
        return 0
    spans = map_of(found)
    assert len(found.span_checksums) == 16 * spans.count
    end = 0
    for span in range(spans.count):
        start, stop = spans.range(span)
        assert start == end < stop
        end = stop
        published_start, published_stop = spans.published_range(span)
        place = spans.window_place(span)
        window = b"" if place is None else unpack(found.checkpoints[place[0]][place[1] : place[1] + place[2]])
        view = memoryview(raw)[published_start:published_stop]
        shift, lead = spans.bit(span) % 8, spans.lead(span)
        if lead[0]:
            assert decode_span_behind(view, shift, window, stop - start, lead) == data[start:stop]
        else:
            assert decode_span(view, shift, window, stop - start) == data[start:stop]
        assert found.span_checksums[16 * span : 16 * (span + 1)] == checksum(data[start:stop])
        whole = raw[0 if span == 0 else published_start : published_stop]
        assert spans.range_digest(span) == hashlib.sha256(whole).digest()
        assert spans.find(start) == spans.find(stop - 1) == span
    assert end == len(data)
    assert raw[spans.stop :].strip(b"\0") == b""
    return spans.count
