"""Zstd layers of several frames are read span by span; every span decodes alone, whatever wrote the frames."""

import hashlib
import io
import random
import shutil
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.digest import checksum
from kitfs.layer.block_inflater import SPACING
from kitfs.layer.checkpoints import PUBLISHED_SIZE_MAX, SpanMap, count_directory_values
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.finisher import shared_finisher
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.layer.reader import LayerReader
from kitfs.layer.span_decode import SpanBroken
from kitfs.layer.span_pool import shared_pool
from kitfs.layer.zstd_span import decode_frames
from kitfs.oci.mediatype import Compression, LayerFormat

ZSTD, RAW, TAR = Compression.ZSTD, LayerFormat.RAW, LayerFormat.TAR
KIB, MIB = 1 << 10, 1 << 20
SEEK_TABLE_MAGIC = 0x8F92EAB1
"""Of the footer of the seekable format (facebook/zstd, contrib/seekable_format)."""


def compressible(size: int, seed: int = 1) -> bytes:
    """Bytes of which zstd leaves about 80 %."""
    six_bits = bytes(value & 0x3F for value in range(256))
    return random.Random(seed).randbytes(size).translate(six_bits)


def frame(data: bytes, *, content_size: bool = True, has_checksum: bool = True, level: int = 1) -> bytes:
    encoder = zstandard.ZstdCompressor(level=level, write_content_size=content_size, write_checksum=has_checksum)
    if content_size:
        return encoder.compress(data)
    stream = encoder.compressobj()
    return stream.compress(data) + stream.flush()


def skippable(content: bytes, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, len(content)) + content


def frames_of(data: bytes, size: int, **options: bool) -> list[bytes]:
    return [frame(data[at : at + size], **options) for at in range(0, len(data), size)]


def seekable(data: bytes, size: int = 200 * KIB, *, has_checksums: bool = True) -> bytes:
    """The seekable format: frames, then a table of their sizes in a skippable frame at the end."""
    frames = frames_of(data, size)
    entries = b""
    for number, packed in enumerate(frames):
        part = data[number * size : (number + 1) * size]
        entries += struct.pack("<II", len(packed), len(part))
        if has_checksums:
            entries += struct.pack("<I", xxhash.xxh64_intdigest(part) & 0xFFFFFFFF)
    footer = struct.pack("<IBI", len(frames), 0x80 if has_checksums else 0, SEEK_TABLE_MAGIC)
    return b"".join(frames) + skippable(entries + footer, 0xE)


def mixed(data: bytes) -> bytes:
    """Frames of all sorts and sizes, empty and skippable ones between them, at the start and at the end."""
    raw, at, number = skippable(b"start" * 1000), 0, 0
    sizes = [1, 70_000, 3, 600_000, 131_072, 524_288, 200_000]
    while at < len(data) or number == 0:
        size = sizes[number % len(sizes)]
        part = data[at : at + size]
        raw += frame(part, content_size=number % 2 == 0, has_checksum=number % 3 == 0, level=(1, 3, -5)[number % 3])
        raw += (b"", frame(b""), skippable(b""), skippable(bytes(3000), number % 16), frame(b"") * 3)[number % 5]
        at, number = at + size, number + 1
    return raw + skippable(b"end")


WRITERS = {
    "content size and checksum": lambda data: b"".join(frames_of(data, 150_000)),
    "content size": lambda data: b"".join(frames_of(data, 150_000, has_checksum=False)),
    "checksum": lambda data: b"".join(frames_of(data, 150_000, content_size=False)),
    "neither": lambda data: b"".join(frames_of(data, 150_000, content_size=False, has_checksum=False)),
    "small frames": lambda data: b"".join(frames_of(data, 3000)),
    "large frames": lambda data: b"".join(frames_of(data, 3 * MIB)),
    "seekable": seekable,
    "seekable without checksums": lambda data: seekable(data, 64 * KIB, has_checksums=False),
    "mixed": mixed,
}


def index(raw: bytes, spacing: int = SPACING, size: int = MIB, layer_format: LayerFormat = RAW) -> LayerIndex:
    indexer = LayerIndexer(layer_format, ZSTD, spacing=spacing)
    for at in range(0, len(raw), size):
        indexer.feed(raw[at : at + size])
    return indexer.finish()


def map_of(found: LayerIndex) -> SpanMap:
    return SpanMap(found.checkpoints[: count_directory_values(found.checkpoints[0])], found.size_decoded)


def check_spans(raw: bytes, data: bytes, found: LayerIndex) -> int:
    """Decode every span alone and compare it; how many there are."""
    assert found.diff_id.raw == hashlib.sha256(data).digest()
    if not found.checkpoints:
        assert found.span_checksums == b""
        return 0
    spans = map_of(found)
    assert spans.stop == len(raw)
    end = published_end = 0
    for span in range(spans.count):
        start, stop = spans.range(span)
        published_start, published_stop = spans.published_range(span)
        assert start == end < stop
        assert published_start == published_end or span == 0
        assert spans.bit(span) % 8 == 0
        assert spans.window_place(span) is None
        end, published_end = stop, published_stop
        view = memoryview(raw)[published_start:published_stop]
        assert decode_frames(view, 0, b"", stop - start) == data[start:stop]
        assert found.span_checksums[16 * span : 16 * (span + 1)] == checksum(data[start:stop])
        whole = raw[0 if span == 0 else published_start : published_stop]
        assert spans.range_digest(span) == hashlib.sha256(whole).digest()
    assert (end, published_end) == (len(data), len(raw))
    return spans.count


@pytest.mark.parametrize("writer", WRITERS)
def test_every_span_of_several_frames_decodes_alone(writer):
    """Each span, decoded alone, gives the bytes that were compressed, about 512 KiB where frames are smaller."""
    for size in (400_000, 6 * MIB + 12_345):
        data = compressible(size)
        raw = WRITERS[writer](data)
        count = check_spans(raw, data, index(raw))
        frame_size = 3 * MIB if writer == "large frames" else 600_000 if writer == "mixed" else 200 * KIB
        assert size // (SPACING + frame_size) <= count <= size // SPACING + 1
        assert count >= (0 if size < frame_size else 1)


@pytest.mark.parametrize(
    "command",
    [["pzstd", "-p", "4", "-1", "-c"], ["zstd", "-1", "-c"], ["zstd", "-1", "--no-check", "-c", "-B1048576"]],
    ids=" ".join,
)
def test_what_the_tools_write_is_indexed(command, tmp_path: Path):
    """pzstd writes frames, which are spans; zstd writes one, which is decoded once."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    data = compressible(20 * MIB)
    (tmp_path / "plain").write_bytes(data)
    raw = subprocess.run([*command, "plain"], cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout
    count = check_spans(raw, data, index(raw))
    assert count > 3 if command[0] == "pzstd" else count == 0


@given(st.data())
@settings(max_examples=60)
def test_pieces_do_not_change_spans(data):
    """No split of the published bytes, down to single ones, changes the index, at any spacing."""
    writer = data.draw(st.sampled_from(sorted(WRITERS)))
    plain = compressible(data.draw(st.sampled_from([0, 1, 5000, 90_000, 300_000])))
    raw = WRITERS[writer](plain)
    spacing = data.draw(st.sampled_from([1, 1000, 32 * KIB, 100_000]))
    size = max(data.draw(st.sampled_from([1, 7, 100, 4096]) | st.integers(1, 100_000)), len(raw) // 3000)
    found = index(raw, spacing, size) if raw else None
    if found is not None:
        assert found == index(raw, spacing)
        check_spans(raw, plain, found)


@pytest.mark.parametrize("raw", [
    frame(compressible(MIB)),
    frame(b""),
    frame(b"") * 3 + skippable(b"x"),
    skippable(b"x") + frame(compressible(2000)) + frame(b"") + skippable(b"x"),
])  # fmt: skip
def test_one_frame_has_no_spans(raw):
    """A layer with one frame that holds bytes, or none, is indexed for being decoded once."""
    found = index(raw, 1000)
    assert (found.checkpoints, found.span_checksums) == ([], b"")


def test_a_frame_that_is_too_large_for_a_span_leaves_the_layer_without():
    """Frames of up to 16 MiB are spans; one byte more anywhere, and the layer has none."""
    small, large = frame(compressible(MIB)), bytes(16 * MIB)
    part = compressible(MIB)
    assert check_spans(small + frame(large) + small, part + large + part, index(small + frame(large) + small)) == 3
    for raw, data in (
        (frame(large + b"x") + small, large + b"x" + part),
        (small + frame(large + b"x"), part + large + b"x"),
    ):
        assert check_spans(raw, data, index(raw)) == 0


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_skippable_frame_that_is_too_large_is_refused_in_any_pieces(place):
    """A span's published range ends at 24 MiB exactly, in pieces of any size, wherever the skippable frame is."""
    parts = [frame(compressible(MIB)), frame(compressible(MIB, 2))]
    number = ["start", "middle", "end"].index(place)
    beside = len(b"".join(parts[:1] if number == 1 else parts[1:] if number == 2 else parts[:1]))
    for excess in (0, 1):
        filler = skippable(bytes(PUBLISHED_SIZE_MAX - beside - 8 + excess))
        raw = b"".join([*parts[:number], filler, *parts[number:]])
        for size in (MIB, 300_000, 64 * MIB):
            found = index(raw, size=size)
            assert check_spans(raw, compressible(MIB) + compressible(MIB, 2), found) == (0 if excess else 2)


BROKEN = frame(compressible(5000)) + frame(compressible(3000, 2))


@pytest.mark.parametrize(
    ("data", "shift", "window", "size"),
    [
        (b"", 0, b"", 1),
        (BROKEN, 1, b"", 100),
        (BROKEN, 0, b"x", 100),
        (BROKEN, 0, b"", 8001),
        (BROKEN[1:], 0, b"", 100),
        (BROKEN[:-5000], 0, b"", 8000),
        (BROKEN + b"garbage after", 0, b"", 8001),
        (skippable(bytes(100))[:50], 0, b"", 1),
        (b"\x28\xb5\x2f\xfd\x00\xff" + bytes(20), 0, b"", 1),
    ],
)
def test_what_is_no_span_is_broken(data, shift, window, size):
    """Each way in which published bytes can be wrong is SpanBroken, and the thread decodes right after it."""
    with pytest.raises(SpanBroken):
        decode_frames(memoryview(data), shift, window, size)
    assert decode_frames(memoryview(BROKEN), 0, b"", 8000) == compressible(5000) + compressible(3000, 2)


def test_mutated_frames_decode_right_or_are_broken():
    """3000 flips in a span of several frames: SpanBroken, or as many bytes as were asked for, nothing else."""
    rng = random.Random(7)
    data = compressible(20_000)
    raw = seekable(data, 3000)
    refused = 0
    for _ in range(3000):
        bad = bytearray(raw)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        try:
            assert len(decode_frames(memoryview(bad), 0, b"", len(data))) == len(data)
        except SpanBroken:
            refused += 1
    assert refused > 1000


def test_a_bomb_gives_no_more_than_is_asked_for():
    """A frame that expands to 1 GiB gives the ten bytes that the span has."""
    encoder = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    packed = io.BytesIO()
    for _ in range(64):
        packed.write(encoder.compress(bytes(16 * MIB)))
    packed.write(encoder.flush())
    assert decode_frames(memoryview(packed.getvalue()), 0, b"", 10) == bytes(10)


@pytest.fixture(scope="module")
def shards() -> dict[str, bytes]:
    """20 files of 100 KB to 2 MB."""
    sizes = [100, 300, 800, 2000]
    return {f"model/{number:02}": compressible(sizes[number % 4] * 1000, number) for number in range(20)}


@pytest.fixture
def zstd_layers(layers, monkeypatch):
    """Zstd layers of this store have frames of 150 000 bytes."""
    monkeypatch.setattr(layers, "compress", lambda raw, _: seekable(raw, 150_000))
    return layers


def test_random_ranges_equal_the_files(zstd_layers, tar_of, shards):
    """Any range of any member gives its bytes, and 4 KiB cost two spans at most."""
    found = zstd_layers.add(tar_of(shards), ZSTD)
    rng = random.Random(4)
    with LayerReader(zstd_layers.store, found.digest) as reader:
        for number in range(300):
            place = rng.randrange(len(shards))
            data = shards[found.toc[place].path.decode()]
            member = reader.open_member(place)
            start = rng.randrange(len(data))
            stop = min(start + rng.choice([1, 4096, 131_072, 3 * MIB]), len(data))
            assert bytes(member.read(start, stop)) == data[start:stop]
            if number == 0:
                assert member.state != "native"
                assert shared_pool().decoded_count <= -(-(stop - start) // SPACING) + 1
        for place, entry in enumerate(found.toc):
            assert bytes(reader.open_member(place).read(0, entry.size)) == shards[entry.path.decode()]


def test_a_member_that_was_read_becomes_a_file(zstd_layers, tar_of, shards):
    """What was decoded of a zstd member of 2 MB is its file once nobody reads, and nothing else is one."""
    found = zstd_layers.add(tar_of(shards), ZSTD)
    with LayerReader(zstd_layers.store, found.digest) as reader:
        member = reader.open_member(3)
        assert bytes(member.read(0, member.size)) == shards["model/03"]
        shared_pool().drop(reader._lazy)
        assert shared_finisher().wait_idle(60)
        assert member.state == "native"
    paths = list(zstd_layers.store.layout.content("members").glob("*/*"))
    assert [path.read_bytes() for path in paths] == [shards["model/03"]]


def test_many_threads_read_right_bytes(zstd_layers, tar_of, shards):
    """16 threads at random places at once all get what they asked for."""
    found = zstd_layers.add(tar_of(shards), ZSTD)
    start = threading.Barrier(16)
    with LayerReader(zstd_layers.store, found.digest) as reader:

        def read(seed: int) -> bool:
            rng = random.Random(seed)
            start.wait(30)
            for _ in range(40):
                place = rng.randrange(len(shards))
                data = shards[found.toc[place].path.decode()]
                at = rng.randrange(len(data))
                if bytes(reader.open_member(place).read(at, min(at + 70_000, len(data)))) != data[at : at + 70_000]:
                    return False
            return True

        with ThreadPoolExecutor(16) as executor:
            assert all(executor.map(read, range(16)))


@pytest.mark.parametrize("layer_format", list(LayerFormat))
def test_a_flipped_bit_of_the_blob_is_never_served(layers, tar_of, layer_format, monkeypatch):
    """1000 single flips of the blob: each read is right or LayerCorrupt in a span that the flip is in."""
    monkeypatch.setattr(layers, "compress", lambda raw, _: mixed(raw[:300_000]) + seekable(raw[300_000:], 30_000))
    layers.spacing = 40_000
    rng = random.Random(8)
    files = {f"f{number}": compressible(150_000, number) for number in range(4)}
    raw = tar_of(files) if layer_format is TAR else b"".join(files.values())
    found = layers.add(raw, ZSTD, layer_format)
    path = layers.blob_path(found.digest)
    path.chmod(0o600)
    good = path.read_bytes()
    corrupt = 0
    with path.open("r+b") as blob:
        for _ in range(1000):
            at = rng.randrange(len(good))
            blob.seek(at)
            blob.write(bytes((good[at] ^ 1 << rng.randrange(8),)))
            blob.flush()
            corrupt += read_one(layers, found, raw, at, rng)
            blob.seek(at)
            blob.write(good[at : at + 1])
            blob.flush()
    assert corrupt > 50


def read_one(layers, found: LayerIndex, raw: bytes, at: int, rng: random.Random) -> int:
    """Read a range of a member whose blob has a flip at a byte; 1 when that is refused."""
    spans = map_of(found)
    with LayerReader(layers.store, found.digest) as reader:
        shared_pool().forget(reader._lazy)
        number = rng.randrange(len(reader.toc))
        member = reader.toc[number]
        start = rng.randrange(member.size)
        stop = min(start + rng.choice([1, 4096, 100_000]), member.size)
        touched = range(spans.find(member.offset + start), spans.find(member.offset + stop - 1) + 1)
        try:
            expected = raw[member.offset + start : member.offset + stop]
            assert bytes(reader.open_member(number).read(start, stop)) == expected
        except LayerCorrupt as error:
            assert error.layer == found.digest
            assert error.span in [
                span for span in touched if spans.published_range(span)[0] <= at < spans.published_range(span)[1]
            ]
            return 1
    return 0
