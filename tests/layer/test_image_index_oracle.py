"""The image index of a gzip layer, against one that is made in plain Python by the words of the format's page."""

import gzip
import hashlib
import importlib.util
import struct
from pathlib import Path

import pytest
from isal import igzip_lib

from kitfs.digest import checksum
from kitfs.layer.image_index import encode_image_index


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


encoders, slow_inflate = _load("encoders"), _load("slow_inflate")
weights, text = encoders.weights, encoders.text


def runs_of(window: bytes) -> bytes:
    """A window as the format has it, byte by byte."""
    runs: list[tuple[int, bytearray]] = []
    zeros = 5
    for offset, byte in enumerate(window):
        if not byte:
            zeros += 1
        elif zeros >= 5:
            runs.append((offset, bytearray((byte,))))
            zeros = 0
        else:
            runs[-1][1].extend(bytes(zeros) + bytes((byte,)))
            zeros = 0
    fields = [len(window), len(runs), *(offset for offset, _ in runs), *(len(run) for _, run in runs)]
    return struct.pack(f"<{len(fields)}H", *fields) + b"".join(run for _, run in runs)


def image_index_of(raw: bytes) -> tuple[bytes, list]:
    """The image index of a raw layer that is compressed by gzip."""
    stream = slow_inflate.decode(raw)
    spans = slow_inflate.find_spans(raw, stream)
    decoded = bytes(stream.decoded)
    diff_id = hashlib.sha256(decoded).digest()
    parts = [b"KITFSIMG", struct.pack("<HBBII", 1, 1, 1, 1, len(spans)), hashlib.sha256(raw).digest()]
    parts += [struct.pack("<Q", len(raw)), diff_id, struct.pack("<QQ", len(decoded), stream.stop)]
    parts += [struct.pack("<BHQQH", 0, 0o644, len(decoded), 0, 0), diff_id]
    stops = [span.offset for span in spans[1:]] + [len(decoded)]
    parts += [checksum(decoded[span.offset : stop]) for span, stop in zip(spans, stops, strict=True)]
    parts += [struct.pack("<Q", span.bit) for span in spans] + [struct.pack("<Q", span.offset) for span in spans]
    parts += [struct.pack("<I", span.lead) for span in spans] + [struct.pack("<I", span.lead_bits) for span in spans]
    parts += [span.range_digest for span in spans] + [runs_of(span.window) for span in spans]
    return b"".join(parts), spans


LAYERS = {
    "weights": lambda: gzip.compress(weights(2_300_000), 6, mtime=0),
    "text": lambda: gzip.compress(text(2_900_000), 6, mtime=0),
    "text, then weights": lambda: gzip.compress(text(1_200_000) + weights(1_800_000) + text(900_000), 6, mtime=0),
    "isal": lambda: igzip_lib.compress(text(700_000) + weights(1_400_000), 1, igzip_lib.COMP_GZIP),
    "members and padding": lambda: encoders.concatenate(weights(900_000) + text(1_200_000)),
    "members": lambda: b"".join(gzip.compress(text(at), 9, mtime=0) for at in (530_000, 500_000, 20_000, 510_000, 0)),
    "zeros": lambda: gzip.compress(bytes(3_000_000), 9, mtime=0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_image_index_is_what_its_format_says(name):
    """Checkpoints, leads, windows and ranges by the written rules are those of the code, to the byte."""
    raw = LAYERS[name]()
    expected, spans = image_index_of(raw)
    assert len(spans) > 1 or name == "zeros"
    if name in ("weights", "text, then weights"):
        assert any(span.lead for span in spans)
    if name in ("text", "text, then weights", "isal"):
        assert any(span.window for span in spans)
    assert encode_image_index(encoders.index(raw)) == expected
