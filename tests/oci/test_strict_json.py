"""JSON from strangers: what is accepted, what is refused, and how fast."""

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.oci.strict_json import JsonMalformed, decode

MALFORMED = {
    b"": "Expecting value",
    b"{": "Expecting property name",
    b"[1,]": "Expecting value",
    b"{} {}": "Extra data",
    b"NaN": "not a JSON number",
    b"[-Infinity]": "not a JSON number",
    b'{"a":1,"a":1}': "duplicate key 'a'",
    b'[{"b":{"a":1,"a":2}}]': "duplicate key 'a'",
    b'"\\ud800"': "lone surrogate",
    b'{"\\udc00":1}': "lone surrogate",
    b'["\\ud800\\ud800"]': "lone surrogate",
    b'"\xff"': "not UTF-8 at byte 1",
    b"\xef\xbb\xbf{}": "BOM",
    b'"\x01"': "control character",
    b"1e400": "out of range",
    b"1" * 401: "a number of 401 digits",
    b"01": "Extra data",
    b"[" * 65 + b"]" * 65: "nested deeper than 64",
    b"[" * 100_000: "nested deeper than 64",
    b'{"a":' * 2000: "nested deeper than 64",
}


@pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:24]))
def test_malformed_json_is_refused_with_the_reason(raw: bytes):
    """Each kind of bad input is refused, and the message says which."""
    with pytest.raises(JsonMalformed, match=MALFORMED[raw]):
        decode(raw)


def test_syntax_error_names_line_and_column():
    """The place of a syntax error is in its message."""
    with pytest.raises(JsonMalformed, match="line 2 column 2"):
        decode(b"{\n x}")


def test_limits_hold():
    """More bytes than the limit are refused before they are parsed, depth at the limit is accepted."""
    with pytest.raises(JsonMalformed, match="at most 10 are read"):
        decode(b" " * 11, limit_bytes=10)
    assert decode(b"[" * 64 + b"]" * 64)


@pytest.mark.parametrize("raw", [b'"' + b'\\"' * 1_900_000, b'"' * 4_000_000, b'["' + b"\\\\" * 1_900_000 + b"[" * 100])
def test_strings_without_an_end_take_no_time(raw: bytes):
    """Four megabytes made to confuse the look at depth are refused within a second."""
    start = time.perf_counter()
    with pytest.raises(JsonMalformed):
        decode(raw)
    assert time.perf_counter() - start < 1


def test_brackets_in_strings_do_not_nest():
    """Only brackets outside strings count as depth."""
    assert decode(json.dumps(["[" * 1000, '\\"[{' * 100]).encode()) == ["[" * 1000, '\\"[{' * 100]


def test_surrogate_pairs_are_characters():
    """An escaped pair is one character, and an escaped backslash before u starts no escape."""
    assert decode(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert decode(b'"\\\\ud800"') == "\\ud800"


def test_minus_zero_keeps_its_sign():
    """-0 is the float -0.0, as Go reads it."""
    assert str(decode(b"-0")) == "-0.0"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_well_formed_json_is_read_as_the_standard_reader_reads_it(value: object):
    """On good input the result is that of the standard library."""
    raw = json.dumps(value).encode()
    assert decode(raw) == json.loads(raw)


def test_mutated_json_is_read_or_refused():
    """20 000 damaged documents raise nothing but our error."""
    source = json.dumps({"a": [1, 2.5, "x\u00e9\n", {"b": None, "c": [True] * 3}], "d": {"e": "\U0001f600"}}).encode()
    rng = random.Random(1)
    refused = 0
    for _ in range(20_000):
        raw = bytearray(source)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(2)] = rng.choice(
                [b"", b"\xff", b'"', b"[", b"}", b"\\u", b"\\ud8", b"0", b"-", b"e9"]
            )
        try:
            decode(bytes(raw))
        except JsonMalformed:
            refused += 1
    assert 10_000 < refused < 20_000
