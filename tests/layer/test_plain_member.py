"""Members of plain layers that are kept whole: read from the blob, and files once they were read through."""

import os
import random

import pytest

from kitfs.digest import Digest
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.finisher import shared_finisher
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import Compression

MIB = 1 << 20


@pytest.fixture
def shards() -> dict[str, bytes]:
    rng = random.Random(3)
    return {"large": rng.randbytes(2 * MIB + 5), "small": rng.randbytes(1000)}


@pytest.fixture
def index(layers, tar_of, shards):
    return layers.add(tar_of(shards), Compression.NONE)


def read(member) -> bytes:
    return b"".join(bytes(member.read(at, min(at + 100_000, member.size))) for at in range(0, member.size, 100_000))


def members(layers) -> set[str]:
    return {path.name for path in layers.store.layout.content("members").glob("*/*")}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(Materialise.AUTO, {"large"}), (Materialise.NEVER, set()), (Materialise.ALWAYS, {"large", "small"})],
)
def test_a_member_that_was_read_through_becomes_a_file(layers, index, shards, policy, expected):
    """As the policy says; it is read from its file afterwards, even when the blob is gone."""
    with LayerReader(layers.store, index.digest, materialise=policy) as reader:
        opened = {name: reader.open_member(at) for at, name in enumerate(shards)}
        assert {name: read(member) for name, member in opened.items()} == shards
        assert shared_finisher().wait_idle(60)
        assert members(layers) == {Digest.of(shards[name]).hex for name in expected}
        assert {name for name, member in opened.items() if member.state == "native"} == expected
        os.truncate(layers.blob_path(index.digest), 0)
        for name in expected:
            assert read(opened[name]) == shards[name]


def test_a_look_into_a_member_copies_nothing(layers, index, shards):
    """A few reads of a large member leave it in its blob."""
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        for start in range(0, MIB, 4096):
            assert bytes(member.read(start, start + 10)) == shards["large"][start : start + 10]
        assert shared_finisher().wait_idle(60)
        assert members(layers) == set()
        assert member.state == "lazy"


def test_rot_in_the_blob_never_becomes_a_file(layers, index, shards):
    """A span that differs is an error for its reader and for the copy; nothing is placed."""
    path = layers.blob_path(index.digest)
    path.chmod(0o600)
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        assert read(member) == shards["large"]
        with path.open("r+b") as file:
            file.seek(index.toc[0].offset + MIB)
            file.write(b"rot")
        assert shared_finisher().wait_idle(60)
        assert members(layers) <= {Digest.of(shards["large"]).hex}  # it may have been copied before
        if not members(layers):
            with pytest.raises(LayerCorrupt):
                read(member)
        else:
            assert read(member) == shards["large"]
