"""A child of every kind of parent: other programs' and our own, of every era, form and compression.

Each parent is mounted writable and changed; the same is done to what ``kitfs unpack`` wrote of it, with the modes that
it records. What the child unpacks to must be that folder, and committing the folder must give the same child.
"""

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kitfs.cli.main import run

pytestmark = [pytest.mark.mount, pytest.mark.root]

ERAS = ["v0.1.0", "v0.1.3", "v0.2.3", "v0.2.5", "v0.4.0"]
TUNED = "registry.example.com:8080/acme/team_a/tuned:1"
FILES = {
    "model/weights.bin": random.Random(5).randbytes(300_000),
    "model/config.json": b"{}\n",
    "model/adapters/lora.bin": b"lora" * 2000,
    "data/same.json": b"{}\n",
    "data/train.jsonl": b'{"text": "train"}\n' * 500,
    "src/run.sh": b"#!/bin/sh\n",
    "tools/server.mcpb": b"PK\x05\x06" + bytes(18),
    "prompts/hello.md": b"Say hello.\n",
}
HEAD = 'manifestVersion: "1.0.0"\npackage:\n  name: ours\n  version: 3.1.4\n'
SEVERAL = (
    HEAD + "model: {path: model, parts: [{path: model/adapters}]}\ndatasets: [{path: data}]\ncode: [{path: src}]\n"
)
KITFILES = {
    "zstd": SEVERAL,
    "raw": HEAD + "model: {path: model/weights.bin, parts: [{path: model/config.json}]}\n"
    "datasets: [{path: data/train.jsonl}, {path: data/same.json}]\n",  # the bytes of config.json
    "modelpack": SEVERAL,
    "nested": HEAD + "model: {path: ., parts: [{path: model/adapters}]}\ncode: [{path: src}]\n",
    "mcp": HEAD
    + "model: {path: model}\nmcpServers: [{name: s, path: tools/server.mcpb}]\nprompts: [{path: prompts}]\n",
}
OPTIONS = {"zstd": ["--compression", "zstd"], "raw": ["--layer-format", "raw"], "modelpack": ["--use-model-pack"]}


def append(top: Path, name: str) -> None:
    with open(top / name, "ab") as file:
        file.write(b"more\n")


def write(top: Path, name: str, data: bytes) -> None:
    (top / name).parent.mkdir(parents=True, exist_ok=True)
    (top / name).write_bytes(data)


def edit_kitfile(top: Path, old: str, new: str) -> None:
    """As an editor does it: a new file beside the old, renamed over it."""
    text = (top / "Kitfile").read_text()
    assert old in text
    (top / ".Kitfile.swp").write_text(f"# edited\n{text.replace(old, new)}")
    (top / ".Kitfile.swp").rename(top / "Kitfile")


def edit_myllm(top: Path) -> None:
    edit_kitfile(top, "version: 3.1.4", "version: 3.1.5")
    append(top, "data/train.jsonl")
    write(top, "eval/new.csv", b"a,b\n")
    (top / "eval/empty.txt").unlink()
    os.utime(top / "model/config.json")


def edit_empty(top: Path) -> None:
    edit_kitfile(top, "1.0.0\n", "1.0.0\ndocs: [{path: notes}]\n")
    write(top, "notes/one.md", b"one\n")


def edit_tuned(top: Path) -> None:
    append(top, "head/classifier.bin")
    os.utime(top / "model/config.json")
    (top / "model/vocab.txt").write_bytes((top / "model/vocab.txt").read_bytes())


def edit_data(top: Path) -> None:
    edit_kitfile(top, "version: 3.1.4", "version: 3.1.5")
    append(top, "data/train.jsonl")


def edit_raw(top: Path) -> None:
    edit_data(top)
    append(top, "data/same.json")


def edit_zstd(top: Path) -> None:
    edit_data(top)
    (top / "model/config.json").unlink()


def edit_nested(top: Path) -> None:
    append(top, "src/run.sh")
    write(top, "notes.md", b"in the model, which is all that no other entry has\n")


@dataclass(frozen=True)
class Case:
    """One parent.

    Attributes:
        reference: Its reference.
        edit: Changes its tree.
        changed: Paths of the entries whose layers are changed or new.
        kit: Whether kit 1.0 and newer can read the child.
    """

    reference: str
    edit: Callable[[Path], None]
    changed: set[str]
    kit: bool = True


MYLLM = {"data/train.jsonl", "eval"}
CASES = [
    *(Case(f"old:{era}", edit_myllm, MYLLM) for era in ERAS),
    *(Case(f"myllm:3.1.4{form}", edit_myllm, MYLLM) for form in ("", "-gzip", "-fast")),
    Case("empty:0", edit_empty, {"notes"}),
    Case("whole:dot", lambda top: append(top, "vocab.txt"), {"."}),
    Case("one-file:1", lambda top: append(top, "again/lora.safetensors"), {"again/lora.safetensors"}),
    Case(TUNED, edit_tuned, {"head"}),
    Case("ours:zstd", edit_zstd, {"data", "model"}, kit=False),
    Case("ours:raw", edit_raw, {"data/train.jsonl", "data/same.json"}, kit=False),
    Case("ours:raw", edit_data, {"data/train.jsonl"}, kit=False),
    Case("ours:modelpack", edit_data, {"data"}, kit=False),
    Case("ours:nested", edit_nested, {".", "src"}),
    Case("ours:mcp", lambda top: append(top, "prompts/hello.md"), {"prompts"}, kit=False),
]


@pytest.fixture(scope="module")
def parents(workshop, shared_fixtures, tmp_path_factory):
    """A machine that has all of them."""
    if os.geteuid() != 0:
        pytest.skip("needs root")

    def make(*arguments: object) -> None:
        words = [*map(str, arguments), "--home", str(workshop.home), "--progress", "none", "-q"]
        assert run(words) == 0

    for era in ERAS:
        make("import", shared_fixtures / f"kit-{era}", "--copy")
        make("tag", "myllm:3.1.4", f"old:{era}")
    make("import", shared_fixtures / "kit-v1.7.0", "--copy")
    for name, text in KITFILES.items():
        context = tmp_path_factory.mktemp(name)
        paths = set(text.replace("{", " ").replace("}", " ").replace(",", " ").split())
        for path, data in FILES.items():
            if paths & {path, str(Path(path).parent), str(Path(path).parent.parent)}:
                write(context, path, data)
        (context / "Kitfile").write_text(text)
        make("pack", context, "-t", f"ours:{name}", *OPTIONS.get(name, []))
    return workshop


def blob(parents, digest: str) -> bytes:
    path = next((parents.home / "blobs").rglob(digest.removeprefix("sha256:")))
    data = path.read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    return data


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reference.rsplit("/", 1)[-1])
def test_child_is_what_was_edited(parents, commit, commit_edited, read_tree, kit, tmp_path, case):
    """The child has the edited tree with the parent's modes, and the parent's own descriptors where nothing changed.

    The parent stays as it was; of an older era both have no digests in their configs. A real kit, where one is given,
    unpacks the same tree.
    """
    before = commit("inspect", case.reference)
    done = commit_edited(case.reference, case.edit)
    after = commit("inspect", "child:a")
    assert done["digest"] == after["digest"] != before["digest"]
    assert commit("inspect", case.reference) == before
    annotations = after["manifest"]["annotations"]
    assert annotations["org.kitfs.parent"] == before["digest"] and annotations["org.kitfs.message"] == "why"
    assert {layer["path"] for layer in done["layers"] if layer["state"] != "unchanged"} == case.changed
    for layer, new in zip(done["layers"], after["manifest"]["layers"], strict=True):
        assert (new in (before["manifest"]["layers"] or [])) == (layer["state"] == "unchanged")
    configs = [one["manifest"]["config"] for one in (before, after)]
    assert configs[0]["mediaType"] == configs[1]["mediaType"]
    if case.reference.startswith("old:"):
        assert not any(b"diffId" in blob(parents, config["digest"]) for config in configs)
    if kit is not None and case.kit:
        commit("export", "--kit", "child:a", tmp_path / "kit")
        kit(tmp_path / "kit", "unpack", "child:a", "-d", tmp_path / "by-kit")
        assert read_tree(tmp_path / "by-kit") == read_tree(tmp_path / "unpacked")
