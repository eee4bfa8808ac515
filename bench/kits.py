"""Folders that ``kitfs pack`` can pack: a small one to look at, a large one to read, many small ones to mount.

Everything is made from fixed seeds, so that a kit made twice has the same layers.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

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


def encode_safetensors(tensors: dict[str, tuple[list[int], bytes]]) -> bytes:
    """A safetensors file of float32 tensors (huggingface/safetensors, README, "Format").

    Args:
        tensors: Name → shape and little-endian data.
    """
    header: dict[str, object] = {}
    start = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + len(data)]}
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
