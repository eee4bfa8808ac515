"""The stored form of checkpoints: whatever is encoded reads back, and what is broken is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.layer.checkpoints import CheckpointsBroken, Entry, SpanMap, count_directory_values, encode_checkpoints

ENTRIES = st.lists(
    st.tuples(
        st.integers(1, 1 << 27),
        st.integers(1, 16 << 20),
        st.binary(max_size=3000),
        st.binary(min_size=32, max_size=32),
        st.tuples(st.integers(0, 128 << 10), st.integers(0, 1 << 20)),
    ),
    min_size=1,
    max_size=30,
)


@given(ENTRIES, st.integers(1, 20), st.integers(1, 4000))
def test_directories_read_back(parts, entries_max, value_size):
    """Any checkpoints are read back as they were encoded, however many values they take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kitfs.layer.checkpoints._ENTRIES_MAX", entries_max)
        patch.setattr("kitfs.layer.checkpoints._VALUE_SIZE", value_size)
        entries, bit, offset = [], 0, 0
        for bits, size, window, digest, (lead, lead_bits) in parts:
            entries.append(Entry(bit, offset, window, digest, min(lead, offset), min(lead_bits, bit)))
            bit, offset = bit + bits, offset + size
        stop = -(-bit // 8)
        values = encode_checkpoints(entries, stop)
        spans = SpanMap(values[: count_directory_values(values[0])], offset)
        assert (spans.count, spans.stop) == (len(entries), stop)
        for number, entry in enumerate(entries):
            assert (spans.bit(number), spans.range(number)[0]) == (entry.bit - entry.lead_bits, entry.offset)
            assert spans.lead(number) == (entry.lead, entry.lead_bits)
            assert spans.published_range(number)[0] == (entry.bit - entry.lead_bits) // 8
            assert spans.range_digest(number) == entry.digest
            place = spans.window_place(number)
            found = b"" if place is None else values[place[0]][place[1] : place[1] + place[2]]
            assert found == entry.window
        assert all(len(value) <= max(value_size, 3000, 30 * 68 + 21) for value in values)


def test_broken_directories_are_errors():
    """Values of another version, cut, out of order, or for another layer are CheckpointsBroken."""
    entries = [Entry(80, 0, b"", bytes(32)), Entry(900, 1000, b"w", bytes(32))]
    directory = encode_checkpoints(entries, 200)[0]
    assert SpanMap([directory], 2000).count == 2
    for values, size in (
        ([], 2000),
        ([b""], 2000),
        ([b"\1" + directory[1:]], 2000),
        ([directory[:-1]], 2000),
        ([directory], 1000),
        ([directory, directory], 2000),
        ([encode_checkpoints(entries, 112)[0]], 2000),
        ([encode_checkpoints(entries, 1 << 63)[0]], 2000),
        ([encode_checkpoints(entries[1:], 200)[0]], 2000),
        ([encode_checkpoints([*entries, entries[1]], 200)[0]], 2000),
        *[
            ([encode_checkpoints([entries[0], Entry(9 << 20, 1 << 20, b"", bytes(32), *lead)], 2 << 20)[0]], 2 << 20)
            for lead in (((1 << 20) + 1, 0), (0, (9 << 20) + 1), ((128 << 10) + 1, 0), (0, (2 << 20) + 1))
        ],
    ):
        with pytest.raises(CheckpointsBroken):
            SpanMap(values, size)
    with pytest.raises(CheckpointsBroken):
        count_directory_values(b"short")
