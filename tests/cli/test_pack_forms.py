"""``kitfs pack`` in every form: what is written, what is refused, and that what is stored is not written again."""

import gzip
import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest
import zstandard

from kitfs.store.fsck import check
from kitfs.store.store import Store

COMPRESSIONS = ["none", "gzip", "gzip-fastest", "zstd"]
FORMS = list(itertools.product(COMPRESSIONS, ["tar", "raw"], [False, True]))
KITFILE = """\
manifestVersion: 1.0.0
package:
  name: forms
  version: 1.2.3
  description: all forms
  license: MIT
  authors: [a, b]
model:
  path: m/w.bin
  license: Apache-2.0
  format: safetensors
  parts:
    - path: m/tokenizer.json
datasets:
  - path: data.csv
    license: MIT
code:
  - path: run.py
docs:
  - path: README.md
prompts:
  - path: system.txt
"""
MODELPACK_KINDS = {"model": "weight", "modelpart": "weight.config", "dataset": "dataset", "code": "code", "docs": "doc"}
KINDS = ["model", "modelpart", "code", "dataset", "docs", "code"]
PATHS = ["m/w.bin", "m/tokenizer.json", "run.py", "data.csv", "README.md", "system.txt"]


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of single files, and a fixed time."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    folder = tmp_path / "kit"
    (folder / "m").mkdir(parents=True, mode=0o755)
    (folder / "m").chmod(0o755)
    for number, path in enumerate(PATHS):
        (folder / path).write_bytes(hashlib.sha256(path.encode()).digest() * (60_000 if number == 0 else number))
        (folder / path).chmod(0o755 if path == "run.py" else 0o644)
    (folder / "Kitfile").write_text(KITFILE)
    return folder


@pytest.fixture
def checked(kitfs, tmp_path: Path):
    """The command; a check of the store finds nothing in the end."""
    yield kitfs
    with Store.open(tmp_path / "home") as store:
        assert check(store).problems == []


def options(form: tuple[str, str, bool]) -> list[str]:
    compression, layer_format, model_pack = form
    return ["--compression", compression, "--layer-format", layer_format, *(["--use-model-pack"] if model_pack else [])]


def read_blob(home: Path, digest: str) -> bytes:
    from kitfs.digest import Digest

    with Store.open(home) as store, store.open_content(Digest.parse(digest)) as content:
        raw = b"".join(content.iter_pieces())
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == digest
    return raw


def decode(raw: bytes, media_type: str) -> bytes:
    if media_type.endswith("+gzip"):
        return gzip.decompress(raw)
    if media_type.endswith("+zstd"):
        with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
            return reader.read()
    return raw


def media_types(form: tuple[str, str, bool]) -> list[str]:
    compression, layer_format, model_pack = form
    suffix = {"none": "", "gzip": "+gzip", "gzip-fastest": "+gzip", "zstd": "+zstd"}[compression]
    names = [f"cncf.model.{MODELPACK_KINDS[kind]}" if model_pack else f"kitops.modelkit.{kind}" for kind in KINDS]
    return [f"application/vnd.{name}.v1.{layer_format}{suffix}" for name in names]


@pytest.mark.parametrize("form", [form for form in FORMS if not (form[2] and form[1] == "raw" and form[0] != "none")])
def test_each_form_holds_the_same_files(checked, kit: Path, tmp_path: Path, form: tuple[str, str, bool]):
    """Media types are kit's or model-spec's, the config's digests are right, and unpacking gives the tree."""
    home = tmp_path / "home"
    manifest_digest = checked("-q", "pack", kit, "-t", "forms:1", *options(form)).out.strip()
    manifest = json.loads(read_blob(home, manifest_digest))
    layers = manifest["layers"]
    assert [layer["mediaType"] for layer in layers] == media_types(form)
    assert [layer["annotations"]["org.cncf.model.filepath"] for layer in layers] == PATHS
    assert layers[-1]["annotations"]["ml.kitops.modelkit.layer-subtype"] == "prompt"
    decoded = [decode(read_blob(home, layer["digest"]), layer["mediaType"]) for layer in layers]
    diff_ids = [f"sha256:{hashlib.sha256(raw).hexdigest()}" for raw in decoded]
    if form[1] == "raw":
        assert decoded == [(kit / path).read_bytes() for path in PATHS]
        metadata = [json.loads(layer["annotations"]["org.cncf.model.file.metadata+json"]) for layer in layers]
        assert [entry["mode"] for entry in metadata] == [0o644, 0o644, 0o755, 0o644, 0o644, 0o644]
        assert metadata[0]["size"] == len(decoded[0]) and metadata[0]["name"] == "w.bin"
    kitfile = json.loads(read_config(home, manifest))
    entries = [kitfile["model"], kitfile["model"]["parts"][0], kitfile["code"][0], kitfile["datasets"][0],
               kitfile["docs"][0], kitfile["prompts"][0]]  # fmt: skip
    assert [entry["digest"] for entry in entries] == [layer["digest"] for layer in layers]
    assert [entry["diffId"] for entry in entries] == diff_ids
    if form[2]:
        assert json.loads(read_blob(home, manifest["config"]["digest"])) == expected_model_config(diff_ids)
    assert checked("unpack", "forms:1", "-d", tmp_path / "out").code == 0
    for path in PATHS:
        assert (tmp_path / "out" / path).read_bytes() == (kit / path).read_bytes()
        assert (tmp_path / "out" / path).stat().st_mode == (kit / path).stat().st_mode
    assert "wrong" not in checked("verify", "forms:1").out


def read_config(home: Path, manifest: dict) -> bytes:
    """The Kitfile of a ModelKit or ModelPack; both say what they are."""
    if manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json":
        assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
        return manifest["annotations"]["ml.kitops.modelkit.kitfile"].encode()
    assert manifest["artifactType"] == "application/vnd.kitops.modelkit.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.kitops.modelkit.config.v1+json"
    return read_blob(home, manifest["config"]["digest"])


def expected_model_config(diff_ids: list[str]) -> dict:
    return {
        "descriptor": {
            "createdAt": "2023-11-14T22:13:20Z",
            "authors": ["a", "b"],
            "name": "forms",
            "version": "1.2.3",
            "licenses": ["Apache-2.0", "MIT"],
            "title": "forms",
            "description": "all forms",
        },
        "modelfs": {"type": "layers", "diffIds": diff_ids},
        "config": {"format": "safetensors"},
    }


@pytest.mark.parametrize("form", [form for form in FORMS if form[2] and form[1] == "raw" and form[0] != "none"])
def test_raw_layers_of_a_modelpack_are_not_compressed(kitfs, kit: Path, form: tuple[str, str, bool]):
    """There is no media type for them: refused before anything is read."""
    done = kitfs("pack", kit, "-t", "forms:1", *options(form))
    assert done.code == 2
    assert f"a ModelPack can not hold raw layers compressed by {form[0]}; use --layer-format tar or" in done.err
    assert len(kitfs("list").out.splitlines()) == 1


def test_modelpack_can_not_hold_mcp_servers(kitfs, kit: Path):
    """All of them are named."""
    (kit / "a.mcpb").write_bytes(b"PK")
    (kit / "b.mcpb").write_bytes(b"PK")
    servers = "mcpServers:\n  - {name: one, path: a.mcpb}\n  - {name: two, path: b.mcpb}\n"
    (kit / "Kitfile").write_text(KITFILE + servers)
    done = kitfs("pack", kit, "--use-model-pack")
    assert done.code == 2 and "a ModelPack can not hold mcpServers (one, two)" in done.err


def test_raw_layers_are_single_files(kitfs, kit: Path):
    """Every path that is a directory is named at once, with its line."""
    (kit / "Kitfile").write_text("model:\n  path: m\ncode:\n  - path: run.py\ndocs:\n  - path: .\n")
    done = kitfs("pack", kit, "--layer-format", "raw")
    assert done.code == 2
    wanted = "is a directory, and a raw layer is the bytes of one file"
    assert f"  * line 2: m {wanted}\n  * line 6: . {wanted}\n" in done.err
    assert "run.py" not in done.err


def test_raw_layers_are_not_left_out(kitfs, kit: Path):
    """Every file that .kitignore leaves out is named at once."""
    (kit / ".kitignore").write_text("*.md\nrun.py\n")
    (kit / "Kitfile").write_text("code:\n  - path: run.py\ndocs:\n  - path: README.md\n")
    done = kitfs("pack", kit, "--layer-format", "raw")
    assert done.code == 2
    wanted = "is no file, or is left out by .kitignore; a raw layer is the bytes of one file"
    assert f"  * run.py {wanted}\n  * README.md {wanted}\n" in done.err


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_same_on_any_number_of_cores(kitfs, kit: Path, compression: str, tmp_path: Path, monkeypatch):
    """With one core and with all, into an empty store or not, a tree has one ModelKitID."""
    packed = [kitfs("-q", "pack", kit, "--compression", compression).out for _ in range(2)]
    cores = os.sched_getaffinity(0)
    monkeypatch.setenv("KITFS_HOME", str(tmp_path / "other"))
    os.sched_setaffinity(0, {min(cores)})
    try:
        packed.append(kitfs("-q", "pack", kit, "--compression", compression).out)
    finally:
        os.sched_setaffinity(0, cores)
    assert packed[0].startswith("sha256:") and len(set(packed)) == 1


def written_size() -> int:
    """Bytes that this process has handed to write(2) and its like."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


@pytest.mark.parametrize(
    "form", [("none", "tar"), ("none", "raw"), ("gzip", "tar"), ("gzip-fastest", "raw"), ("zstd", "tar")]
)
def test_layers_that_are_stored_are_not_written(checked, kit: Path, form: tuple[str, str]):
    """Packed again, for another ModelKit, weights of 8 MiB cause hardly any writing."""
    (kit / "m/w.bin").write_bytes(os.urandom(8 << 20))
    before = written_size()
    first = checked("-q", "pack", kit, "-t", "a:1", *options((*form, False)))
    assert written_size() - before > 8 << 20
    (kit / "Kitfile").write_text(KITFILE.replace("name: forms", "name: other"))
    before = written_size()
    again = checked("pack", kit, "-t", "b:1", "--progress", "plain", *options((*form, False)))
    assert written_size() - before < 1 << 20
    assert "model m/w.bin, as stored  8.0 MiB" in again.err
    assert again.code == 0 and first.out.strip() not in again.out
    assert checked("verify", "b:1").code == 0


@pytest.mark.parametrize("form", [("none", "tar"), ("gzip", "tar"), ("none", "raw")])
def test_other_bytes_of_the_same_shape_are_written(checked, kit: Path, tmp_path: Path, form: tuple[str, str]):
    """A file of the same name, mode and size with one other byte near its end is a new layer."""
    first = checked("-q", "pack", kit, "-t", "a:1", *options((*form, False))).out
    data = bytearray((kit / "m/w.bin").read_bytes())
    data[-7] ^= 1
    (kit / "m/w.bin").write_bytes(data)
    second = checked("-q", "pack", kit, "-t", "a:2", *options((*form, False))).out
    assert first != second
    assert checked("unpack", "a:2", "-d", tmp_path / "out").code == 0
    assert (tmp_path / "out/m/w.bin").read_bytes() == data


def test_a_stored_layer_that_has_rotted_is_written_again(checked, kit: Path, tmp_path: Path):
    """What is stored under a digest and is other bytes is not taken for the layer, and is put right."""
    arguments = ["-q", "pack", kit, "-t", "a:1", "--compression", "gzip"]
    first = checked(*arguments).out.strip()
    layer = json.loads(read_blob(tmp_path / "home", first))["layers"][0]["digest"].removeprefix("sha256:")
    path = tmp_path / "home/blobs/sha256" / layer[:2] / layer
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"rot")
    assert checked(*arguments).out.strip() == first
    read_blob(tmp_path / "home", f"sha256:{layer}")
