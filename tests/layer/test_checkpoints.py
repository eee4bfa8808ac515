"""Checkpoints of gzip streams by any encoder: every span decodes alone, whatever found them, in whatever pieces."""

import gzip
import hashlib
import importlib.util
import io
import random
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.layer import builders, span_builder
from kitfs.layer.block_inflater import SPACING, BlockInflater, Checkpoint
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.gzip_stream import GzipDecoder
from kitfs.layer.indexer import LayerIndexer
from kitfs.layer.inflate import InflateUnusable, load_zlib, load_zlib_ng
from kitfs.layer.span_decode import SpanBroken, decode_span, decode_span_behind
from kitfs.layer.sparse_window import find_references, make_sparse, pack_window, unpack
from kitfs.oci.mediatype import Compression, LayerFormat

_SPEC = importlib.util.spec_from_file_location("encoders", Path(__file__).with_name("encoders.py"))
encoders = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(encoders)
CONTENTS, ENCODERS, MIB = encoders.CONTENTS, encoders.ENCODERS, encoders.MIB
check_spans, encode, index, map_of = encoders.check_spans, encoders.encode, encoders.index, encoders.map_of

GZIP, RAW, TAR = Compression.GZIP, LayerFormat.RAW, LayerFormat.TAR


def find_checkpoints(library, raw: bytes, spacing: int = SPACING, size: int = MIB) -> list[Checkpoint]:
    found: list[Checkpoint] = []
    decoder = GzipDecoder(DecodeLimits(), BlockInflater(library, found.append, spacing))
    for at in range(0, len(raw), size):
        for _ in decoder.feed(memoryview(raw)[at : at + size]):
            pass
    decoder.close()
    return found


@pytest.mark.parametrize("encoder", ["isal 1", "pigz", "bgzip"])
def test_a_long_stream_has_spans_of_even_length(encoder, tmp_path):
    """8 MiB of weights give a span about every 512 KiB, and each decodes right."""
    data = CONTENTS["weights"](8 * MIB)
    raw = encode(encoder, data, tmp_path)
    found = index(raw)
    count = check_spans(raw, data, found)
    assert len(data) / SPACING * 0.7 <= count <= len(data) / SPACING
    spans = map_of(found)
    assert max(spans.range(span)[1] - spans.range(span)[0] for span in range(count)) < 2 * SPACING


@pytest.mark.parametrize("encoder", ["isal 0", "zlib-ng 1"])
def test_a_stream_without_boundaries_has_no_checkpoints(encoder):
    """One block of more than 16 MiB is indexed without checkpoints, in bounded memory, and still with its digests."""
    data = CONTENTS["weights"](8 * MIB) * 3
    raw = ENCODERS[encoder](data)
    indexer = LayerIndexer(RAW, GZIP)
    indexer.feed(raw)
    found = indexer.finish()
    assert (found.checkpoints, found.span_checksums) == ([], b"")
    assert found.diff_id.raw == hashlib.sha256(data).digest()


@given(st.data())
@settings(max_examples=60)
def test_pieces_do_not_change_checkpoints(data):
    """No split of the published bytes, down to single ones, changes a checkpoint, at any spacing."""
    content = data.draw(st.sampled_from(sorted(CONTENTS)))
    encoder = data.draw(st.sampled_from(sorted(ENCODERS)))
    plain = CONTENTS[content](data.draw(st.sampled_from([0, 1, 5000, 90_000, 300_000])))
    raw = ENCODERS[encoder](plain)
    spacing = data.draw(st.sampled_from([1, 1000, 32 << 10, 100_000]))
    library = data.draw(st.sampled_from([load_zlib_ng(), load_zlib()]))
    expected = find_checkpoints(load_zlib_ng(), raw, spacing)
    size = data.draw(st.sampled_from([7, 100, 4096, 65_537]) | st.integers(1, 100_000))
    assert find_checkpoints(library, raw, spacing, max(size, len(raw) // 5000)) == expected
    found = index(raw, spacing, max(size, len(raw) // 500))
    check_spans(raw, plain, found)
    if found.checkpoints:
        spans = map_of(found)
        bits = [spans.bit(span) + spans.lead(span)[1] for span in range(spans.count)]
        assert bits == [checkpoint.bit for checkpoint in expected]


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 9), st.integers(1, 700), st.integers(1, 50))
def test_any_data_has_right_spans_in_single_bytes(part, level, spacing, repeats):
    """Small streams fed byte by byte, at any spacing: the same index as in one piece, and right spans."""
    plain = b"".join(part[number % len(part) :] for number in range(repeats))
    raw = gzip.compress(plain, level)
    found = index(raw, spacing, 1)
    assert found == index(raw, spacing)
    check_spans(raw, plain, found)


def test_a_layer_of_tar_has_spans_of_the_whole_tar():
    """Spans are of the decoded tar, headers included, and the same whether it is indexed as tar or as bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"f{number}")
            info.size = 200_000
            tar.addfile(info, io.BytesIO(random.Random(number).randbytes(200_000)))
    raw = gzip.compress(stream.getvalue())
    found = index(raw, 100_000, layer_format=TAR)
    assert check_spans(raw, stream.getvalue(), found) >= 5
    assert found.checkpoints == index(raw, 100_000).checkpoints


@given(st.data())
@settings(max_examples=40)
def test_windows_keep_what_is_referred_to(data):
    """With every byte that is not found to be referred to set to something else, a span still decodes right."""
    plain = CONTENTS[data.draw(st.sampled_from(["weights", "text", "mixed"]))](200_000)
    raw = ENCODERS[data.draw(st.sampled_from(["zlib 1", "zlib 6", "zlib 9", "isal 2"]))](plain)
    for checkpoint in find_checkpoints(load_zlib_ng(), raw, 50_000)[1:]:
        view = memoryview(raw)[checkpoint.bit // 8 :]
        start = checkpoint.offset - checkpoint.window_size
        places = find_references(view, checkpoint.bit % 8, checkpoint.window_size)
        window = bytearray(data.draw(st.sampled_from([b"\0", b"\xff", b"?"])) * checkpoint.window_size)
        for place in places:
            window[place] = plain[start + place]
        size = len(plain) - checkpoint.offset
        assert decode_span(view, checkpoint.bit % 8, bytes(window), size) == plain[checkpoint.offset :]
        packed = pack_window(make_sparse(plain[start : checkpoint.offset], view, checkpoint.bit % 8).data)
        assert len(packed) < checkpoint.window_size // 2
        assert decode_span(view, checkpoint.bit % 8, unpack(packed), size) == plain[checkpoint.offset :]


@pytest.mark.parametrize("encoder", ["GNU gzip 6", "pigz", "zlib 6", "zlib 9"])
def test_large_windows_of_weights_are_not_kept(encoder, tmp_path):
    """Where weights copy much from before a span, decoding begins earlier: 3 MiB of them cost below 1.5 KB/MB."""
    plain = CONTENTS["weights"](3 * MIB)
    raw = encode(encoder, plain, tmp_path)
    found = index(raw)
    count = check_spans(raw, plain, found)
    spans = map_of(found)
    leads = [spans.lead(span)[0] for span in range(count)]
    assert leads[0] == 0
    assert all(0 < lead <= 128 << 10 for lead in leads[1:])
    assert sum(map(len, found.checkpoints)) + len(found.span_checksums) < 1.5e-3 * len(plain)
    first = spans.published_range(1)[0]
    for damaged in (raw[:first] + bytes(100) + raw[first + 100 :], raw[: first + 20]):
        view = memoryview(damaged)[first : spans.published_range(1)[1]]
        size = spans.range(1)[1] - spans.range(1)[0]
        try:
            decoded = decode_span_behind(view, spans.bit(1) % 8, bytes(32 << 10), size, spans.lead(1))
        except SpanBroken:
            continue
        assert decoded != plain[spans.range(1)[0] : spans.range(1)[1]]


@given(st.data())
@settings(max_examples=15)
def test_leads_are_right_at_any_spacing(data):
    """Small spacings, where leads, members and blocks lie close to each other, give spans that decode right."""
    encoder = data.draw(st.sampled_from(["zlib 6", "zlib 9", "zlib-ng 6", "concatenated", "full flush"]))
    plain = CONTENTS[data.draw(st.sampled_from(["weights", "text", "mixed"]))](400_000)
    raw = ENCODERS[encoder](plain)
    spacing = data.draw(st.sampled_from([1000, 20_000, 50_000, 100_000, 200_000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(span_builder, "_WINDOW_LIGHT", data.draw(st.sampled_from([0, 512])))
        patch.setattr(span_builder, "_LEAD_GAIN", data.draw(st.sampled_from([0, 1, 2])))
        check_spans(raw, plain, index(raw, spacing, data.draw(st.sampled_from([50_000, MIB]))))


def test_spans_that_do_not_decode_are_broken():
    """Cut data, another bit, too large a size, no data: SpanBroken, or other bytes, never anything else."""
    plain = CONTENTS["text"](300_000)
    raw = ENCODERS["zlib 6"](plain)
    checkpoint = find_checkpoints(load_zlib_ng(), raw, 100_000)[1]
    view = memoryview(raw)[checkpoint.bit // 8 :]
    size = len(plain) - checkpoint.offset
    window = plain[checkpoint.offset - checkpoint.window_size : checkpoint.offset]
    for data, shift, wanted in (
        (view[: len(view) // 2], checkpoint.bit % 8, size),
        (view[:1], checkpoint.bit % 8, size),
        (view[:0], checkpoint.bit % 8, size),
        (view, checkpoint.bit % 8, size + 1),
        (memoryview(bytes(view) + b"\x1f\x8b\x07" + bytes(20)), checkpoint.bit % 8, size + 1),
        (memoryview(bytes(view) + b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 9), checkpoint.bit % 8, size + 1),
    ):
        with pytest.raises(SpanBroken):
            decode_span(data, shift, window, wanted)
    for shift in range(8):
        try:
            decoded = decode_span(view, shift, window, size)
        except SpanBroken:
            continue
        assert (decoded == plain[checkpoint.offset :]) == (shift == checkpoint.bit % 8)


def test_too_much_published_data_gives_up(monkeypatch):
    """Millions of empty blocks, which decode to nothing, are not collected without bound."""
    monkeypatch.setattr(span_builder, "PUBLISHED_SIZE_MAX", 1 << 20)
    encoder = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = encoder.compress(b"x" * 1000) + encoder.flush(zlib.Z_FULL_FLUSH)
    body += b"\0\0\0\xff\xff" * 500_000 + encoder.flush()
    raw = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + struct.pack("<II", zlib.crc32(b"x" * 1000), 1000)
    found = index(raw, size=64 << 10)
    assert (found.size_decoded, found.checkpoints) == (1000, [])


def test_the_first_library_that_passes_its_test_is_used(monkeypatch, caplog):
    """zlib-ng passes; where it is absent or gives other checkpoints zlib is used; where none passes, none is."""
    builders.find_library.cache_clear()
    assert builders.find_library().name == "zlib-ng"

    def fail():
        raise InflateUnusable("zlib-ng", "not here")

    for libraries, expected in (((fail, load_zlib), "zlib"), ((fail,), None)):
        monkeypatch.setattr(builders, "_LIBRARIES", libraries)
        builders.find_library.cache_clear()
        library = builders.find_library()
        assert (library.name if library else None) == expected
    assert "not here" in caplog.text
    found = index(gzip.compress(b"x" * 1000))
    assert (found.checkpoints, found.span_checksums, found.size_decoded) == ([], b"", 1000)
    monkeypatch.undo()
    builders.find_library.cache_clear()


def test_a_library_that_differs_is_refused(monkeypatch):
    """A library that finds other places than are known, or another length, is not used."""
    monkeypatch.setattr(builders, "_CHECKPOINTS", [(0, 0, 0), (318, 620, 620)])
    for load in (load_zlib_ng, load_zlib):
        with pytest.raises(InflateUnusable, match="other blocks"):
            builders.check_library(load())
