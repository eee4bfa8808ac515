"""YAML as go-yaml v3.0.1 writes it. The expected texts were printed by it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.oci.yaml_scalar import Timestamp, must_quote, resolve_scalar
from kitfs.oci.yaml_write import Fields, FlowList, encode, format_float

SCALARS = {
    "1": '"1"\n',
    "1.0": '"1.0"\n',
    "true": '"true"\n',
    "yes": '"yes"\n',
    "No": '"No"\n',
    "~": '"~"\n',
    "null": '"null"\n',
    "": '""\n',
    "a: b": "'a: b'\n",
    "a:b": "a:b\n",
    "a #b": "'a #b'\n",
    "#a": "'#a'\n",
    "- a": "'- a'\n",
    "-a": "-a\n",
    "--- x": "'--- x'\n",
    "...": "'...'\n",
    "?": "'?'\n",
    "? a": "'? a'\n",
    "a?": "a?\n",
    "@x": "'@x'\n",
    "`x": "'`x'\n",
    "%d": "'%d'\n",
    "&a": "'&a'\n",
    "*a": "'*a'\n",
    "!t": "'!t'\n",
    "|": "'|'\n",
    ">": "'>'\n",
    '"q"': "'\"q\"'\n",
    "it's": "it's\n",
    "'": "''''\n",
    "a, b": "a, b\n",
    "[x]": "'[x]'\n",
    "{y}": "'{y}'\n",
    " lead": "' lead'\n",
    "trail ": "'trail '\n",
    "a\nb": "|-\n  a\n  b\n",
    "a\nb\n": "|\n  a\n  b\n",
    "a\nb\n\n": "|+\n  a\n  b\n\n",
    "\n": "|2+\n",
    "\n\na": "|2-\n\n  a\n",
    "a \nb": '"a \\nb"\n',
    "a\n b": "|-\n  a\n   b\n",
    " a\nb": "|2-\n   a\n  b\n",
    "\ta": '"\\ta"\n',
    "a\tb": '"a\\tb"\n',
    "a\t\nb": "|-\n  a\t\n  b\n",
    "\r": '"\\r"\n',
    "a\r\nb": '"a\\r\\nb"\n',
    "é": "é\n",
    "naïve\nx": "|-\n  naïve\n  x\n",
    "日本語": "日本語\n",
    "😀": '"\\U0001F600"\n',
    "a😀\nb": '"a\\U0001F600\\nb"\n',
    "\u2028": "'\u2028'\n",
    "a\u2028b": "'a\u2028  b'\n",
    "a\u2028\nb": "|-\n  a\u2028\n  b\n",
    "\x85x": '"\\Nx"\n',
    "\xa0": "\xa0\n",
    "\ufeff": '"\\uFEFF"\n',
    "\ufeffabc": '"\\uFEFF\\x61\\x62\\x63"\n',
    "x\ufeff": '"x\\uFEFF"\n',
    "\x7f": '"\\x7F"\n',
    "\x00": '"\\0"\n',
    "\x1b": '"\\e"\n',
    "0x1F": '"0x1F"\n',
    "0b11": '"0b11"\n',
    "0o17": '"0o17"\n',
    "017": '"017"\n',
    "08": '"08"\n',
    "1_000": '"1_000"\n',
    "1e5": '"1e5"\n',
    "1e400": "1e400\n",
    ".5": '".5"\n',
    ".5e3": '".5e3"\n',
    ".5_5": '".5_5"\n',
    "+.5": '"+.5"\n',
    "-.inf": '"-.inf"\n',
    ".nan": '".nan"\n',
    "2001-01-01": '"2001-01-01"\n',
    "2001-1-1": '"2001-1-1"\n',
    "2001-01-01T00:00:00Z": '"2001-01-01T00:00:00Z"\n',
    "2001-01-01 10:00:00": '"2001-01-01 10:00:00"\n',
    "12:30": '"12:30"\n',
    "1:2:3.4": '"1:2:3.4"\n',
    "190:20:30": '"190:20:30"\n',
    "<<": "<<\n",
    "=": "=\n",
    "a=b": "a=b\n",
    "0": '"0"\n',
    "-0": '"-0"\n',
    "+1": '"+1"\n',
    "1.": '"1."\n',
    "-": "'-'\n",
    "_": "_\n",
    "y": '"y"\n',
    "on": '"on"\n',
    "OFF": '"OFF"\n',
    "key with: colon": "'key with: colon'\n",
    "18446744073709551615": '"18446744073709551615"\n',
    "18446744073709551616": '"18446744073709551616"\n',
    "-9223372036854775808": '"-9223372036854775808"\n',
    "9223372036854775808": '"9223372036854775808"\n',
    "0o-7": '"0o-7"\n',
    "0b-1": '"0b-1"\n',
    "1__2": '"1__2"\n',
    "_1": "_1\n",
    "0x_1": '"0x_1"\n',
    "true ": "'true '\n",
    "TRUE": '"TRUE"\n',
    "tRUE": "tRUE\n",
    ".inf": '".inf"\n',
    ".Inf": '".Inf"\n',
    ".INf": ".INf\n",
    "1e-7": '"1e-7"\n',
    "0.1": '"0.1"\n',
    "1.5e+3": '"1.5e+3"\n',
    "123456789012345678901234567890": '"123456789012345678901234567890"\n',
    "\\": "\\\n",
    "a\\n": "a\\n\n",
    '"': "'\"'\n",
    'a"b\nc': '|-\n  a"b\n  c\n',
    "https://a.b/c?d#e": "https://a.b/c?d#e\n",
    "C:\\x": "C:\\x\n",
    "a,b": "a,b\n",
    "a:": "'a:'\n",
    "a: ": "'a: '\n",
    "- ": "'- '\n",
    "-\tx": '"-\\tx"\n',
    ":a": ":a\n",
    ": a": "': a'\n",
    "::": "'::'\n",
    "a\n\n\nb": "|-\n  a\n\n\n  b\n",
    "\n a": "|2-\n   a\n",
    " \n": '" \\n"\n',
    "\u2029": "'\u2029'\n",
    "a\u2029": "'a\u2029'\n",
    "x\n\u2028y": "|-\n  x\n\u2028  y\n",
}


@pytest.mark.parametrize("text", SCALARS, ids=lambda text: ascii(text)[:30])
def test_string_is_written_as_go_yaml_writes_it(text: str):
    """Plain, quoted or as a block, whatever go-yaml chooses."""
    assert encode(Fields(k=text)).decode() == f"k: {SCALARS[text]}"


def test_long_lines_are_not_folded():
    """A text of 150 words stays on one line."""
    assert encode(Fields(k="word " * 150 + "end")).count(b"\n") == 1


def test_collections_nest_as_go_yaml_nests_them():
    """Sequences are indented, inner collections start on the dash's line, empty ones are in flow style."""
    value = Fields(b=[[1, [2]], {"x": [], "y": {}}, [{"z": None}]], a={"k": {"l": True}})
    assert encode(value).decode() == (
        'b:\n  - - 1\n    - - 2\n  - x: []\n    "y": {}\n  - - z: null\na:\n  k:\n    l: true\n'
    )


def test_blocks_in_sequences_stand_under_their_text():
    """A literal block inside a sequence is indented by the sequence."""
    assert encode(Fields(k=["a\nb", {"x": "c\n"}])).decode() == "k:\n  - |-\n    a\n    b\n  - x: |\n      c\n"


def test_flow_list_quotes_what_flow_forbids():
    """In flow style commas, brackets and colons need quotes, and line feeds double ones."""
    written = encode(Fields(k=FlowList(["a", "b, c", "x:y", "", "l\nm", "[q]"]))).decode()
    assert written == "k: [a, 'b, c', 'x:y', \"\", \"l\\nm\", '[q]']\n"


def test_keys_are_in_natural_order():
    """Runs of digits by value, letters after other characters; quoted where a string must be."""
    keys = ["a10", "a2", "a02", "Z", "1", "a", "_x", "10", "a-b", "é"]
    written = encode(dict.fromkeys(keys, 0)).decode().replace(": 0\n", " ")
    assert written == '_x "1" "10" Z a a-b a2 a02 a10 é '


def test_long_and_broken_keys_are_complex():
    """A key above 128 bytes, or with a line feed, gets a question mark."""
    assert encode({"é" * 65: 1}).decode() == f"? {'é' * 65}\n: 1\n"
    assert encode({"x" * 128: 1}).decode() == f"{'x' * 128}: 1\n"
    assert encode({"a\nb": [1]}).decode() == "? |-\n  a\n  b\n: - 1\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"), (-0.0, "-0"), (1.0, "1"), (123456.0, "123456"), (1e6, "1e+06"), (1234567.0, "1.234567e+06"),
        (1e21, "1e+21"), (0.0001, "0.0001"), (0.00001, "1e-05"), (1.2e-5, "1.2e-05"), (1e-100, "1e-100"),
        (0.5, "0.5"), (123456.789, "123456.789"), (math.inf, ".inf"), (-math.inf, "-.inf"), (math.nan, ".nan"),
    ],
)  # fmt: skip
def test_float_is_written_as_go_yaml_writes_it(value: float, expected: str):
    """Go's %g with the shortest digits."""
    assert format_float(value) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("NULL", None), ("nULL", "nULL"), ("True", True), ("yes", "yes"), ("off", "off"),
        ("0x1F", 31), ("-0x1f", -31), ("0b11", 3), ("0o17", 15), ("017", 15), ("08", 8.0), ("1_000", 1000), ("+5", 5),
        ("0o-7", -7), ("0b+1", 1), ("18446744073709551615", 2**64 - 1), ("18446744073709551616", 2.0**64),
        ("+9223372036854775808", 2.0**63), ("-9223372036854775808", -(2**63)), ("1.", 1.0), (".5", 0.5), (".5_5", 0.55),
        ("1e3", 1000.0), ("1e400", "1e400"), (".5e999", ".5e999"), ("1.2.3", "1.2.3"), ("0x", "0x"), ("1__0", 10),
        (".inf", math.inf), ("-.INF", -math.inf), ("12:30", "12:30"), ("<<", "<<"), ("-", "-"), ("1e", "1e"),
        ("2001-1-2", Timestamp("2001-01-02T00:00:00Z")), ("2001-02-30", "2001-02-30"),
        ("2000-02-29", Timestamp("2000-02-29T00:00:00Z")),
        ("2001-12-14t21:59:43.10-05:00", Timestamp("2001-12-14T21:59:43.1-05:00")),
        ("2001-12-14 21:59:43", Timestamp("2001-12-14T21:59:43Z")), ("2001-12-14 21:59:43Z", "2001-12-14 21:59:43Z"),
        ("2001-12-14T21:59:43", "2001-12-14T21:59:43"), ("2001-12-14T24:00:00Z", "2001-12-14T24:00:00Z"),
        ("02001-1-1", "02001-1-1"),
    ],
)  # fmt: skip
def test_plain_scalar_means_what_it_means_to_go_yaml(text: str, value: object):
    """Types of plain scalars, in YAML 1.2 with Go's integers and with dates."""
    resolved = resolve_scalar(text)
    assert (type(resolved), resolved) == (type(value), value)


def test_date_is_unquoted_again():
    """A date that was no string is written without quotes, the same text as a string with them."""
    date = Timestamp("2001-01-01T00:00:00Z")
    assert encode([date, str(date)]).decode() == '- 2001-01-01T00:00:00Z\n- "2001-01-01T00:00:00Z"\n'


@given(st.text(max_size=20))
def test_any_string_is_written(text: str):
    """Every string that UTF-8 can hold is written, and one that must be quoted is never plain."""
    written = encode([text]).decode().removeprefix("- ")
    if must_quote(text):
        assert written[0] in '"|'
