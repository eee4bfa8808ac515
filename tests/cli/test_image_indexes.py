"""Image indexes from the command line: what a ModelKit names survives export and import, and a repair mends it."""

import json

import pytest

ANNOTATION = "org.kitfs.index"


@pytest.fixture
def packed(kitfs, tmp_path):
    """A packed ModelKit of two layers; the digests of its image indexes."""
    context = tmp_path / "context"
    for name, data in {"w/a": b"weights" * 50_000, "docs/b": b"text"}.items():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_bytes(data)
    kitfile = {"manifestVersion": "1.0.0", "model": {"name": "m", "path": "w"}, "docs": [{"path": "docs"}]}
    (context / "Kitfile").write_text(json.dumps(kitfile))
    assert kitfs("pack", context, "-t", "mine:1", "--progress", "none").code == 0
    return indexes_of(tmp_path / "home")


def blob(home, digest):
    return home / "blobs/sha256" / digest[7:9] / digest[7:]


def indexes_of(home):
    """What the descriptors of the one ModelKit in a store name."""
    for path in (home / "blobs").rglob("*"):
        if path.is_file() and path.stat().st_size < 10_000 and b'"layers":' in path.read_bytes():
            return [layer["annotations"][ANNOTATION] for layer in json.loads(path.read_bytes())["layers"]]
    raise AssertionError("no manifest")


@pytest.mark.parametrize("name", ["layout", "layout.tar"])
def test_they_survive_export_and_import(kitfs, tmp_path, monkeypatch, packed, name):
    """Image indexes are not exported, and another store that imports the ModelKit has the same ones, verified."""
    assert kitfs("export", "mine:1", tmp_path / name, "--progress", "none").code == 0
    if name == "layout":
        assert not any((tmp_path / name / "blobs/sha256" / digest[7:]).exists() for digest in packed)
    expected = [blob(tmp_path / "home", digest).read_bytes() for digest in packed]
    monkeypatch.setenv("KITFS_HOME", str(tmp_path / "other"))
    done = kitfs("import", tmp_path / name, "--progress", "none")
    assert (done.code, done.err.count("warning")) == (0, 0), done.err
    assert [blob(tmp_path / "other", digest).read_bytes() for digest in packed] == expected
    assert kitfs("gc").code == 0
    assert kitfs("fsck", "--read-data").code == 0
    assert [blob(tmp_path / "other", digest).read_bytes() for digest in packed] == expected


def test_a_missing_one_is_named_and_mended(kitfs, tmp_path, packed):
    """`fsck` names an image index that is gone, with exit code 1; `--repair` makes it anew; then all is well."""
    path = blob(tmp_path / "home", packed[0])
    expected = path.read_bytes()
    path.unlink()
    found = kitfs("fsck", "--format", "json")
    assert (found.code, found.json["findings"][0]["name"]) == (1, packed[0])
    assert kitfs("fsck", "--repair").code == 1
    assert path.read_bytes() == expected
    assert kitfs("fsck", "--repair").code == 0
    done = kitfs("verify", "mine:1", "--format", "json")
    assert done.code == 0
    parts = {part["digest"]: part for part in done.json["parts"]}
    assert [parts[digest]["part"] for digest in packed] == ["index", "index"]


def test_a_corrupt_one_is_named_by_verify(kitfs, tmp_path, packed):
    """`verify` ends with exit code 6 for an image index with other bytes, and the command that it names mends it."""
    path = blob(tmp_path / "home", packed[1])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    done = kitfs("verify", "mine:1", "-q")
    assert (done.code, done.out.split()) == (6, [packed[1]])
    assert "kitfs fsck --read-data --repair" in kitfs("verify", "mine:1").out
    assert kitfs("fsck", "--read-data", "--repair").code == 1
    assert kitfs("verify", "mine:1").code == 0


def test_a_rebuilt_index_has_them(kitfs, tmp_path, packed):
    """`fsck --rebuild-index` keeps image indexes, and makes those anew that are gone."""
    path = blob(tmp_path / "home", packed[0])
    path.unlink()
    done = kitfs("fsck", "--rebuild-index", "--format", "json", "--progress", "none")
    assert (done.code, [item["name"] for item in done.json["findings"]]) == (1, [packed[0]])
    assert path.exists()
    assert kitfs("fsck", "--rebuild-index", "--progress", "none").code == 0
    assert kitfs("gc").code == 0
    assert path.exists() and kitfs("verify", "mine:1").code == 0
