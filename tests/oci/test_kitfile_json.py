"""Config blobs from strangers."""

import json
import random

import pytest

from kitfs.oci.kitfile import (
    Kitfile,
    KitfileMalformed,
    Model,
    encode_kitfile_json,
    encode_kitfile_yaml,
    parse_kitfile_json,
)
from kitfs.oci.kitfile_json import ENTRY_COUNT_MAX

MALFORMED = {
    b"": ["Expecting value"],
    b"[]": ["the config is not an object"],
    b'{"model":[]}': ["model is not an object"],
    b'{"code":{}}': ["code is not a list"],
    b'{"code":[null]}': [r"code\[0\] is not an object"],
    b'{"package":{"authors":"a"}}': ["package.authors is not a list"],
    b'{"package":{"authors":[1]}}': [r"package.authors\[0\] is not a string"],
    b'{"manifestVersion":1}': ["manifestVersion is not a string"],
    b'{"model":{"digest":"sha256:x"}}': ["model.digest is not a digest"],
    b'{"model":{"parts":[{"path":1}],"name":2},"docs":[{"path":{}}]}': [
        r"model.parts\[0\].path is not a string",
        "model.name is not a string",
        r"docs\[0\].path is not a string",
    ],
    b'{"model":{"parameters":{"a":' + b"9" * 320 + b"}}}": ["model.parameters holds a number out of range"],
    b'{"model":{},"model":{}}': ["duplicate key 'model'"],
    b'{"model":{"parameters":' + b"[" * 70 + b"]" * 70 + b"}}": ["nested deeper"],
    json.dumps({"code": [{}] * (ENTRY_COUNT_MAX + 1)}).encode(): ["16385 entries"],
}


@pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:30]))
def test_malformed_config_is_refused_with_all_problems(raw: bytes):
    """Every problem is in the error, each with its key."""
    with pytest.raises(KitfileMalformed) as caught:
        parse_kitfile_json(raw)
    for expected in MALFORMED[raw]:
        with pytest.raises(KitfileMalformed, match=expected):
            raise caught.value


def test_config_of_a_later_kit_is_read():
    """Keys that are not known are passed over, null is nothing."""
    raw = b'{"manifestVersion":"1.0.0","later":{"a":1},"model":{"name":"m","path":null,"x":[]},"code":null}'
    assert parse_kitfile_json(raw) == Kitfile(manifest_version="1.0.0", model=Model(name="m"))


def test_numbers_are_floats_as_in_go():
    """A number of a config is a float: 1000000 is regenerated as 1e+06, as kit does."""
    kitfile = parse_kitfile_json(b'{"manifestVersion":"","package":{},"model":{"parameters":[1000000,1,0.5,-0]}}')
    assert b"- 1e+06\n    - 1\n    - 0.5\n    - -0\n" in encode_kitfile_yaml(kitfile)
    assert b'"parameters":[1000000,1,0.5,-0]' in encode_kitfile_json(kitfile)


def test_mutated_config_is_read_or_refused(shared_fixtures):
    """20 000 damaged configs raise nothing but our error, and what is read can be written."""
    folder = shared_fixtures / "kit-v1.7.0/storage/blobs/sha256"
    source = (folder / "cd999e81db6f5bbbbb695d0c796e0ee9dac8c082d71b4fe67ca1a395551e800f").read_bytes()
    rng = random.Random(2)
    read = 0
    for _ in range(20_000):
        raw = bytearray(source)
        for _ in range(rng.randrange(1, 3)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(2)] = rng.choice(
                [b"", b"\xff", b'"', b"[", b"}", b"null", b"1e9", b"-", b"a", b"\\"]
            )
        try:
            kitfile = parse_kitfile_json(bytes(raw))
        except KitfileMalformed:
            continue
        read += 1
        encode_kitfile_yaml(kitfile)
        encode_kitfile_json(kitfile)
    assert 1_000 < read < 19_000
