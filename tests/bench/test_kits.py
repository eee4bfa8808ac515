import zlib
from pathlib import Path

from bench.kits import MIB, make_shards, make_text


def read_all(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_made_weights_compress_as_bf16_does(tmp_path: Path):
    """Made weights have their size and compress to about 0.78, as real bf16 does, the same each time."""
    for name in ("a", "b"):
        make_shards(tmp_path / name, 2, 1 * MIB)
    data = read_all(tmp_path / "a")
    assert data == read_all(tmp_path / "b")
    assert 1 * MIB < len(data) < 1 * MIB + 4096
    assert 0.77 < len(zlib.compress(data, 6)) / len(data) < 0.80


def test_made_text_compresses_as_prose_does(tmp_path: Path):
    """Made text has exactly its size and leaves gzip a third to two fifths, the same each time."""
    for name in ("a", "b"):
        make_text(tmp_path / name, 1 * MIB)
    data = read_all(tmp_path / "a")
    assert data == read_all(tmp_path / "b")
    assert len(data) == 1 * MIB
    assert 0.33 < len(zlib.compress(data, 6)) / len(data) < 0.40
