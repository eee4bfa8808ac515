"""Decompression: what real encoders write is read, everything else refused, and cost is bounded."""

import gzip
import os
import random
import time
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kitfs.layer.block_inflater import BlockInflater
from kitfs.layer.decode import OUTPUT_SIZE, DecodeLimits, Decoder
from kitfs.layer.decoders import open_decoder
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.gzip_stream import GzipDecoder
from kitfs.layer.inflate import load_zlib, load_zlib_ng
from kitfs.oci.mediatype import Compression

GZIP, ZSTD = Compression.GZIP, Compression.ZSTD
MUTANTS = 100_000 if os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0") else 3000
SKIPPABLE = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"


def open_decoders(compression: Compression, limits: DecodeLimits | None) -> list[Decoder]:
    """The decoder of readers, and for gzip those that find checkpoints."""
    decoders = [open_decoder(compression, limits)]
    if compression is GZIP:
        for library in (load_zlib_ng(), load_zlib()):
            body = BlockInflater(library, lambda checkpoint: None, 10_000)
            decoders.append(GzipDecoder(limits or DecodeLimits(), body))
    return decoders


def decode(compression: Compression, raw: bytes, size: int | None = None, limits: DecodeLimits | None = None) -> bytes:
    """What all decoders of a compression give; they give the same, or refuse at the same byte."""
    found, errors = [], []
    for decoder in open_decoders(compression, limits):
        try:
            found.append(run(decoder, raw, size))
        except LayerMalformed as error:
            errors.append(error)
    if errors:
        assert found == []
        assert len({error.reason.partition(":")[0] for error in errors}) == 1
        raise errors[0]
    assert all(data == found[0] for data in found)
    return found[0]


def run(decoder: Decoder, raw: bytes, size: int | None) -> bytes:
    pieces = []
    for at in range(0, len(raw), size or len(raw) or 1):
        for piece in decoder.feed(memoryview(raw)[at : at + (size or len(raw))]):
            assert 0 < len(piece) <= OUTPUT_SIZE
            pieces.append(bytes(piece))
    decoder.close()
    return b"".join(pieces)


def refusal(compression: Compression, raw: bytes, limits: DecodeLimits | None = None) -> str:
    with pytest.raises(LayerMalformed) as caught:
        decode(compression, raw, limits=limits)
    if len(raw) < 10_000:
        with pytest.raises(LayerMalformed) as again:
            decode(compression, raw, 1, limits)
        assert again.value.reason == caught.value.reason
    return str(caught.value)


def gzip_member(data: bytes, *, flags: int = 0, fields: bytes = b"", method: int = 8) -> bytes:
    body = zlib.compressobj(6, zlib.DEFLATED, -15)
    head = bytes((0x1F, 0x8B, method, flags)) + bytes(5) + b"\xff" + fields
    trailer = zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    return head + body.compress(data) + body.flush() + trailer


CONTENTS = st.lists(
    st.binary(max_size=3000) | st.binary(max_size=20).map(lambda part: part * 9000), min_size=1, max_size=3
)


@given(CONTENTS, st.integers(0, 9), st.sampled_from([1, 7, 4096, None]), st.integers(0, 600))
def test_gzip_of_any_members_decodes_in_any_pieces(parts, level, size, zeros):
    """One or several members at any level, with zero padding, give their content whatever the pieces."""
    raw = b"".join(gzip.compress(part, level) for part in parts) + bytes(zeros)
    assert decode(GZIP, raw, size) == b"".join(parts)


@given(CONTENTS, st.integers(-5, 12), st.booleans(), st.booleans(), st.sampled_from([1, 7, 4096, None]))
def test_zstd_of_any_frames_decodes_in_any_pieces(parts, level, checksum, content_size, size):
    """One or several frames, with or without checksum and size, and skippable ones between, give their content."""
    encoder = zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=content_size)
    raw = SKIPPABLE.join(encoder.compress(part) for part in parts)
    assert decode(ZSTD, raw, size) == b"".join(parts)


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_a_long_stream_decodes(compression):
    """Tens of MiB from a streaming encoder, in pieces of 1 MiB, come out right."""
    rng = random.Random(2)
    data = b"".join(rng.randbytes(900) * 40 for _ in range(600))
    if compression is GZIP:
        raw = gzip.compress(data, 6)
    else:
        encoder = zstandard.ZstdCompressor(level=3).compressobj()
        raw = b"".join(encoder.compress(data[at : at + 77_777]) for at in range(0, len(data), 77_777)) + encoder.flush()
    assert decode(compression, raw, 1 << 20) == data


def test_gzip_header_fields_are_read_over():
    """Extra field, name, comment and header checksum within the limit are accepted, as gzip and pigz write them."""
    fields = b"\3\0abcname\0comment\0"
    head = bytes((0x1F, 0x8B, 8, 0x1E)) + bytes(5) + b"\xff" + fields
    check = (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    raw = gzip_member(b"content", flags=0x1E, fields=fields + check)
    for size in (1, 3, None):
        assert decode(GZIP, raw, size) == b"content"


G = gzip_member(b"x" * 1000)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"hello, world" * 10, "not a gzip stream", id="not gzip"),
        pytest.param(G + b"x", "garbage after the end", id="trailing garbage"),
        pytest.param(G + bytes(9) + b"x", "garbage after the end", id="garbage after padding"),
        pytest.param(G + bytes(9) + G, "garbage after the end", id="member after padding"),
        pytest.param(G + b"\x1f", "cut short", id="start of a member"),
        *[pytest.param(G[:-cut], "cut short", id=f"cut by {cut}") for cut in (1, 7, 8, 9, len(G) - 1, len(G) - 10)],
        pytest.param(G[:-8] + bytes(4) + G[-4:], "CRC or length", id="wrong CRC"),
        pytest.param(G[:-4] + bytes(4), "CRC or length", id="wrong ISIZE"),
        pytest.param(gzip_member(b"x", flags=0x20), "flags 0x20", id="reserved flag"),
        pytest.param(gzip_member(b"x", flags=0x80), "flags 0x80", id="another reserved flag"),
        pytest.param(gzip_member(b"x", method=7), "method 7", id="unknown method"),
        pytest.param(gzip_member(b"x", flags=8, fields=b"n" * (64 << 10) + b"\0"), "header above", id="64 KiB name"),
        pytest.param(
            gzip_member(b"x", flags=16, fields=b"n" * (64 << 10) + b"\0"), "header above", id="64 KiB comment"
        ),
        pytest.param(gzip_member(b"x", flags=4, fields=b"\xff\xff" + b"n" * 65535), "header above", id="64 KiB extra"),
        pytest.param(gzip_member(b"x", flags=2, fields=b"\0\0"), "wrong checksum", id="wrong header checksum"),
        pytest.param(zlib.compress(b"x" * 1000), "not a gzip stream", id="zlib"),
        pytest.param(b"\x78\xbb" + bytes(20), "not a gzip stream", id="zlib with a dictionary"),
        pytest.param(G[:10] + b"\xff" * 20 + G[30:], "broken deflate", id="broken deflate"),
        pytest.param(gzip.compress(b"") * 10_000, "hold next to nothing", id="10 000 empty members"),
    ],
)
def test_bad_gzip_is_refused(raw, reason):
    """Each way in which a gzip stream can be wrong is an error that names it, in any pieces."""
    assert reason in refusal(GZIP, raw)


def test_gzip_with_a_dictionary_is_refused():
    """Deflate data that refer to a preset dictionary reach before the start of the window."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=b"the quick brown fox jumps" * 10)
    body = encoder.compress(b"the quick brown fox jumps" * 10) + encoder.flush()
    assert "broken deflate" in refusal(GZIP, b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + bytes(8))


def zstd_frame(*blocks: bytes, descriptor: int = 0, window: bytes = b"\x58", rest: bytes = b"") -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes((descriptor,)) + window + rest + b"".join(blocks)


def block(kind: int, size: int, body: bytes, *, last: bool = False) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + body


Z = zstandard.ZstdCompressor(write_checksum=True).compress(b"x" * 1000)


@pytest.mark.parametrize("behind", [block(2, 20, b"\xff" * 20, last=True), block(0, 1, b"x", last=True) + b"sums"])
def test_zstd_blocks_before_a_broken_one_come_out(behind):
    """Damage in a block, or in the checksum behind the last, costs nothing of what lies before it."""
    blocks = [block(0, 900, bytes((number,)) * 900) for number in range(5)]
    raw = zstd_frame(*blocks, behind, descriptor=4)
    found = b""
    with pytest.raises(LayerMalformed, match="broken zstd data"):
        for piece in open_decoder(ZSTD).feed(memoryview(raw)):
            found += piece
    assert found[:4500] == b"".join(bytes((number,)) * 900 for number in range(5))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"hello, world" * 10, "not a zstd stream", id="not zstd"),
        pytest.param(Z + b"garbage!", "garbage after a zstd frame", id="trailing garbage"),
        pytest.param(Z + bytes(16), "garbage after a zstd frame", id="zero padding"),
        *[pytest.param(Z[:-cut], "cut short", id=f"cut by {cut}") for cut in (1, 4, 5, len(Z) - 3, len(Z) - 5)],
        pytest.param(SKIPPABLE[:-1], "cut short", id="cut skippable frame"),
        pytest.param(Z[:-1] + bytes((Z[-1] ^ 1,)), "broken zstd data", id="wrong checksum"),
        pytest.param(zstd_frame(descriptor=8), "reserved bit", id="reserved bit"),
        pytest.param(zstd_frame(block(0, 1, b"x", last=True), descriptor=1, rest=b"\5"), "dictionary", id="dictionary"),
        pytest.param(zstd_frame(window=b"\xff"), "window of", id="window of 3.75 TiB"),
        pytest.param(zstd_frame(window=b"\x90"), "window of 268435456", id="window of 256 MiB"),
        pytest.param(zstd_frame(descriptor=0xE0, window=b"\xff" * 8), "window of", id="content size as window"),
        pytest.param(zstd_frame(block(3, 1, b"x", last=True)), "block of kind 3", id="reserved block"),
        pytest.param(zstd_frame(block(1, (128 << 10) + 1, b"x", last=True)), "131073 bytes", id="block too large"),
        pytest.param(zstd_frame(block(2, 20, b"\xff" * 20, last=True)), "broken zstd data", id="broken block"),
        pytest.param(SKIPPABLE * 5000, "hold next to nothing", id="5000 skippable frames"),
        pytest.param(zstd_frame(block(0, 0, b"") * 5000), "hold next to nothing", id="5000 empty blocks"),
    ],
)
def test_bad_zstd_is_refused(raw, reason):
    """Each way in which a zstd stream can be wrong is an error that names it, in any pieces."""
    assert reason in refusal(ZSTD, raw)


def deflate_bomb(size: int) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(encoder.compress(bytes(1 << 20)) for _ in range(size >> 20)) + encoder.flush()


BOMBS = {
    GZIP: deflate_bomb(400 << 20),
    ZSTD: zstd_frame(block(1, 128 << 10, b"x") * 10_000),
}


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_bombs_cost_little(compression):
    """A bomb ends at what is free and 256 times its size, in bounded pieces: under 2 s of CPU and 16 MiB of memory."""
    decoder = open_decoder(compression, DecodeLimits(free_size=256 << 20))
    size = 0
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(LayerMalformed, match="decompression bomb"):
            for piece in decoder.feed(memoryview(BOMBS[compression])):
                assert len(piece) <= OUTPUT_SIZE
                size += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size <= (256 << 20) + 256 * len(BOMBS[compression])
    assert peak < 16 << 20
    assert time.process_time() - start < 2


def test_the_total_is_limited():
    """More decoded bytes than the limit are refused whatever the ratio."""
    raw = gzip.compress(random.Random(1).randbytes(5000))
    assert "more than 4000 bytes" in refusal(GZIP, raw, DecodeLimits(decoded_size=4000))


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_mutated_streams_give_the_content_or_a_refusal(compression):
    """Mutants: LayerMalformed, or (gzip's CRC and zstd's checksum agree) exactly the content; no other error."""
    content = random.Random(3).randbytes(500) * 6
    encoder = zstandard.ZstdCompressor(write_checksum=True)
    raw = gzip.compress(content) if compression is GZIP else encoder.compress(content)
    rng = random.Random(4)
    refused = 0
    for _ in range(MUTANTS):
        changed = bytearray(raw)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(changed))
            match rng.randrange(4):
                case 0 | 1:
                    changed[at] ^= 1 << rng.randrange(8)
                case 2:
                    del changed[at : at + rng.choice((1, 5, 300))]
                case 3:
                    changed[at:at] = rng.randbytes(rng.choice((1, 4)))
            if not changed:
                break
        try:
            assert decode(compression, bytes(changed), rng.choice((None, 100))) == content
        except LayerMalformed:
            refused += 1
    assert refused > MUTANTS * 5 // 6


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_a_stream_that_is_cut_anywhere_is_refused(compression):
    """Of three members or frames, with fields in their headers, every prefix is refused unless it ends with one."""
    fields = b"\3\0abcname\0comment\0"
    parts = [gzip_member(b"x" * 300, flags=0x1C, fields=fields), gzip.compress(b"yz" * 50, 0), gzip.compress(b"")]
    if compression is ZSTD:
        parts = [Z, SKIPPABLE, zstandard.ZstdCompressor(write_content_size=False).compress(b"yz" * 50)]
    raw = b"".join(parts)
    whole = {len(b"".join(parts[:count])) for count in (1, 2, 3)}
    for size in range(len(raw)):
        if size in whole:
            decode(compression, raw[:size])
        else:
            assert ("empty" if size == 0 else "cut short") in refusal(compression, raw[:size])
