"""A Kitfile guessed for a folder: what real kit 1.7.0 wrote for the same folders, byte for byte."""

import os
from pathlib import Path

import pytest

from kitfs.modelkit.generate import FolderNotFound, NameUnusable, generate
from kitfs.oci.kitfile import Package, encode_kitfile_yaml, validate_kitfile

CASES = [
    (
        "shards",
        {
            "config.json": 1,
            "model-00001-of-00002.safetensors": 500,
            "model-00002-of-00002.safetensors": 300,
            "model.safetensors.index.json": 1,
            "tokenizer.json": 200,
            "README.md": 5,
        },
        """\
manifestVersion: 1.0.0
model:
  path: model-00001-of-00002.safetensors
  parts:
    - path: model-00002-of-00002.safetensors
    - path: config.json
    - path: model.safetensors.index.json
    - path: tokenizer.json
docs:
  - path: README.md
    description: Readme file
""",
    ),
    (
        "a-largest",
        {"llama-q4.gguf": 100, "llama-q8.gguf": 301, "README": 3},
        """\
manifestVersion: 1.0.0
model:
  name: llama-q8
  path: llama-q8.gguf
  parts:
    - path: llama-q4.gguf
docs:
  - path: README
    description: Readme file
""",
    ),
    (
        "one-model",
        {"onnx/model.onnx": 900, "config.json": 5, "docs/a/b.md": 3},
        """\
manifestVersion: 1.0.0
model:
  name: onnx/model
  path: onnx/model.onnx
  parts:
    - path: config.json
docs:
  - path: docs
""",
    ),
    (
        "model-folder",
        {"onnx/model.onnx": 9, "onnx/small.onnx": 9, "onnx/config.json": 7, "onnx/vocab.txt": 7},
        """\
manifestVersion: 1.0.0
model:
  path: onnx/model.onnx
  parts:
    - path: onnx/small.onnx
    - path: onnx/config.json
    - path: onnx/vocab.txt
""",
    ),
    (
        "no-model",
        {"config.json": 5, "data/train.csv": 5, "data/test.parquet": 7, "data/about.json": 3, "x.zip": 1},
        """\
manifestVersion: 1.0.0
datasets:
  - path: x.zip
  - path: data
  - path: config.json
""",
    ),
    (
        "notebooks",
        {"notebooks/a.ipynb": 5, "src/a.py": 4, "pages/x.md": 4, "requirements.txt": 4},
        """\
manifestVersion: 1.0.0
code:
  - path: src
  - path: notebooks
datasets:
  - path: requirements.txt
docs:
  - path: pages
""",
    ),
    (
        "mixed",
        {"m/a.bin": 400, "m/run.py": 4, "d/x.csv": 4, "d/y.md": 4},
        """\
manifestVersion: 1.0.0
model:
  name: m/a
  path: m/a.bin
code:
  - path: d
  - path: m
""",
    ),
    (
        "deeper",
        {"data/a/x.csv": 5, "weights/b/x.bin": 4, "void": None},
        """\
manifestVersion: 1.0.0
code:
  - path: data
  - path: void
  - path: weights
""",
    ),
    (
        "five-folders",
        {"dir0/x.py": 3, "dir1/x.py": 3, "dir2/x.py": 3, "dir3/x.py": 3, "dir4/x.py": 3, "src/x": 3},
        """\
manifestVersion: 1.0.0
code:
  - path: src
  - path: dir0
  - path: dir1
  - path: dir2
  - path: dir3
  - path: dir4
""",
    ),
    (
        "six-folders",
        {"dir0/x.py": 3, "dir1/x.py": 3, "dir2/x.py": 3, "dir3/x.py": 3, "dir4/x.py": 3, "dir5/x.py": 3, "src/x": 3},
        """\
manifestVersion: 1.0.0
code:
  - path: .
""",
    ),
    (
        "hidden",
        {".env": 3, ".git/HEAD": 4, ".hidden.csv": 3, ".bin": 4},
        """\
manifestVersion: 1.0.0
model:
  path: .bin
code:
  - path: .
datasets:
  - path: .hidden.csv
""",
    ),
    (
        "upper-case",
        {"MODEL.SAFETENSORS": 3, "kitfile": 3, ".kitfile": 4, "LICENCE": 3, "ReadMe.TXT": 3},
        """\
manifestVersion: 1.0.0
code:
  - path: .
docs:
  - path: ReadMe.TXT
    description: Readme file
""",
    ),
    (
        "awkward-names",
        {"yes.json": 5, "- x.json": 4, "a: b.csv": 3, "é ü.csv": 4, "#h.md": 1, "nl\nx.pdf": 1},
        """\
manifestVersion: 1.0.0
datasets:
  - path: 'a: b.csv'
  - path: é ü.csv
  - path: '- x.json'
  - path: yes.json
docs:
  - path: '#h.md'
  - path: |-
      nl
      x.pdf
""",
    ),
    (
        "empty",
        {},
        """\
manifestVersion: 1.0.0
""",
    ),
]
"""Name, files with their sizes (None: an empty folder), and what ``kit init`` made of them."""


def fill(folder: Path, files: dict[str, int | None]) -> Path:
    """Make files of given sizes."""
    folder.mkdir()
    for name, size in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            path.mkdir()
        else:
            path.write_bytes(bytes(size))
    return folder


@pytest.mark.parametrize(("files", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_kitfile_is_what_kit_makes(tmp_path: Path, files: dict[str, int | None], expected: str):
    """Models, parts, datasets, code and docs are found as kit finds them, and the result is a valid Kitfile."""
    generated = generate(fill(tmp_path / "folder", files), Package())
    assert encode_kitfile_yaml(generated.kitfile).decode() == expected
    assert generated.warnings == ()
    validate_kitfile(generated.kitfile)


def license_places(folder: Path) -> dict[str, str]:
    """Which sections of a folder's Kitfile got a licence."""
    kitfile = generate(folder, Package(name="n")).kitfile
    places = {"model": kitfile.model.license if kitfile.model else ""}
    places |= {f"dataset {entry.path}": entry.license for entry in kitfile.datasets}
    places |= {f"code {entry.path}": entry.license for entry in kitfile.code}
    return {place: name for place, name in (places | {"package": kitfile.package.license}).items() if name}


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"m.bin": 1, "x.csv": 1, "src/x": 1}, "model"),
        ({"x.csv": 1, "src/x": 1}, "dataset x.csv"),
        ({"x.csv": 1, "y.csv": 1, "src/x": 1}, "code src"),
        ({"x.csv": 1, "y.csv": 1}, "package"),
    ],
)
def test_a_licence_goes_where_it_says_most(tmp_path: Path, files: dict[str, int | None], place: str):
    """To the model, else the only dataset, else the only code, else the whole; the file itself is docs."""
    folder = fill(tmp_path / "folder", files)
    (folder / "License.md").write_text("https://creativecommons.org/publicdomain/zero/1.0/")
    assert license_places(folder) == {place: "CC0-1.0"}
    [docs] = generate(folder, Package()).kitfile.docs
    assert (docs.path, docs.description) == ("License.md", "License file")


def test_an_unknown_licence_is_said(tmp_path: Path):
    """A licence that is not known is packed, named in a warning, and in no section."""
    folder = fill(tmp_path / "folder", {"LICENSE.txt": 10, "m.bin": 1})
    assert license_places(folder) == {}
    assert generate(folder, Package()).warnings == ("unable to determine the license in LICENSE.txt",)


def test_the_last_licence_counts(tmp_path: Path):
    """Of several licence files the last by name decides, as with kit."""
    folder = fill(tmp_path / "folder", {"m.bin": 1})
    for name, url in (("LICENSE-a", "licenses/by/4.0"), ("LICENSE-b", "publicdomain/zero/1.0")):
        (folder / name).write_text(f"https://creativecommons.org/{url}/")
    assert license_places(folder) == {"model": "CC0-1.0"}


def test_links_and_special_files_are_passed_over(tmp_path: Path):
    """What pack does not pack is in no section, and neither is what a mount shows beside the ModelKit."""
    folder = fill(tmp_path / "folder", {"m.bin": 1, ".kitfs/manifest.json": 3})
    (folder / "link.bin").symlink_to("m.bin")
    (folder / "model").symlink_to(".")
    (folder / "LICENSE").symlink_to("/nowhere")
    os.mkfifo(folder / "x.py")
    kitfile = generate(folder, Package()).kitfile
    assert (kitfile.model.path, kitfile.model.parts, kitfile.code, kitfile.docs) == ("m.bin", (), (), ())


def test_a_name_that_is_not_text(tmp_path: Path):
    """A file whose name is not UTF-8 is refused by name where a section would name it, and not below ``code: .``."""
    folder = fill(tmp_path / "folder", {"x.py": 1})
    (folder / os.fsdecode(b"\xff.py")).write_bytes(b"")
    assert [code.path for code in generate(folder, Package()).kitfile.code] == ["."]
    (folder / os.fsdecode(b"\xff.bin")).write_bytes(b"")
    with pytest.raises(NameUnusable, match=r"xff\.bin"):
        generate(folder, Package())


def test_no_folder(tmp_path: Path):
    """Neither a missing folder nor a file is a folder."""
    (tmp_path / "file").write_bytes(b"")
    for name in ("missing", "file"):
        with pytest.raises(FolderNotFound):
            generate(tmp_path / name, Package())
