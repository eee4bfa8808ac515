"""Encoders × contents × sizes: every span decodes alone, ranges read through a store are right, builders agree.

By default sizes to 64 KiB of everything, 1 MiB and 8 MiB of some, 64 MiB once; all of it with ``KITFS_CAMPAIGN``.
"""

import gzip
import hashlib
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kitfs.layer.block_inflater import SPACING
from kitfs.layer.indexer import LayerIndexer
from kitfs.layer.inflate import load_zlib, load_zlib_ng
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.store import Store

_SPEC = importlib.util.spec_from_file_location("encoders", Path(__file__).with_name("encoders.py"))
encoders = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(encoders)
MIB = encoders.MIB

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
KINDS = ("weights", "text", "zeros", "noise")
SMALL = (0, 1, 511, 512, (32 << 10) - 1, 32 << 10, (32 << 10) + 1)
LARGE = {
    # By default what makes blocks of its own kind, or none; 8 MiB where spans come about in an own way.
    "weights": {"GNU gzip 6": 8 * MIB, "zlib-ng 1": MIB, "igzip 1": MIB, "isal 0": MIB, "pigz -i": MIB, "bgzip": MIB},
    "text": {"GNU gzip 9": MIB, "isal 2": MIB, "zlib-ng 6": MIB, "libdeflate 6": MIB, "concatenated": MIB},
    "zeros": {"GNU gzip 1": MIB, "libdeflate 12": MIB, "isal 3": 8 * MIB},
    "noise": {"zlib 6": MIB, "full flush": MIB, "pigz": MIB},
}
NAMES = [*encoders.COMMANDS, *encoders.ENCODERS]
RANGES = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    with Store.open(tmp_path_factory.mktemp("matrix") / "home") as store:
        yield store


def sizes_of(encoder: str, kind: str) -> list[int]:
    wanted = [*SMALL, MIB, 8 * MIB, 64 * MIB] if CAMPAIGN else [*SMALL, LARGE[kind].get(encoder, 0)]
    return sorted({min(size, encoders.SIZE_MAX.get(encoder, size)) for size in wanted})


def add(store: Store, streams: list[bytes]) -> list:
    """Store raw gzip layers in one change; their indexes."""
    indexes = []
    with store.lease("test") as lease:
        change = store.change(lease)
        for raw in streams:
            with store.ingest(lease) as ingest:
                indexer = LayerIndexer(LayerFormat.RAW, Compression.GZIP, hashes_blob=False)
                ingest.write(raw)
                indexer.feed(raw)
                found = indexer.finish(ingest.commit_blob())
            change.add_blob(found.digest, len(raw))
            change.add_layer(found.digest, found.record, found.toc, found.span_checksums, found.checkpoints)
            indexes.append(found)
        change.commit()
    return indexes


def check_ranges(store: Store, found, data: bytes, rng: random.Random) -> None:
    """Ranges of a stored layer, of all lengths and at its borders, are those of the data."""
    with LayerReader(store, found.digest) as reader:
        member = reader.open_member(0)
        ranges = [(0, min(len(data), 4 * MIB)), (max(len(data) - 1216, 0), len(data))]
        for border in range(SPACING, min(len(data), 3 * SPACING), SPACING):
            ranges.append((border - 1, min(border + 65_536, len(data))))
        for _ in range(RANGES if len(data) >= MIB else 3):
            start = rng.randrange(len(data) + 1)
            ranges.append((start, min(len(data), start + rng.choice((1, 4096, 131_072, 1 << 20)))))
        for start, stop in ranges:
            assert member.read(start, stop) == data[start:stop]


def check(store: Store, cases: list[tuple[bytes, bytes]], seed: str) -> int:
    """All that must hold of some streams and their contents; how many spans they have."""
    rng = random.Random(seed)
    count = 0
    for (raw, data), found in zip(cases, add(store, [raw for raw, _ in cases]), strict=True):
        assert gzip.decompress(raw) == data
        count += encoders.check_spans(raw, data, found)
        assert encoders.index(raw, library=load_zlib()) == found
        piece = rng.choice((1000, 4095, 70_001, 3 * MIB)) if len(raw) > 5000 else 1
        assert encoders.index(raw, size=max(piece, len(raw) // 2000), library=load_zlib_ng()) == found
        check_ranges(store, found, data, rng)
    return count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", NAMES)
def test_every_span_and_range_of_every_encoder_is_right(store, encoder, kind, tmp_path):
    """Spans alone, ranges through a store, and both libraries' indexes agree with what zlib decodes, at every size."""
    cases = []
    for size in sizes_of(encoder, kind):
        data = encoders.content(kind, size)
        cases.append((encoders.encode(encoder, data, tmp_path), data))
    count = check(store, cases, f"{encoder} {kind}")
    print(f"{encoder}, {kind}: {len(cases)} streams, {count} spans")
    size = max(len(data) for _, data in cases)
    if kind in ("weights", "noise") and size > 2 * SPACING and encoder not in encoders.ONE_BLOCK:
        assert count >= size // SPACING * 0.7


def test_64_mib_are_right(store, tmp_path):
    """A long stream of weights is right from end to end, and has spans of the length that is asked for."""
    data = encoders.content("weights", 8 * MIB) * 8
    raw = encoders.encode("isal 1", data, tmp_path)
    assert check(store, [(raw, data)], "long") >= 120


def test_layers_of_kits_go_are_right(store, shared_fixtures):
    """The gzip layers that kit's releases wrote: spans, ranges and both libraries' indexes, at a small spacing too."""
    cases = []
    for path in sorted(shared_fixtures.glob("kit-v*/**/blobs/sha256/*")):
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):
            plain = gzip.decompress(raw)
            cases.append((raw, plain))
            encoders.check_spans(raw, plain, encoders.index(raw, 20_000, layer_format=LayerFormat.TAR))
    assert len(cases) >= 10
    check(store, cases, "kit")


RAPIDGZIP = """
import hashlib, sys, rapidgzip
with rapidgzip.open(sys.argv[1], parallelization=1) as stream:
    for start, size in zip(map(int, sys.argv[2::2]), map(int, sys.argv[3::2])):
        stream.seek(start)
        print(hashlib.sha256(stream.read(size)).hexdigest())
"""


@pytest.mark.parametrize("encoder", ["GNU gzip 6", "isal 1", "bgzip", "pigz -i"])
@pytest.mark.skipif(
    importlib.util.find_spec("rapidgzip") is None, reason="rapidgzip, a second oracle, is not installed"
)
def test_rapidgzip_agrees(store, encoder, tmp_path):
    """A second decoder with random access, in a process of its own, gives the same bytes of the same ranges."""
    data = encoders.content("text", 8 * MIB if CAMPAIGN else MIB)
    raw = encoders.encode(encoder, data, tmp_path)
    (tmp_path / "stream.gz").write_bytes(raw)
    rng = random.Random(encoder)
    ranges = [(rng.randrange(len(data) - 5000), rng.choice((1, 4096, 5000))) for _ in range(20)]
    command = [
        sys.executable,
        "-c",
        RAPIDGZIP,
        tmp_path / "stream.gz",
        *(str(part) for pair in ranges for part in pair),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout.split()
    with LayerReader(store, add(store, [raw])[0].digest) as reader:
        member = reader.open_member(0)
        expected = [hashlib.sha256(member.read(start, start + size)).hexdigest() for start, size in ranges]
    assert found == expected
