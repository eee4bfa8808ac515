"""What pack compresses: ordinary streams, the same whatever the threads, entered at every piece."""

import gzip
import os
import random
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kitfs.layer.block_inflater import SPACING
from kitfs.layer.checkpoints import SpanMap
from kitfs.layer.compress import PIECE_SIZE, PackCompression, compress
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.oci.mediatype import LayerFormat

COMPRESSED = [how for how in PackCompression if how is not PackCompression.NONE]


def pack(data: bytes, how: PackCompression, *, piece: int = 1 << 20, threads: int = 2, ahead: int = 4) -> bytes:
    with ThreadPoolExecutor(threads) as pool:
        pieces = (data[at : at + piece] for at in range(0, len(data), piece))
        return b"".join(compress(pieces, how, pool, ahead))


def decode(data: bytes, how: PackCompression) -> bytes:
    if how is PackCompression.ZSTD:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            return reader.read()
    return gzip.decompress(data)


def index(data: bytes, how: PackCompression) -> LayerIndex:
    indexer = LayerIndexer(LayerFormat.RAW, how.compression)
    indexer.feed(data)
    return indexer.finish()


@pytest.fixture(scope="module")
def weights() -> bytes:
    """As compressible as weights: half of every second byte is noise."""
    noise = random.Random(4).randbytes(3 * SPACING + 7000)
    return bytes(byte & 0x0F if place & 1 else byte for place, byte in enumerate(noise))


@pytest.mark.parametrize("how", COMPRESSED)
def test_bytes_do_not_depend_on_threads_or_pieces(weights: bytes, how: PackCompression):
    """One thread or many, small pieces or large ones: the published bytes are the same."""
    first = pack(weights, how)
    assert decode(first, how) == weights
    assert len(first) < 0.9 * len(weights)
    for piece, threads, ahead in ((1000, 1, 1), (70_001, 4, 9), (len(weights), 3, 2)):
        assert pack(weights, how, piece=piece, threads=threads, ahead=ahead) == first


@pytest.mark.parametrize("how", COMPRESSED)
def test_each_piece_is_a_checkpoint_without_a_window(weights: bytes, how: PackCompression):
    """The indexer finds a checkpoint at each piece, and none needs bytes from before it."""
    found = index(pack(weights, how), how)
    spans = SpanMap(found.checkpoints[:1], found.size_decoded)
    size = SPACING if how is PackCompression.ZSTD else PIECE_SIZE
    assert [spans.range(number)[0] for number in range(spans.count)] == [0, size, 2 * size, 3 * size]
    assert all(spans.window_place(number) is None for number in range(spans.count))


@pytest.mark.parametrize("how", [PackCompression.GZIP, PackCompression.GZIP_FASTEST])
def test_gzip_is_one_ordinary_member(weights: bytes, how: PackCompression):
    """One header without name and time, one deflate stream that zlib reads to its end, one trailer."""
    packed = pack(weights, how)
    assert packed[:8] == b"\x1f\x8b\x08\0\0\0\0\0" and packed[9] == 255
    inflater = zlib.decompressobj(31)
    assert inflater.decompress(packed) == weights
    assert inflater.eof and inflater.unused_data == b""


@pytest.mark.parametrize("how", COMPRESSED)
@pytest.mark.parametrize("size", [0, 1, SPACING - 1, SPACING, SPACING + 1, 2 * SPACING, 2 * PIECE_SIZE])
def test_sizes_at_the_borders_of_pieces(how: PackCompression, size: int):
    """Nothing, a byte, and whole pieces come back, and the indexer takes them."""
    data = bytes(range(256)) * (size // 256 + 1)
    packed = pack(data[:size], how)
    assert decode(packed, how) == data[:size]
    assert index(packed, how).size_decoded == size


@pytest.mark.parametrize("how", COMPRESSED)
def test_noise_hardly_grows(how: PackCompression):
    """What can not be compressed grows by less than a thousandth."""
    noise = os.urandom(2 << 20)
    assert len(pack(noise, how)) < 1.001 * len(noise)


@given(data=st.binary(max_size=5000), how=st.sampled_from(COMPRESSED), piece=st.integers(1, 700))
def test_anything_comes_back(data: bytes, how: PackCompression, piece: int):
    """Any bytes in any pieces."""
    assert decode(pack(data, how, piece=piece), how) == data


def test_error_of_the_source_ends_the_stream():
    """What reading raises comes out, and nothing goes on behind it."""

    def broken():
        yield bytes(SPACING * 3)
        raise OSError("gone")

    with ThreadPoolExecutor(2) as pool, pytest.raises(OSError, match="gone"):
        list(compress(broken(), PackCompression.GZIP, pool, 2))
