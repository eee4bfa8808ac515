"""Digests of the ranges of plain layers: right for any pieces, read back as stored, not taken for checkpoints."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.layer import ranges
from kitfs.layer.checkpoints import CheckpointsBroken, count_directory_values
from kitfs.layer.ranges import RANGE_SIZE, RangesBroken, RangeWriter, encode_ranges, parse_ranges
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import Compression, LayerFormat


@given(st.integers(0, 1000), st.integers(1, 300), st.lists(st.integers(1, 700), min_size=1))
def test_ranges_do_not_depend_on_pieces(size, range_size, pieces):
    """Each range's digest is that of its bytes, whatever is fed at a time."""
    data = random.Random(size).randbytes(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "RANGE_SIZE", range_size)
        patch.setattr(ranges, "_RANGES_MAX", 3)
        writer = RangeWriter()
        at = 0
        while at < size:
            for piece in pieces:
                writer.update(memoryview(data)[at : at + piece])
                at += piece
        expected = b"".join(
            hashlib.sha256(data[start : start + range_size]).digest() for start in range(0, size, range_size)
        )
        values = writer.finish()
    assert parse_ranges(values) == (range_size if size else 0, expected)
    assert len(values) == -(-len(expected) // 96)


@pytest.mark.parametrize("layer_format", list(LayerFormat))
def test_a_stored_plain_layer_has_them_and_reads_as_before(layers, tar_of, layer_format):
    """The ranges of a tar or raw layer are in the store, and its members are read from the blob all the same."""
    data = random.Random(1).randbytes(9 << 20)
    raw = tar_of({"m": data}) if layer_format is LayerFormat.TAR else data
    found = layers.add(raw, Compression.NONE, layer_format)
    count = layers.store.find_layer(found.digest).checkpoint_values
    values = [layers.store.get_checkpoint_value(found.digest, number) for number in range(count)]
    starts = range(0, len(raw), RANGE_SIZE)
    expected = b"".join(hashlib.sha256(raw[start : start + RANGE_SIZE]).digest() for start in starts)
    assert parse_ranges(values) == (RANGE_SIZE, expected)
    with LayerReader(layers.store, found.digest) as reader:
        assert reader.open_member(0).read(5 << 20, 6 << 20) == data[5 << 20 : 6 << 20]


def test_broken_values_are_errors():
    """Values that are cut, of another kind, or not all of a layer's are RangesBroken; checkpoints refuse them too."""
    values = encode_ranges(bytes(32 * 9000))
    assert len(parse_ranges(values)[1]) == 32 * 9000
    for broken in (values[:1], [b""], [values[0][:-1], values[1]], [b"\2" + values[0][1:], values[1]]):
        with pytest.raises(RangesBroken):
            parse_ranges(broken)
    with pytest.raises(CheckpointsBroken):
        count_directory_values(values[0])
