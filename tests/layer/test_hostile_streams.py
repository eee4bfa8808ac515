"""What hostile gzip and zstd layers cost the indexer: 64 MiB of memory, and 2 s of CPU beyond what their size explains.

zstd frames may ask for a window of 128 MiB, as `zstd` itself reads, and have that besides.

Each is indexed in a process of its own, forked from one without threads, whose peak of resident memory is its own.
"""

import gzip
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard

MIB = 1 << 20
CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")

DRIVER = """
import json, os, re, sys, time
from kitfs.layer.builders import find_library
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.indexer import LayerIndexer
from kitfs.oci.mediatype import Compression, LayerFormat

def memory(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+)", status.read()).group(1)) << 10

def run(path, layer_format, compression, options):
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before, start = memory("VmHWM"), time.process_time()
    reason = ""
    try:
        indexer = LayerIndexer(LayerFormat(layer_format), Compression(compression), limits=DecodeLimits(**options))
        with open(path, "rb") as stream:
            while piece := stream.read(1 << 20):
                indexer.feed(piece)
        size = indexer.finish().size_decoded
    except LayerMalformed as error:
        reason, size = error.reason, indexer.size_decoded
    print(json.dumps([reason, size, memory("VmHWM") - before, time.process_time() - start]), flush=True)

find_library()
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(*json.loads(line))
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(json.dumps(["the process ended", 0, 0, 0]), flush=True)
"""


@pytest.fixture(scope="module")
def driver():
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()
    assert process.returncode == 0


def cost(driver, path: Path, compression: str, layer_format: str = "raw", **options: int) -> tuple:
    """Reason of refusal or "", decoded bytes, peak of memory, CPU seconds."""
    driver.stdin.write(json.dumps([str(path), layer_format, compression, options]) + "\n")
    driver.stdin.flush()
    return tuple(json.loads(driver.stdout.readline()))


def deflate(chunk: bytes, count: int, wbits: int = 31) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join(encoder.compress(chunk) for _ in range(count)) + encoder.flush()


def empty_blocks(count: int, data: bytes = b"") -> bytes:
    """A member of some data and stored blocks that hold nothing."""
    blocks = b"".join(
        b"\0" + struct.pack("<HH", len(part), len(part) ^ 0xFFFF) + part
        for part in (data[at : at + 32_768] for at in range(0, len(data), 32_768))
    )
    trailer = struct.pack("<II", zlib.crc32(data), len(data))
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + blocks + b"\0\0\0\xff\xff" * count + b"\3\0" + trailer


def zstd_frame(*blocks: bytes, window: bytes = b"\x58") -> bytes:
    return b"\x28\xb5\x2f\xfd\0" + window + b"".join(blocks)


RLE_BLOCK = (128 << 10 << 3 | 1 << 1).to_bytes(3, "little") + b"x"
NAMED = b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * 4000 + b"\0\3\0" + bytes(8)
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 0)


def bomb() -> bytes:
    return deflate(bytes(MIB), 48) * 8


USUAL = {"free_size": 256 * MIB}
CASES = {
    "bomb": (lambda: deflate(bytes(MIB), 400), "gzip", "raw", USUAL, "decompression bomb"),
    "bomb of members": (bomb, "gzip", "raw", USUAL, "decompression bomb"),
    "bomb in a bomb": (lambda: gzip.compress(bomb()), "gzip", "tar", USUAL, "its tar is refused"),
    "bomb behind noise": (
        lambda: gzip.compress(bytes(range(256)) * 4096, 0) + bomb() * 2, "gzip", "raw", USUAL, "decompression bomb"
    ),
    "empty members": (lambda: gzip.compress(b"") * 500_000, "gzip", "raw", {}, "hold next to nothing"),
    "names of 4000 bytes": (lambda: NAMED * 5000, "gzip", "raw", {}, "hold next to nothing"),
    "endless name": (lambda: NAMED[:10] + b"n" * 40 * MIB, "gzip", "raw", {}, "gzip header above"),
    "blocks without content": (lambda: empty_blocks(2_000_000), "gzip", "raw", {}, ""),
    "blocks without content where one is due": (
        lambda: empty_blocks(2_000_000, bytes(512 << 10)), "gzip", "raw", {}, ""
    ),
    "padding": (lambda: gzip.compress(b"x") + bytes(40 * MIB) + b"x", "gzip", "raw", {}, "garbage after the end"),
    "zstd bomb": (lambda: zstd_frame(RLE_BLOCK * 5000), "zstd", "raw", USUAL, "decompression bomb"),
    "zstd bomb of frames": (
        lambda: zstandard.compress(bytes(32 * MIB), 1) * 20, "zstd", "raw", USUAL, "decompression bomb"
    ),
    "zstd with a large window": (
        lambda: zstd_frame(RLE_BLOCK * 600, b"\7\0\0", window=b"\x88"), "zstd", "raw", USUAL, "kind 3"
    ),
    "skippable frames": (lambda: SKIPPABLE * 500_000, "zstd", "raw", {}, "hold next to nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_hostile_streams_cost_little(driver, name, tmp_path):
    """Refused by name (or harmless), 64 MiB of memory or a zstd window, 2 s of CPU and what bytes take."""
    make, compression, layer_format, options, expected = CASES[name]
    raw = make()
    path = tmp_path / "layer"
    path.write_bytes(raw)
    reason, size, memory, cpu_s = cost(driver, path, compression, layer_format, **options)
    print(f"{name}: {reason[:60]!r}, {size >> 20} MiB out of {len(raw) >> 10} KiB, {memory >> 20} MiB, {cpu_s:.2f} s")
    assert expected in reason
    assert bool(reason) == bool(expected)
    assert memory <= (64 + 128 * ("window" in name)) * MIB
    assert cpu_s <= 2 + (len(raw) + size) / (200 * MIB)


def test_a_preallocated_tensor_is_no_bomb(driver, tmp_path):
    """Zeros, 1030 to 1, are indexed like anything else, in bounded memory; 12 GiB of them are refused in a campaign."""
    path = tmp_path / "layer"
    path.write_bytes(deflate(bytes(MIB), 384))
    reason, size, memory, _ = cost(driver, path, "gzip")
    assert (reason, size) == ("", 384 * MIB)
    assert memory <= 64 * MIB
    if CAMPAIGN:
        member = path.read_bytes()
        path.write_bytes(member * 32)
        reason, size, memory, cpu_s = cost(driver, path, "gzip")
        assert "decompression bomb" in reason
        assert size <= (8 << 30) + 256 * path.stat().st_size
        assert memory <= 64 * MIB
        print(f"a bomb of 12 GiB: {cpu_s:.1f} CPU-seconds, {memory >> 20} MiB")
