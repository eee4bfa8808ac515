"""How little of a compressed layer is decoded for a read through a mount, counted by the worker that decodes."""

import subprocess
import sys
from pathlib import Path

import pytest

from kitfs.layer.checkpoints import SpanMap, count_directory_values
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.oci.mediatype import Compression, LayerFormat


@pytest.fixture(scope="module")
def index(weights) -> LayerIndex:
    """What is in the gzip layer."""
    indexer = LayerIndexer(LayerFormat.TAR, Compression.GZIP)
    indexer.feed(weights.gzip_layer.read_bytes())
    return indexer.finish()


@pytest.fixture
def model(request, kitfs, weights) -> Path:
    """The model's folder in a mount that nobody has read yet."""
    kitfs.run("import", weights.layouts[getattr(request, "param", "gzip")])
    assert contents(kitfs) == []
    return kitfs.mount("weights:1") / "model"


def contents(kitfs) -> list[Path]:
    """Files of members, whole or in part."""
    return [path for name in ("members", "partial") for path in (kitfs.home / name).rglob("*") if path.is_file()]


def decoded(kitfs) -> int:
    return kitfs.mounts()[0]["spans_decoded"]


def count_spans(index: LayerIndex, name: str) -> int:
    """How many spans hold bytes of a member."""
    spans = SpanMap(index.checkpoints[: count_directory_values(index.checkpoints[0])], index.size_decoded)
    member = next(member for member in index.toc if member.path.decode() == name)
    return spans.find(member.offset + member.size - 1) - spans.find(member.offset) + 1


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_decodes_into_no_file(kitfs, weights):
    """A gzip kit that is imported and mounted lies in the store as it was published, and in no other form."""
    kitfs.run("import", weights.layouts["gzip"])
    directory = kitfs.mount("weights:1")
    assert "model.safetensors" in run("import os, sys; print(os.listdir(sys.argv[1]))", directory / "model")
    assert contents(kitfs) == []
    assert decoded(kitfs) == 0


READ_4_KIB = """
import os, sys
data = [os.pread(os.open(path, os.O_RDONLY), 4096, int(sys.argv[3])) for path in sys.argv[1:3]]
assert data[0] == data[1] and len(data[0]) == 4096
"""


@pytest.mark.parametrize("model", ["gzip", "zstd"], indirect=True)
def test_a_cold_read_of_4_kib_decodes_at_most_two_spans(kitfs, model, weights):
    """Wherever a first read of 4 KiB is, it costs one span, or two where it lies across them."""
    name = "model.safetensors"
    size = (weights.source / name).stat().st_size
    before = 0
    for start in (0, size // 2 + 3, size - 4096, 5_000_000, size // 3):
        run(READ_4_KIB, model / name, weights.source / name, start)
        now = decoded(kitfs)
        assert now - before <= 2
        before = now
    assert before >= 4


READ_WHOLE = """
import sys
from pathlib import Path
assert Path(sys.argv[1]).read_bytes() == Path(sys.argv[2]).read_bytes()
"""


def test_one_of_40_members_costs_its_own_spans(kitfs, model, weights, index):
    """Each span that holds bytes of a member is decoded once, and nothing ahead of the member's end."""
    before = 0
    for number in (3, 39, 0, 17):
        name = f"{number:02}.bin"
        run(READ_WHOLE, model / name, weights.source / name)
        now = decoded(kitfs)
        assert now - before == count_spans(index, f"model/{name}")
        before = now


CROWD = """
import mmap, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
expected = Path(sys.argv[2]).read_bytes()
barrier = threading.Barrier(200)
def read(number):
    descriptor = os.open(sys.argv[1], os.O_RDONLY | (os.O_DIRECT if number % 2 else 0))
    buffer = mmap.mmap(-1, -(-len(expected) // 4096) * 4096)
    barrier.wait(60)
    assert os.preadv(descriptor, [buffer], 0) == len(expected)
    assert buffer[: len(expected)] == expected
    os.close(descriptor)
    return True
with ThreadPoolExecutor(200) as executor:
    assert all(executor.map(read, range(200)))
"""


def test_200_readers_of_a_cold_member_decode_each_span_once(kitfs, model, weights, index):
    """However many read a member at once, past the page cache too, each of its spans is decoded once."""
    run(CROWD, model / "17.bin", weights.source / "17.bin")
    assert decoded(kitfs) == count_spans(index, "model/17.bin")
