"""JSON as Go writes it. Expected texts were printed by Go 1.26's encoding/json."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.oci import strict_json
from kitfs.oci.go_json import JsonUnsupported, encode, format_float, sort_keys

FLOATS = {
    0.0: "0",
    1.0: "1",
    -2.5: "-2.5",
    0.000012: "0.000012",
    1e-6: "0.000001",
    1e-7: "1e-7",
    1.25e-9: "1.25e-9",
    1e20: "100000000000000000000",
    1e21: "1e+21",
    1.5e300: "1.5e+300",
    123456789.125: "123456789.125",
    float(2**53): "9007199254740992",
    5e-324: "5e-324",
}


@pytest.mark.parametrize("value", FLOATS, ids=str)
def test_float_is_written_as_go_writes_it(value: float):
    """Shortest digits, an exponent below 1e-6 and from 1e21 on, no .0."""
    assert format_float(value) == FLOATS[value]


def test_minus_zero_is_not_zero():
    """The sign of zero is written."""
    assert format_float(-0.0) == "-0"


def test_strings_are_escaped_as_go_escapes_them():
    """HTML characters, line separators and control characters are escaped, others are not."""
    text = '<a>&"\\\b\f\n\r\t\x00\x1f\x7f\u2028\u2029é\U0001f600'
    expected = '"\\u003ca\\u003e\\u0026\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f\x7f\\u2028\\u2029é\U0001f600"'
    assert encode(text) == expected.encode()


def test_value_is_compact_and_keeps_its_order():
    """No spaces, no line feed, keys in the order of the dict."""
    value = {"b": [1, True, None, []], "a": {}, "c": (2,)}
    assert encode(value) == b'{"b":[1,true,null,[]],"a":{},"c":[2]}'
    assert encode(sort_keys(value)) == b'{"a":{},"b":[1,true,null,[]],"c":[2]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], {1: 2}, {"a": b"x"}, object()])
def test_value_that_json_can_not_hold_is_refused(value: object):
    """NaN, infinities, other keys and other types are our error."""
    with pytest.raises(JsonUnsupported):
        encode(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float_survives_being_written_and_read(value: float):
    """The written digits give the same float."""
    assert math.copysign(1, float(format_float(value))) == math.copysign(1, value)
    assert float(format_float(value)) == value


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.booleans(), max_size=3), max_size=5))
def test_value_survives_being_written_and_read(value: dict[str, object]):
    """What was written is read as what it was."""
    assert strict_json.decode(encode(value)) == value
