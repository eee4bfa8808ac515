"""Indexing: one pass finds digests, members and span checksums, whatever the pieces, or refuses the layer."""

import dataclasses
import gzip
import hashlib
import json
import threading
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.digest import Digest, checksum
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.indexer import RAW_MODE, LayerIndex, LayerIndexer
from kitfs.layer.spans import SPAN_SIZE, SpanWriter, first_spans, span_count
from kitfs.oci.mediatype import Compression, LayerFormat, parse_layer_type
from kitfs.store.records import TocMember

TAR, RAW = LayerFormat.TAR, LayerFormat.RAW
NONE, GZIP, ZSTD = Compression.NONE, Compression.GZIP, Compression.ZSTD
COMPRESS = {NONE: bytes, GZIP: gzip.compress, ZSTD: zstandard.compress}


def index(raw: bytes, layer_format=TAR, compression=NONE, *, size: int | None = None, **options) -> LayerIndex:
    indexer = LayerIndexer(layer_format, compression, **options)
    for at in range(0, len(raw), size or len(raw) or 1):
        indexer.feed(raw[at : at + (size or len(raw))])
    return indexer.finish()


def sha256(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("compression", list(Compression))
def test_members_digests_and_sizes_are_found(tar_of, files, compression):
    """The index holds the digests of blob, decoded stream and each file, with places that are right."""
    raw = tar_of(files)
    published = COMPRESS[compression](raw)
    found = index(published, compression=compression, size=100_000)
    assert (found.digest, found.size) == (sha256(published), len(published))
    assert (found.diff_id, found.size_decoded) == (sha256(raw), len(raw))
    assert {member.path.decode(): member.digest for member in found.toc} == {
        name: sha256(data).raw for name, data in files.items()
    }
    for member in found.toc:
        assert raw[member.offset : member.offset + member.size] == files[member.path.decode()]
    assert found.record.member_count == len(files)
    assert found.record.size_members == sum(map(len, files.values()))
    assert (found.record.format, found.record.compression) == ("tar", compression.value)


def test_span_checksums_are_those_of_members(tar_of, files):
    """A plain layer has one checksum per 128 KiB of each file, in order, counted from the file's start."""
    found = index(tar_of(files))
    expected = b"".join(
        checksum(data[at : at + SPAN_SIZE]) for data in files.values() for at in range(0, len(data), SPAN_SIZE)
    )
    assert found.span_checksums == expected
    assert first_spans(found.toc)[-1] * 16 == len(expected)
    assert index(zstandard.compress(tar_of(files)), compression=ZSTD).span_checksums == b""


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("data", [b"", b"weights" * 100_000])
def test_a_raw_layer_is_one_member(compression, data):
    """A raw layer's index has one file with an empty path, the decoded bytes themselves."""
    found = index(COMPRESS[compression](data), RAW, compression)
    assert found.toc == [TocMember(b"", 0, RAW_MODE, len(data), 0, sha256(data).raw)]
    assert found.diff_id == sha256(data)
    spans = {NONE: span_count(len(data)), GZIP: min(len(data), 1), ZSTD: 0}
    assert len(found.span_checksums) == 16 * spans[compression]


@given(st.data())
@settings(max_examples=40)
def test_any_pieces_give_the_same_index(tar_of, files, data):
    """No split of the published bytes, and no kind of buffer, changes the index."""
    compression = data.draw(st.sampled_from(list(Compression)))
    published = COMPRESS[compression](tar_of(files))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(published) - 1), max_size=20)))
    buffer = data.draw(st.sampled_from([bytes, bytearray, memoryview]))
    indexer = LayerIndexer(TAR, compression)
    for start, stop in zip([0, *cuts], [*cuts, len(published)], strict=True):
        piece = buffer(published[start:stop])
        indexer.feed(piece)
        if isinstance(piece, bytearray):
            piece[:] = bytes(len(piece))  # the caller's again
    assert indexer.finish() == index(published, compression=compression)


def test_a_digest_that_the_caller_has_is_taken(tar_of, files):
    """Without hashing of its own the index is the same with the digest given, and an error without."""
    raw = tar_of(files)
    indexer = LayerIndexer(TAR, NONE, hashes_blob=False)
    indexer.feed(raw)
    assert indexer.finish(sha256(raw)) == index(raw)
    indexer = LayerIndexer(TAR, NONE, hashes_blob=False)
    indexer.feed(raw)
    with pytest.raises(ValueError, match="digest"):
        indexer.finish()


def test_every_layer_of_other_programs_is_indexed_as_they_describe_it(shared_fixtures: Path):
    """Layers of eight programs: size and digest as in the manifest, diff_id as in kit's config, files as unpacked."""
    seen = 0
    for path in sorted(shared_fixtures.glob("*/**/blobs/sha256/*")):
        raw = path.read_bytes()
        manifest = json.loads(raw) if raw.startswith(b'{"schemaVersion"') else {}
        diff_ids: dict[str, str] = {}
        if manifest.get("config"):
            config = json.loads((path.parent / manifest["config"]["digest"][7:]).read_bytes())
            diff_ids = dict(find_diff_ids(config))
        for descriptor in manifest.get("layers") or []:
            kind = parse_layer_type(descriptor["mediaType"])
            found = index(
                (path.parent / descriptor["digest"][7:]).read_bytes(), kind.format, kind.compression, size=5000
            )
            assert (str(found.digest), found.size) == (descriptor["digest"], descriptor["size"])
            assert str(found.diff_id) == diff_ids.get(descriptor["digest"], str(found.diff_id))
            seen += 1
    assert seen >= 70


def find_diff_ids(value):
    if isinstance(value, dict):
        if "digest" in value and "diffId" in value:
            yield value["digest"], value["diffId"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from find_diff_ids(item)


@pytest.mark.parametrize(
    ("published", "layer_format", "compression", "reason"),
    [
        pytest.param(gzip.compress(b"x"), TAR, NONE, "its tar is refused", id="gzip named tar"),
        pytest.param(bytes(1024), TAR, GZIP, "not a gzip stream", id="tar named gzip"),
        pytest.param(bytes(1024), TAR, ZSTD, "not a zstd stream", id="tar named zstd"),
        pytest.param(gzip.compress(gzip.compress(bytes(1024))), TAR, GZIP, "its tar is refused", id="gzip in gzip"),
        pytest.param(gzip.compress(b""), TAR, GZIP, "empty", id="no tar in the gzip"),
        pytest.param(b"", TAR, NONE, "empty", id="no bytes"),
        pytest.param(b"", RAW, GZIP, "empty", id="no gzip"),
        pytest.param(gzip.compress(bytes(1024))[:-1], TAR, GZIP, "cut short", id="cut gzip"),
    ],
)
def test_a_body_that_is_not_what_its_type_says_is_refused(published, layer_format, compression, reason):
    """A layer whose bytes are another format than its media type is LayerMalformed, from feed or finish."""
    with pytest.raises(LayerMalformed, match=reason):
        index(published, layer_format, compression)


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_a_refusal_is_final_and_names_the_place(tar_of, compression, size):
    """A bad member late in a layer, small or large, is refused with member and offset, and stays refused."""
    raw = tar_of({"good": bytes(size), "a/../b": b"x"})
    published = COMPRESS[compression](raw)
    indexer = LayerIndexer(TAR, compression, limits=DecodeLimits(ratio=1 << 20))
    with pytest.raises(LayerMalformed, match=r"'\.\.'") as caught:
        for at in range(0, len(published), 50_000):
            indexer.feed(published[at : at + 50_000])
        indexer.finish()
    assert "a/../b" in caught.value.reason
    assert caught.value.offset == 512 + -(-size // 512) * 512
    for again in (lambda: indexer.feed(b"x"), indexer.finish):
        with pytest.raises(LayerMalformed) as second:
            again()
        assert second.value is caught.value


def test_limits_reach_the_decoder(tar_of):
    """Limits given to the indexer bound what it decodes."""
    published = gzip.compress(tar_of({"zeros": bytes(10_000_000)}))
    with pytest.raises(LayerMalformed, match="more than"):
        index(published, compression=GZIP, limits=DecodeLimits(decoded_size=1_000_000))


@pytest.mark.parametrize("name", ["fine", "a/../b"])
def test_an_unfinished_indexer_leaves_no_thread(tar_of, name):
    """An import that fails half way, or whose layer is refused, leaves no thread of its indexer."""
    before = set(threading.enumerate())
    indexer = LayerIndexer(TAR, NONE)
    raw = tar_of({"large": bytes(3 << 20), name: b"x"})
    indexer.feed(raw[: 2 << 20])
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    if name == "fine":
        del indexer
    else:
        with pytest.raises(LayerMalformed):
            indexer.feed(raw[2 << 20 :])
            indexer.finish()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 2 * SPAN_SIZE + 2), min_size=1, max_size=6),
    st.lists(st.integers(1, SPAN_SIZE + 9), min_size=1),
)
def test_spans_do_not_depend_on_pieces(sizes, pieces):
    """Checksums of members are those of their 128 KiB pieces, whatever is fed at a time."""
    writer = SpanWriter()
    expected = b""
    for number, size in enumerate(sizes):
        data = memoryview(bytes((number + 1,)) * size)
        expected += b"".join(checksum(data[at : at + SPAN_SIZE]) for at in range(0, size, SPAN_SIZE))
        at = 0
        while at < size:
            for piece in pieces:
                writer.update(data[at : at + piece])
                at += piece
        writer.end_member()
    assert bytes(writer.checksums) == expected


def test_an_index_is_a_value(tar_of):
    """Two passes over the same bytes give equal indexes, and an index can not be changed."""
    raw = tar_of({"a": b"b"})
    assert index(raw) == index(raw)
    with pytest.raises(dataclasses.FrozenInstanceError):
        index(raw).size = 1
