"""Members that are known go into a new layer's index without being hashed, and the index is the same."""

import random
from itertools import chain

import pytest

from kitfs.archive.tar_toc import MemberKind
from kitfs.archive.tar_write import END_OF_ARCHIVE, encode_member_header, padding
from kitfs.digest import Digest
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.indexer import LayerIndexer
from kitfs.layer.known_layer import KnownLayer
from kitfs.layer.ranges import RANGE_SIZE
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.stamp import settle, stamp_of

RNG = random.Random(17)
WEIGHTS = RNG.randbytes(3 * RANGE_SIZE + 12345)
TEXT = RNG.randbytes(300_000)
PARENT = {"config": TEXT, "empty": b"", "weights": WEIGHTS, "z": b"last"}
FIRST = RANGE_SIZE - 512 - 1024  # of which the member behind it begins at a range's first byte


def parts(files):
    for name, data in files.items():
        header = encode_member_header(name.encode(), kind=MemberKind.FILE, size=len(data), mode=0o644)
        yield name, header, data, padding(len(data))


def plain(files):
    return b"".join(chain.from_iterable(part[1:] for part in parts(files))) + END_OF_ARCHIVE


@pytest.fixture
def split(layers):
    """A store and what puts a tar into it, split."""

    def add(raw):
        store = layers.store
        with store.lease("split") as lease, store.split_ingest(lease) as ingest:
            indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE)
            indexer.feed(raw)
            ingest.write(raw)
            index = indexer.finish()
            ingest.commit(index.toc)
            change = store.change(lease)
            change.add_blob(index.digest, index.size)
            change.add_layer(index.digest, index.record, index.toc, index.span_checksums, index.checkpoints)
            change.commit()
        return index.digest

    return layers.store, add


def index_known(store, layer, files):
    """The index of a tar whose members are looked for in a layer, and what was hashed of it beside the layer."""
    indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE)
    found = 0
    with LayerReader(store, layer) as reader:
        known_layer = KnownLayer(store, reader)
        places = {member.path.decode(): index for index, member in enumerate(reader.toc)}
        for name, header, data, end in parts(files):
            indexer.feed(header)
            known = known_layer.find(places[name]) if PARENT.get(name) == data else None
            if known is None:
                indexer.feed(data)
            else:
                found += 1
                indexer.expect(known.member)
                for piece in known.pieces:
                    indexer.feed(piece)
            indexer.feed(end)
    indexer.feed(END_OF_ARCHIVE)
    return indexer.finish(), found


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        ({}, 3),
        ({"config": RNG.randbytes(len(TEXT))}, 2),
        ({"config": TEXT[:-600]}, 2),
        ({"config": RNG.randbytes(len(TEXT) + RANGE_SIZE)}, 2),
        ({"config": RNG.randbytes(FIRST)}, 2),
        ({"weights": WEIGHTS[:-1]}, 2),
        ({"weights": b""}, 2),
        ({"empty": WEIGHTS, "z": TEXT}, 2),
    ],
)
def test_index_of_known_members_is_that_of_all_bytes(split, changed, count):
    """Digest, members, checksums of spans and digests of ranges are found as by hashing all, wherever members lie."""
    store, add = split
    files = PARENT | changed
    indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE)
    indexer.feed(plain(files))
    assert index_known(store, add(plain(PARENT)), files) == (indexer.finish(), count)


def test_ranges_of_a_member_at_the_same_place_are_known(split):
    """Ranges whole in a member are known where it begins at the same place of a range, and nowhere else."""
    store, add = split
    with LayerReader(store, add(plain(PARENT))) as reader:
        (part,) = (
            KnownLayer(store, reader).find(index) for index, member in enumerate(reader.toc) if member.size > RANGE_SIZE
        )
        member = part.member
        assert sorted(member.find_ranges(member.offset)) == [1, 2]
        assert sorted(member.find_ranges(member.offset + 2 * RANGE_SIZE)) == [3, 4]
        assert member.find_ranges(member.offset + 512) == {}
        assert list(member.find_ranges(member.offset).values()) == list(
            member.find_ranges(member.offset + 2 * RANGE_SIZE).values()
        )


def test_nothing_is_known_of_other_layers(layers):
    """Of a layer that is kept whole, or compressed, no member is known: what is written of it is hashed."""
    raw = plain({"a": TEXT, "b": b"b"})
    for compression in Compression:
        digest = layers.add(raw, compression).digest
        with LayerReader(layers.store, digest) as reader:
            assert KnownLayer(layers.store, reader).find(0) is None


def test_rot_in_a_trusted_file_is_noticed(split):
    """A file whose stamp holds and whose bytes differ gives an error, and no bytes that would get into a new layer."""
    store, add = split
    digest = add(plain(PARENT))
    path = store.layout.member(Digest.of(WEIGHTS))
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(5_000_000)
        file.write(bytes([WEIGHTS[5_000_000] ^ 1]))
    stamp = stamp_of(path.stat())
    settle(stamp)
    with store.lease("as rot leaves it") as lease:
        change = store.change(lease)
        change.add_member(Digest.of(WEIGHTS), len(WEIGHTS), stamp)
        change.commit()
    with LayerReader(store, digest) as reader:
        part = KnownLayer(store, reader).find(2)
        assert store.is_member_trusted(Digest.of(WEIGHTS))
        with pytest.raises(LayerCorrupt):
            list(part.pieces)


def test_another_member_than_the_known_one_is_a_mistake(split):
    """Bytes that are not where the known member is said to be end the index, and give none."""
    store, add = split
    with LayerReader(store, add(plain(PARENT))) as reader:
        part = KnownLayer(store, reader).find(0)
    indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE)
    indexer.expect(part.member)
    with pytest.raises(ValueError, match="not the one"):
        indexer.feed(plain({"config": TEXT}))
