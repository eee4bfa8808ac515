"""Values of the index: every flipped bit is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.digest import Digest
from kitfs.store import schema
from kitfs.store.errors import RecordCorrupt
from kitfs.store.records import BlobRecord, CountRecord, ManifestRecord, Stamp, encode_value, parse_value

DIGESTS = st.binary(min_size=32, max_size=32).map(Digest.from_raw)


@given(DIGESTS, st.lists(DIGESTS, max_size=5), st.lists(DIGESTS, max_size=2))
def test_record_is_read_back(config, layers, parents):
    """What is encoded is parsed to the same record."""
    record = ManifestRecord(config, layers, parents)
    value = encode_value(schema.MANIFESTS, config.raw, record)
    assert parse_value(schema.MANIFESTS, config.raw, value, ManifestRecord) == record


def test_every_flipped_bit_is_noticed():
    """No single flipped bit of a value or its key gives a record."""
    record = BlobRecord(5, "whole", ["a"], "here", 1, 2, Stamp(1, 2, 3, 4, 5))
    key = bytes(range(32))
    value = encode_value(schema.BLOBS, key, record)
    for target, other in ((value, key), (key, value)):
        for bit in range(len(target) * 8):
            flipped = bytearray(target)
            flipped[bit // 8] ^= 1 << bit % 8
            pair = (other, bytes(flipped)) if target is value else (bytes(flipped), other)
            with pytest.raises(RecordCorrupt):
                parse_value(schema.BLOBS, *pair, BlobRecord)


@pytest.mark.parametrize("size", [0, 1, 16, 17, 30])
def test_short_value_is_corrupt(size):
    """A value that was cut short is no record."""
    value = encode_value(schema.BLOBS, b"k", BlobRecord(5, "whole", [], "here", 1, 2))
    with pytest.raises(RecordCorrupt):
        parse_value(schema.BLOBS, b"k", value[:size], BlobRecord)


def test_value_of_another_table_is_corrupt():
    """A value that was copied to another table under the same key is no record there."""
    value = encode_value(schema.TAGS, b"k", CountRecord(1))
    with pytest.raises(RecordCorrupt):
        parse_value(schema.COUNTS, b"k", value, CountRecord)


def test_record_of_another_kind_is_corrupt():
    """A verified value that is no record of the kind asked for is corrupt, not guessed at."""
    value = encode_value(schema.COUNTS, b"k", CountRecord(1))
    with pytest.raises(RecordCorrupt):
        parse_value(schema.COUNTS, b"k", value, BlobRecord)


@given(st.lists(st.binary(max_size=8), unique=True), st.randoms())
def test_count_does_not_depend_on_order(elements, random):
    """Adding and removing elements in any order gives the same count."""
    count = CountRecord()
    for element in elements:
        count = count.toggled(element, 1)
    random.shuffle(elements)
    for element in elements:
        count = count.toggled(element, -1)
    assert count == CountRecord()


@given(st.text(max_size=300), st.text(max_size=10))
def test_keys_fit_and_differ(repository, tag):
    """Every tag's key is within LMDB's 511 bytes, and another tag has another key."""
    key = schema.encode_tag_key(repository, tag)
    assert len(key) <= 1 + schema.KEY_TEXT_SIZE_MAX
    assert key != schema.encode_tag_key(repository, tag + "x")


@given(DIGESTS, st.integers(0, schema.SEQUENCE_MAX))
def test_sequence_key_is_read_back(digest, sequence):
    """A batch's key gives its layer and number back, and other keys give None."""
    key = schema.encode_sequence_key(digest, sequence)
    assert schema.parse_sequence_key(key) == (digest, sequence)
    assert schema.parse_sequence_key(key[:-1]) is None
