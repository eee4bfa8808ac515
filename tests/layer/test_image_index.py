"""Image indexes: one encoding of one layer, whoever makes it, and nothing else is taken for one."""

import hashlib
import importlib.util
import random
import struct
import zlib
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.digest import checksum
from kitfs.layer import image_index
from kitfs.layer.columns import Cursor
from kitfs.layer.image_index import ImageIndexMalformed, encode_image_index, iter_image_index, parse_image_index
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.layer.inflate import load_zlib, load_zlib_ng
from kitfs.layer.window_runs import encode_window, parse_window
from kitfs.oci.mediatype import Compression, LayerFormat

_SPEC = importlib.util.spec_from_file_location("encoders", Path(__file__).with_name("encoders.py"))
encoders = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(encoders)
CONTENTS, ENCODERS = encoders.CONTENTS, encoders.ENCODERS

NONE, GZIP, ZSTD = Compression.NONE, Compression.GZIP, Compression.ZSTD
RAW, TAR = LayerFormat.RAW, LayerFormat.TAR


def index_of(raw: bytes, compression: Compression, layer_format: LayerFormat = RAW, size: int = 1 << 20) -> LayerIndex:
    """What indexing a layer in pieces finds."""
    indexer = LayerIndexer(layer_format, compression)
    for at in range(0, len(raw), size):
        indexer.feed(raw[at : at + size])
    return indexer.finish()


def frames(plain: bytes) -> bytes:
    """Zstd frames of 300 KB."""
    starts = range(0, len(plain), 300_000)
    return b"".join(zstandard.compress(plain[start : start + 300_000]) for start in starts)


@pytest.fixture
def tar(tar_of, files) -> bytes:
    """A tar of files around the sizes that matter, 3 MB of it to be decoded from several checkpoints."""
    more = {f"text/{number}": CONTENTS["text"](500_000)[number:] for number in range(4)}
    return tar_of(files | more | {"weights": CONTENTS["weights"](1_500_000)})


@pytest.fixture
def small(tar_of) -> list[bytes]:
    """Image indexes of small layers of each kind."""
    plain = tar_of({"a/b": b"b" * 700, "a/c": b"", "d": bytes(200)})
    text, spaced = CONTENTS["text"](30_000), []
    for library in (load_zlib_ng(), load_zlib()):
        spaced.append(encoders.index(ENCODERS["zlib 6"](text), 7000, library=library))
    assert spaced[0] == spaced[1]
    frames_of = b"".join(zstandard.compress(bytes([number]) * 600_000) for number in range(3))
    return [
        encode_image_index(index_of(plain, NONE, TAR)),
        encode_image_index(index_of(plain, NONE, RAW)),
        encode_image_index(index_of(ENCODERS["zlib 6"](plain), GZIP, TAR)),
        encode_image_index(spaced[0]),
        encode_image_index(index_of(frames_of, ZSTD)),
        encode_image_index(index_of(b"", NONE)),
    ]


@pytest.mark.parametrize("layer_format", [TAR, RAW])
@pytest.mark.parametrize("compression", ["none", "gzip", "gzip 1", "one block", "zstd", "one frame"])
def test_all_that_ingest_records_comes_back(tar, layer_format, compression):
    """What is parsed is what indexing found, to each value of the index, and encodes to the same bytes."""
    published, kind = {
        "none": lambda: (tar, NONE),
        "gzip": lambda: (ENCODERS["zlib 6"](tar), GZIP),
        "gzip 1": lambda: (ENCODERS["isal 1"](tar), GZIP),
        "one block": lambda: (ENCODERS["isal 0"](tar * 1), GZIP),
        "zstd": lambda: (frames(tar), ZSTD),
        "one frame": lambda: (zstandard.compress(tar), ZSTD),
    }[compression]()
    found = index_of(published, kind, layer_format)
    raw = encode_image_index(found)
    assert parse_image_index(raw) == found
    assert encode_image_index(parse_image_index(raw)) == raw
    assert b"".join(iter_image_index(found)) == raw


def test_an_empty_layer_has_one():
    """The raw layer of an empty file has an image index without spans and ranges."""
    found = index_of(b"", NONE)
    raw = encode_image_index(found)
    assert parse_image_index(raw) == found
    assert len(raw) == 108 + 21 + 32


@given(st.data())
@settings(max_examples=25)
def test_it_depends_on_the_bytes_alone(data):
    """Neither the library that finds checkpoints nor the size of pieces changes a byte of it."""
    content = data.draw(st.sampled_from(sorted(CONTENTS)))
    encoder = data.draw(st.sampled_from(["zlib 1", "zlib 6", "isal 1", "zlib-ng 6", "concatenated", "full flush"]))
    raw = ENCODERS[encoder](encoders.content(content, data.draw(st.sampled_from([0, 40_000, 1_300_000]))))
    expected = encode_image_index(encoders.index(raw))
    library = data.draw(st.sampled_from([load_zlib_ng(), load_zlib()]))
    size = data.draw(st.sampled_from([len(raw) // 500 + 1, 65_537]) | st.integers(len(raw) // 500 + 1, 1 << 20))
    assert encode_image_index(encoders.index(raw, size=size, library=library)) == expected


@pytest.mark.parametrize(
    ("copies", "leads", "expected"),
    [
        (0, 0, "eb72cc7a34b605013d898f95af4851923f591fb50ab60ca7dd8f86d245ce426b"),
        (4, 0, "5e68d96aedc05e806b2eca72bd4a03d1cb04f5b03eb14b10f1b14387b6f8b622"),
        (60, 2, "c901c1b4a5080094e9b0c6c1725bb95d4748489e7668eb1fb7a2f8aaf1a72dec"),
    ],
)
def test_its_digest_is_known(copies, leads, expected):
    """Today's code gives the digests that were given out before: another is another version of the format."""
    found = encoders.index(_store_and_copy(hashlib.shake_128(b"gold").digest(1_400_000), copies))
    spans = encoders.map_of(found)
    assert [spans.window_place(span) is not None for span in range(3)] == [False, copies == 4, copies == 4]
    assert sum(spans.lead(span)[0] > 0 for span in range(3)) == leads
    assert hashlib.sha256(encode_image_index(found)).hexdigest() == expected


def test_its_digest_is_known_of_zstd():
    """The same of a zstd layer, in frames of raw blocks so that no version of an encoder matters."""
    plain = hashlib.shake_128(b"gold").digest(700_000)
    starts = range(0, 700_000, 100_000)
    headers = [struct.pack("<I", 100_000 << 3 | (start == 600_000))[:3] for start in starts]
    body = b"".join(header + plain[start : start + 100_000] for header, start in zip(headers, starts, strict=True))
    found = index_of((struct.pack("<IBI", 0xFD2FB528, 0xA0, 700_000) + body) * 3, ZSTD)
    assert (
        hashlib.sha256(encode_image_index(found)).hexdigest()
        == "1ea12e4a392246aad703f62e406ab33895d823bfd742537b50d5c971018b6db7"
    )


def _store_and_copy(plain: bytes, copies: int) -> bytes:
    """A gzip stream of this file's own making: fixed blocks of literals, each of which copies from the one before."""
    bits = count = 0
    out = bytearray(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")

    def put(value: int, width: int) -> None:
        nonlocal bits, count
        bits |= value << count
        count += width
        while count >= 8:
            out.append(bits & 255)
            bits >>= 8
            count -= 8

    def put_code(value: int, width: int) -> None:
        put(int(f"{value:0{width}b}"[::-1], 2), width)

    decoded = bytearray()
    for start in range(0, len(plain), 20_000):
        put(0b010, 3)
        if start:  # length 10 (code 264), distance 8193 and more (code 26, 12 bits): into the block before
            for copy in range(copies):
                put_code(264 - 256, 7)
                put_code(26, 5)
                put(copy * 60, 12)
                for _ in range(10):
                    decoded.append(decoded[-(8193 + copy * 60)])
        for number in plain[start : start + 20_000]:
            put_code(0x30 + number, 8) if number < 144 else put_code(0x190 + number - 144, 9)
            decoded.append(number)
        put_code(0, 7)
    put(0b011, 3)
    put_code(0, 7)
    if count:
        put(0, 8 - count)
    return bytes(out) + struct.pack("<II", zlib.crc32(decoded), len(decoded) & 0xFFFFFFFF)


def test_each_byte_is_where_the_format_says(tar_of):
    """The image index of a plain tar, written here by hand from `docs/format.md`, is what is encoded."""
    data = random.Random(1).randbytes(300_000)
    raw = tar_of({"m/one": data, "m/two": b"xy"}) + bytes(4 << 20)
    found = index_of(raw, NONE, TAR)
    digest, size = hashlib.sha256(raw).digest(), len(raw)
    second = 512 + 300_032 + 512
    expected = b"KITFSIMG" + struct.pack("<HBBII", 1, 0, 0, 2, 4)
    expected += digest + struct.pack("<Q", size) + digest + struct.pack("<QQ", size, 0)
    expected += b"\0\0" + struct.pack("<HH", 0o644, 0o644) + struct.pack("<QQ", 300_000, 2)
    expected += struct.pack("<QQ", 512, second) + struct.pack("<HH", 5, 5)
    expected += hashlib.sha256(data).digest() + hashlib.sha256(b"xy").digest() + b"m/onem/two"
    for start in (0, 131_072, 262_144):
        expected += checksum(data[start : start + 131_072])
    expected += checksum(b"xy")
    for start in range(0, size, 4 << 20):
        expected += hashlib.sha256(raw[start : start + (4 << 20)]).digest()
    assert encode_image_index(found) == expected


SEEDS = 20_000


@pytest.mark.parametrize("number", range(6))
def test_mutations_give_one_error_or_the_encoding_of_something(small, number):
    """Of 20 000 mutations of each kind none raises anything else; what still parses encodes to the mutated bytes."""
    raw = small[number]
    rng = random.Random(number)
    parsed = 0
    for _ in range(SEEDS):
        mutated = _mutate(rng, raw)
        try:
            found = parse_image_index(mutated)
        except ImageIndexMalformed as error:
            assert 0 <= error.offset <= len(mutated)
            continue
        parsed += 1
        assert encode_image_index(found) == mutated
    assert parsed < SEEDS / 2 or number in (1, 5)  # most bytes of those are digests


def _mutate(rng: random.Random, raw: bytes) -> bytes:
    mutated = bytearray(raw)
    way = rng.randrange(6)
    at = rng.randrange(len(raw) if rng.random() < 0.5 else min(len(raw), 180))
    if way == 0:
        mutated[at] ^= 1 << rng.randrange(8)
    elif way == 1:
        mutated[at] = rng.choice((0, 1, 127, 128, 255))
    elif way == 2:
        del mutated[at : at + rng.randrange(1, 40)]
    elif way == 3:
        mutated[at:at] = rng.randbytes(rng.randrange(1, 40))
    elif way == 4:
        width = rng.choice((2, 4, 8))
        mutated[at : at + width] = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1))).to_bytes(
            width, "little"
        )
    else:
        other = rng.randrange(len(raw))
        mutated[at : at + 16] = raw[other : other + 16]
    return bytes(mutated)


def with_bytes(raw: bytes, offset: int, new: bytes) -> bytes:
    return raw[:offset] + new + raw[offset + len(new) :]


def test_what_a_hostile_one_says_is_refused(tar_of):
    """Counts beyond the bytes, other versions, and fields that contradict each other are errors that name the place."""
    raw = encode_image_index(index_of(tar_of({"a": b"x" * 700}), NONE, TAR))
    for offset, new, place in (
        (0, b"X", 0),
        (8, b"\2", 8),
        (10, b"\2", 10),
        (11, b"\3", 10),
        (12, b"\xff\xff\xff\xff", 108),
        (12, b"\2", 108),
        (12, b"\0", 124),
        (16, b"\xff\xff\xff\xff", None),
        (20, b"\0\0", 20),
        (52, b"\1", 20),
        (92 + 7, b"\x80", 20),
        (100, b"\1", 20),
        (108, b"\2", 108),
        (109, b"\xff\xff", 108),
        (111 + 4, b"\1", 108),
        (119, b"\0\0", 108),
    ):
        with pytest.raises(ImageIndexMalformed) as caught:
            parse_image_index(with_bytes(raw, offset, new))
        assert place is None or caught.value.offset == place, (offset, caught.value)
    for broken, place in ((raw + b"\0", len(raw)), (raw[:-1], len(raw) - 32), (b"", 0)):
        with pytest.raises(ImageIndexMalformed) as caught:
            parse_image_index(broken)
        assert caught.value.offset == place


@pytest.mark.parametrize(
    "path", [b"../x", b"a/../x", b"/abs", b"", b".", b"a/", b"a//b", b"./a", b"c" * 256, b"x/" * 2100 + b"x", b"twice"]
)
def test_paths_that_no_archive_may_have_are_refused(tar_of, path):
    """A path that leaves the root, is not clean, too long, or there already, is refused as when a tar is read."""
    found = index_of(tar_of({"twice": b"1", "other": b"2"}), NONE, TAR)
    found.toc[1] = msgspec.structs.replace(found.toc[1], path=path)
    with pytest.raises(ImageIndexMalformed, match="member 1"):
        parse_image_index(encode_image_index(found))


def test_members_must_lie_one_behind_another(tar_of):
    """Members that overlap, have no room for a header, or leave the layer are refused."""
    found = index_of(tar_of({"one": b"1" * 600, "two": b"2"}), NONE, TAR)
    first, second = found.toc
    for toc in (
        [second, first],
        [first, msgspec.structs.replace(second, offset=1024)],
        [first, msgspec.structs.replace(second, offset=second.offset + 1)],
        [first, msgspec.structs.replace(second, offset=found.size_decoded)],
        [first, msgspec.structs.replace(second, kind=1, digest=None)],
    ):
        found.toc[:] = toc
        with pytest.raises(ImageIndexMalformed, match=r"member [01]"):
            parse_image_index(encode_image_index(found))


def test_a_large_one_is_not_looked_at(monkeypatch):
    """What is larger than an image index can be is refused before anything is made of it."""
    raw = encode_image_index(index_of(b"x", NONE))
    monkeypatch.setattr(image_index, "SIZE_MAX", len(raw) - 1)
    with pytest.raises(ImageIndexMalformed, match="at most"):
        parse_image_index(raw)


@given(st.lists(st.tuples(st.integers(0, 12) | st.integers(50, 200), st.binary(max_size=9)), max_size=12))
def test_any_window_comes_back(parts):
    """Windows of zeros and bytes in any order are read back, and their runs are no more than the bytes need."""
    window = b"".join(bytes(zeros) + data for zeros, data in parts)
    raw = encode_window(window)
    cursor = Cursor(raw)
    assert (parse_window(cursor), cursor.left) == (window, 0)
    assert len(raw) <= len(window) + 8


@pytest.mark.parametrize(
    "runs",
    [
        [(0, b"\0a")],
        [(0, b"a\0")],
        [(0, b"")],
        [(0, b"a\0\0\0\0\0b")],
        [(0, b"a"), (5, b"b")],
        [(6, b"b"), (0, b"a")],
        [(0, b"a"), (0, b"a")],
        [(15, b"ab")],
    ],
)
def test_another_encoding_of_a_window_is_refused(runs):
    """Runs that could be longer, shorter, fewer or in another order, or leave the window, are no window."""
    offsets = b"".join(struct.pack("<H", offset) for offset, _ in runs)
    lengths = b"".join(struct.pack("<H", len(run)) for _, run in runs)
    raw = struct.pack("<HH", 16, len(runs)) + offsets + lengths + b"".join(run for _, run in runs)
    with pytest.raises(ImageIndexMalformed):
        parse_window(Cursor(raw))
