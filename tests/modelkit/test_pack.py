"""Packing: the bytes that kit packs, and what stays out."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from kitfs import __version__
from kitfs.digest import Digest
from kitfs.modelkit.pack import pack
from kitfs.oci.kitfile import parse_kitfile_json
from kitfs.oci.manifest import Manifest, parse_manifest
from kitfs.oci.reference import Reference, parse_reference
from kitfs.store.records import KIND_FILE
from kitfs.store.store import Store

EPOCH_S = 1_700_000_000


def reference(text: str) -> Reference:
    return parse_reference(text)


def manifest_of(store: Store, digest: Digest) -> Manifest:
    return parse_manifest(store.read_blob(digest))


def members(store: Store, digest: Digest) -> dict[str, tuple[int, int]]:
    """Paths of all layers of a ModelKit with mode and size; a file in two layers would show as a duplicate."""
    found: dict[str, tuple[int, int]] = {}
    for layer in manifest_of(store, digest).layers:
        for member in store.get_toc(layer.digest):
            if member.kind == KIND_FILE:
                name = os.fsdecode(member.path)
                assert name not in found
                found[name] = (member.mode, member.size)
    return found


def tree(folder: Path, files: dict[str, str], kitfile: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "Kitfile").write_text(kitfile)
    return folder


@pytest.fixture
def sources(shared_fixtures: Path, tmp_path: Path) -> Path:
    """The trees that kit packed, with the modes and the empty folder that git does not keep."""
    target = tmp_path / "sources"
    shutil.copytree(shared_fixtures / "source", target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)
    (target / "myllm/eval/empty-dir").mkdir(mode=0o755)
    for path in target.rglob("lora.safetensors"):
        path.chmod(0o600)
    return target


@pytest.fixture
def kits_manifests(shared_fixtures: Path) -> list[dict[str, Any]]:
    """All manifests that kit 1.7.0 wrote."""
    found = []
    for path in (shared_fixtures / "kit-v1.7.0/storage/blobs/sha256").iterdir():
        if path.stat().st_size < 100_000 and (raw := path.read_bytes()).startswith(b'{"schemaVersion"'):
            found.append(json.loads(raw))
    return found


def test_layers_and_config_are_kits_byte_for_byte(store: Store, sources: Path, kits_manifests: list[dict[str, Any]]):
    """The four source trees give the layer digests and the config digest of kit 1.7.0."""
    pack(store, sources / "myllm", sources / "myllm/Kitfile.full", [reference("myllm:3.1.4")])
    pack(store, sources / "one-file", None, [reference("one-file:1")])
    pack(store, sources / "whole", None, [reference("whole:dot")])
    pack(store, sources / "tuned", None, [reference("tuned:1")])
    expected = {
        (manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"]))
        for manifest in kits_manifests
        if manifest["layers"]
    }
    packed = 0
    for _, _, record in store.iter_tags():
        manifest = manifest_of(store, record.manifest)
        assert (str(manifest.config.digest), *(str(layer.digest) for layer in manifest.layers)) in expected
        packed += 1
    assert packed == 4


def test_manifest_says_where_when_who_and_by_what(store: Store, sources: Path):
    """Form of kit 1.10: artifact type, each layer's path, creation time, authors, program."""
    context = sources / "myllm"
    digest = pack(store, context, context / "Kitfile.full", [reference("a:1"), reference("a:2")], created_s=EPOCH_S)
    manifest = manifest_of(store, digest)
    assert manifest.artifact_type == "application/vnd.kitops.modelkit.manifest.v1+json"
    assert manifest.annotations == {
        "ml.kitops.modelkit.cli-version": f"kitfs {__version__}",
        "org.opencontainers.image.created": "2023-11-14T22:13:20Z",
        "org.opencontainers.image.authors": "kitfs",
    }
    assert [layer.annotations["org.cncf.model.filepath"] for layer in manifest.layers] == [
        "model", "adapters/lora.safetensors", "src", "data/train.jsonl", "eval", "README.md", "docs"
    ]  # fmt: skip
    assert {tag: record.manifest for _, tag, record in store.iter_tags()} == {"1": digest, "2": digest}
    assert pack(store, context, context / "Kitfile.full", [], created_s=EPOCH_S) == digest


def test_files_go_to_the_layers_that_kit_gives_them(store: Store, corpora: Path, tmp_path: Path):
    """kitops' own pack cases: every listed file is packed once, every ignored one is not."""
    cases = sorted((corpora / "kitops/pack-unpack").glob("*.yaml"))
    assert len(cases) == 10
    for case in cases:
        value = YAML(typ="safe", pure=True).load(case.read_text())
        files, ignored = value.get("files") or [], value.get("ignored") or []
        folder = tree(tmp_path / case.stem, dict.fromkeys(files + ignored, "x"), value["kitfile"])
        (folder / ".kitignore").write_text(value.get("kitignore") or "")
        packed = members(store, pack(store, folder, None, []))
        assert packed.keys() == {os.path.normpath(name) for name in files}, case.stem


def test_links_devices_and_our_own_files_stay_out(store: Store, tmp_path: Path):
    """Symbolic links and pipes are passed over with a warning, .kitfs and our own link model without."""
    folder = tree(
        tmp_path / "kit",
        {"weights/w.bin": "w", ".kitfs/id": "x", "sub/.kitfs/kept": "y", ".kitignore": ""},
        "model:\n  path: weights\ncode:\n  - path: .\n",
    )
    (folder / "model").symlink_to("weights")
    (folder / "escape").symlink_to("/etc")
    (folder / "sub/link").symlink_to("../weights/w.bin")
    os.mkfifo(folder / "pipe")
    warnings: list[str] = []
    packed = members(store, pack(store, folder, None, [], warn=warnings.append))
    assert packed.keys() == {"weights/w.bin", "sub/.kitfs/kept"}
    about = [warning for warning in warnings if "not packed" in warning]
    assert [warning.split()[0] for warning in about] == ["escape", "pipe", "sub/link"]


def test_modes_are_those_of_the_disk(store: Store, tmp_path: Path):
    """Permission bits are packed, setuid included; what is served is another matter."""
    folder = tree(tmp_path / "kit", {"a": "1", "b": "22"}, "model:\n  path: .\n")
    (folder / "a").chmod(0o600)
    (folder / "b").chmod(0o4755)
    assert members(store, pack(store, folder, None, [])) == {"a": (0o600, 1), "b": (0o4755, 2)}


def test_names_of_any_bytes_are_packed(store: Store, tmp_path: Path):
    """Spaces, line feeds, other encodings and long names reach the TOC as they are."""
    names = [b"with space", b"line\nfeed", b"\xff\xfe", "é".encode(), b"n" * 255, b"a..b"]
    folder = tree(tmp_path / "kit", {}, "model:\n  path: .\n")
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(name)
    warnings: list[str] = []
    packed = members(store, pack(store, folder, None, [], warn=warnings.append))
    assert {os.fsencode(name): size for name, (_, size) in packed.items()} == {name: len(name) for name in names}
    assert [warning for warning in warnings if "a..b" in warning]


def test_bundle_is_a_raw_layer(store: Store, tmp_path: Path):
    """An MCP bundle is stored as the bytes it is, with path and mode in annotations."""
    folder = tree(tmp_path / "kit", {"tools/x.mcpb": "bundle"}, "mcpServers:\n  - {name: x, path: ./tools/x.mcpb}\n")
    (folder / "tools/x.mcpb").chmod(0o640)
    layer = manifest_of(store, pack(store, folder, None, [])).layers[0]
    assert layer.media_type == "application/vnd.kitops.modelkit.mcpb.v1.raw"
    assert layer.digest == Digest.of(b"bundle")
    assert layer.annotations["org.cncf.model.filepath"] == "tools/x.mcpb"
    assert json.loads(layer.annotations["org.cncf.model.file.metadata+json"]) == {
        "name": "x.mcpb", "mode": 0o640, "uid": 0, "gid": 0, "size": 6, "mtime": "1970-01-01T00:00:00Z", "typeflag": 0
    }  # fmt: skip


def test_prompts_are_code_layers_with_a_subtype(store: Store, tmp_path: Path):
    """A prompt has the media type of code and says what it is."""
    folder = tree(tmp_path / "kit", {"p/a.md": "x"}, "prompts:\n  - path: p\n")
    layer = manifest_of(store, pack(store, folder, None, [])).layers[0]
    assert layer.media_type == "application/vnd.kitops.modelkit.code.v1.tar"
    assert layer.annotations["ml.kitops.modelkit.layer-subtype"] == "prompt"


def test_empty_kitfile_packs(store: Store, tmp_path: Path):
    """A Kitfile without entries is a ModelKit without layers."""
    digest = pack(store, tree(tmp_path / "kit", {"a": "x"}, "manifestVersion: 1.0.0\n"), None, [])
    assert manifest_of(store, digest).layers == ()
    assert store.read_blob(manifest_of(store, digest).config.digest) == b'{"manifestVersion":"1.0.0","package":{}}'


def test_kitfile_may_come_as_bytes(store: Store, tmp_path: Path):
    """Bytes that were read already win over the directory's Kitfile, and the first of kit's names is found."""
    folder = tree(tmp_path / "kit", {"a": "x", "kitfile": "package:\n  name: second\n"}, "package:\n  name: first\n")

    def name(raw: bytes | None) -> str:
        config = manifest_of(store, pack(store, folder, None, [], kitfile_raw=raw)).config
        return parse_kitfile_json(store.read_blob(config.digest)).package.name

    assert name(b"package:\n  name: given\n") == "given"
    assert name(None) == "first"
    (folder / "Kitfile").unlink()
    assert name(None) == "second"


def test_parent_is_recorded_and_its_paths_stay_out(store: Store, tmp_path: Path):
    """A model that is a reference has no layer; the parent's paths are not packed again."""
    parent = tree(
        tmp_path / "parent",
        {"weights/w": "w", "part/p": "p", "data/d": "d", "x": "x"},
        "model:\n  path: weights\n  parts:\n    - path: part\ndatasets:\n  - path: data\n",
    )
    first = pack(store, parent, None, [reference("base:1")])
    child = tree(parent, {}, "model:\n  path: base:1\n  parts:\n    - path: head\ncode:\n  - path: .\n")
    (child / "head").write_text("h")
    second = pack(store, child, None, [reference("tuned:1")])
    assert members(store, second).keys() == {"head", "x"}
    record = store.find_manifest(second)
    assert record is not None and record.parents == [first]
    config = json.loads(store.read_blob(manifest_of(store, second).config.digest))
    assert config["model"] == {"path": "base:1", "parts": config["model"]["parts"]}


class Steps:
    """Notes the steps that are begun."""

    def __init__(self) -> None:
        self.begun: list[CountedStep] = []

    def begin(self, name: str, size: int) -> "CountedStep":
        self.begun.append(CountedStep(name, size))
        return self.begun[-1]


class CountedStep:
    def __init__(self, name: str, size: int) -> None:
        self.name, self.left, self.is_finished = name, size, False

    def advance(self, size: int) -> None:
        self.left -= size

    def finish(self) -> None:
        self.is_finished = True


def test_progress_adds_up(store: Store, sources: Path):
    """Each layer is a step whose bytes add up to its files."""
    steps = Steps()
    pack(store, sources / "myllm", sources / "myllm/Kitfile.full", [], progress=steps)
    assert {"model model", "modelpart adapters/lora.safetensors"} < {step.name for step in steps.begun}
    assert len(steps.begun) == 7
    assert all(step.is_finished and step.left == 0 for step in steps.begun)
