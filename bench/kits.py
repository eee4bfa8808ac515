"""Folders that ``kitfs pack`` can pack: a small one to look at, a large one to read, many small ones to mount.

Everything is made from fixed seeds, so that a kit made twice has the same layers.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

MIB = 1 << 20

EXAMPLE_KITFILE = """\
manifestVersion: 1.0.0
package:
  name: tiny-sentiment
  version: 0.1.0
  description: A toy classifier with everything a ModelKit may hold
  authors: [the kitfs demo]
model:
  name: tiny-sentiment
  path: weights/model.safetensors
  framework: safetensors
  license: Apache-2.0
  parts:
    - name: tokenizer
      path: weights/tokenizer.json
      type: tokenizer
datasets:
  - name: reviews
    path: data/reviews.jsonl
code:
  - path: src
    description: How to load the weights
docs:
  - path: README.md
"""

EXAMPLE_CODE = '''\
"""Count the parameters of the model beside this file."""

from pathlib import Path

from safetensors.numpy import load_file

tensors = load_file(Path(__file__).parent.parent / "weights" / "model.safetensors")
print(sum(tensor.size for tensor in tensors.values()), "parameters")
'''

READ_KITFILE = """\
manifestVersion: 1.0.0
package:
  name: large
model:
  name: large
  path: weights.bin
"""


def encode_safetensors(tensors: dict[str, tuple[list[int], bytes]], dtype: str = "F32") -> bytes:
    """A safetensors file of tensors of one type (huggingface/safetensors, README, "Format").

    Args:
        tensors: Name → shape and little-endian data.
        dtype: Their type.
    """
    header: dict[str, object] = {}
    start = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values())


def _weights(shape: list[int], seed: int) -> tuple[list[int], bytes]:
    count = 1
    for extent in shape:
        count *= extent
    source = random.Random(seed)
    return shape, struct.pack(f"<{count}f", *(source.gauss(0, 0.02) for _ in range(count)))


def make_example(folder: Path) -> None:
    """Write a small ModelKit's files: weights of 1.1 MiB, a tokenizer, a dataset, code, and the Kitfile."""
    words = ["[PAD]", "[UNK]", "a", "bad", "film", "fine", "good", "great", "not", "the", "was"]
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "unk_token": "[UNK]",
                                             "vocab": {word: number for number, word in enumerate(words)}}}  # fmt: skip
    reviews = [("the film was great", 1), ("not a good film", 0), ("fine", 1), ("the film was bad", 0)]
    files = {
        "Kitfile": EXAMPLE_KITFILE.encode(),
        "README.md": b"# tiny-sentiment\n\nTwo layers that have never been trained.\n",
        "weights/model.safetensors": encode_safetensors({
            "embedding.weight": _weights([1024, 256], 1),
            "classifier.weight": _weights([2, 256], 2),
            "classifier.bias": ([2], struct.pack("<2f", 0.5, -0.5)),
        }),
        "weights/tokenizer.json": json.dumps(tokenizer, indent=1).encode() + b"\n",
        "data/reviews.jsonl": b"".join(json.dumps({"text": text, "label": label}).encode() + b"\n"
                                       for text, label in reviews),
        "src/count.py": EXAMPLE_CODE.encode(),
    }  # fmt: skip
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def make_large(folder: Path, size: int) -> Path:
    """Write a ModelKit whose model is one file of random bytes, of ``size`` bytes; returns that file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Kitfile").write_text(READ_KITFILE)
    source = random.Random(3)
    path = folder / "weights.bin"
    with path.open("wb") as stream:
        for start in range(0, size, 16 * MIB):
            stream.write(source.randbytes(min(16 * MIB, size - start)))
    return path


def make_shards(folder: Path, count: int, size: int) -> None:
    """Write safetensors shards of normally distributed bf16 weights, ``size`` bytes in all, in tensors of 8 MiB.

    The dtype says F16, which numpy can load; the bits are bf16's.
    """
    folder.mkdir(parents=True)
    for number in range(count):
        source = numpy.random.default_rng(number)
        tensors = {}
        for place in range(0, size // count, 8 * MIB):
            extent = min(8 * MIB, size // count - place) // 2
            values = source.standard_normal(extent, dtype=numpy.float32) * numpy.float32(0.02)
            tensors[f"layer.{place}"] = ([extent], (values.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes())
        encoded = encode_safetensors(tensors, "F16")
        (folder / f"model-{number}.safetensors").write_bytes(encoded)


def make_text(folder: Path, size: int) -> None:
    """Write JSON lines and prose of ``size`` bytes in all, in four files.

    The words are made: 40 000 of 2 to 11 letters, as frequent as Zipf's law has it, and 20 000 phrases of 2 to 6 of
    them, which are a sixth of what is said. So there is as much to find in the near past as in text that people wrote:
    gzip -6 leaves 0.35 to 0.40 of it.
    """
    folder.mkdir(parents=True)
    source = numpy.random.default_rng(11)
    words = _make_words(source, 40_000)
    phrases = [" ".join(words[place] for place in _choose(source, 40_000, extent))
               for extent in source.integers(2, 7, 20_000)]  # fmt: skip
    for number in range(4):
        with (folder / (f"reviews-{number}.jsonl" if number < 3 else "prose.txt")).open("wb") as stream:
            while stream.tell() < size // 4:
                stream.writelines(_make_paragraphs(source, words, phrases, stream.tell(), is_json=number < 3))
            stream.truncate(size // 4)


def _make_words(source: numpy.random.Generator, count: int) -> list[str]:
    letters = numpy.frombuffer(b"etaoinshrdlcumwfgypbvkjxqz", numpy.uint8)
    shares = 1 / numpy.arange(2, 28)
    lengths = source.integers(2, 12, count)
    drawn = letters[source.choice(26, int(lengths.sum()), p=shares / shares.sum())].tobytes().decode()
    stops = lengths.cumsum()
    return [drawn[stop - length : stop] for stop, length in zip(stops, lengths, strict=True)]


def _choose(source: numpy.random.Generator, count: int, extent: int) -> numpy.ndarray[Any, numpy.dtype[numpy.int64]]:
    """Places below ``count``, the first ones most often: the n-th about 1/n as often as the first."""
    return (count ** source.random(extent) - 1).astype(numpy.int64)


def _make_paragraphs(source: numpy.random.Generator, words: list[str], phrases: list[str], number: int, *,
                     is_json: bool) -> Iterator[bytes]:  # fmt: skip
    """2000 paragraphs of 20 to 200 words or phrases."""
    for extent in source.integers(20, 201, 2000).tolist():
        said = [words[place] for place in _choose(source, len(words), extent)]
        for place in range(0, extent, 20):
            said[place] = phrases[_choose(source, len(phrases), 1)[0]]
        text = " ".join(said) + "."
        number += 1
        record = {"id": number, "label": extent % 5, "text": text}
        yield (json.dumps(record) if is_json else text).encode() + b"\n"


ENCODERS = {
    "igzip -2": [sys.executable, "-m", "isal.igzip", "-2"],
    "igzip -1": [
        shutil.which("igzip") or sys.executable,
        *([] if shutil.which("igzip") else ["-m", "isal.igzip"]),
        "-1",
    ],
    "gzip -6": ["gzip", "-6"],
}
"""Commands that compress standard input. isal's level 2 packs weights as well as kit's Go does, with as few references
far back, and 20 times as fast. Windows of bf16 weights take 0.5 MB a GB by Go, 2.7 by zlib's level 6, which takes
matches of three bytes too."""


def write_gzip_layout(layout: Path, folder: Path, reference: str, encoder: str = "igzip -2") -> Path:
    """Write an OCI layout with one ModelKit, whose model is a folder in a tar+gzip layer; returns the layer's blob."""
    packed = layout / "layer"
    layout.mkdir(parents=True)
    with (
        packed.open("wb") as stream,
        subprocess.Popen(
            ["tar", "c", "-C", str(folder.parent), "--sort=name", folder.name], stdout=subprocess.PIPE
        ) as tar,
    ):
        subprocess.run(ENCODERS[encoder], stdin=tar.stdout, stdout=stream, check=True)
    return _write_layout(layout, packed, folder.name, reference)


def write_many_layout(layout: Path, count: int, reference: str) -> Path:
    """Write an OCI layout with one ModelKit, a tar+gzip layer of small files (1.6 KB); returns the layer's blob.

    Nine of ten files lie in folders of 1000, the others in one.
    """
    source = random.Random(9)
    words = [f"{source.randrange(1 << 30):x}" for _ in range(5000)]
    text = " ".join(source.choice(words) for _ in range(20_000)).encode()
    packed = layout / "layer"
    layout.mkdir(parents=True)
    with (
        packed.open("wb") as stream,
        subprocess.Popen([sys.executable, "-m", "isal.igzip", "-2"], stdin=subprocess.PIPE, stdout=stream) as packing,
    ):
        assert packing.stdin is not None
        for number in range(count):
            is_flat = number >= count * 9 // 10
            folder = "flat" if is_flat else f"{number // 1000:04}"
            member = tarfile.TarInfo(f"data/{folder}/sample-{number:07}.txt")
            at = source.randrange(len(text) - 3000)
            data = b"%d\n" % number + text[at : at + source.randrange(200, 3000)]
            member.size = len(data)
            packing.stdin.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
        packing.stdin.write(bytes(1024))
        packing.stdin.close()
    return _write_layout(layout, packed, "data", reference)


def _write_layout(layout: Path, packed: Path, path: str, reference: str) -> Path:
    """Write what an OCI layout has beside a model's tar+gzip layer, and put that in its place."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    kitfile = {"manifestVersion": "1.0.0", "package": {"name": path}, "model": {"path": path}}
    with packed.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    layer = packed.rename(blobs / digest)

    def put(data: object, media_type: str) -> dict[str, object]:
        raw = json.dumps(data).encode()
        digest = hashlib.sha256(raw).hexdigest()
        (blobs / digest).write_bytes(raw)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(raw)}

    manifest = put(
        {
            "schemaVersion": 2,
            "config": put(kitfile, "application/vnd.kitops.modelkit.config.v1+json"),
            "layers": [{"mediaType": "application/vnd.kitops.modelkit.model.v1.tar+gzip",
                        "digest": f"sha256:{digest}", "size": layer.stat().st_size}],
        },
        "application/vnd.oci.image.manifest.v1+json",
    )  # fmt: skip
    manifest["annotations"] = {"org.opencontainers.image.ref.name": reference}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return layer
