"""What may be done to a mounted ModelKit, one thing at a time: which layers of the child are new, and what it holds."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kitfs.cli.main import run

pytestmark = [pytest.mark.mount, pytest.mark.root]

KITFILE = """\
manifestVersion: "1.0.0"
package: {name: small, version: 1.0.0}
model:
  name: m
  path: model
  parts:
    - path: model/adapters
datasets:
  - name: one
    path: data/one
  - name: two
    path: data/two
code:
  - path: src
docs:
  - path: README.md
"""
DATASETS = ["  - name: one\n    path: data/one\n", "  - name: two\n    path: data/two\n"]
FILES = {
    "model/weights.bin": b"weights" * 9000,
    "model/config.json": b"{}\n",
    "model/adapters/lora.bin": b"lora" * 900,
    "data/one/same.csv": b"1,2\n" * 100,
    "data/two/same.csv": b"1,2\n" * 100,
    "src/run.sh": b"#!/bin/sh\n",
    "src/lib/a.py": b"a = 1\n",
    "README.md": b"read me\n",
}
MODES = {"model/config.json": 0o600, "src/run.sh": 0o755, "model/weights.bin": 0o444, "src/lib/a.py": 0o640}
BASED = 'manifestVersion: "1.0.0"\nmodel: {path: "small:1"}\ndocs: [{path: NOTES.md}]\n'

OWN = """\
manifestVersion: "1.0.0"
model: {path: model, parts: [{path: model/adapters}]}
code: [{path: src}]
docs: [{path: NOTES.md}, {path: stray}]
"""


@pytest.fixture(scope="module")
def small(workshop, tmp_path_factory):
    """``small:1`` in three layers and more, and ``based:1``, whose model is that one's."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    context, based = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("based")
    for name, data in FILES.items():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_bytes(data)
        (context / name).chmod(MODES.get(name, 0o644))
    (context / "src/lib").chmod(0o700)
    (context / "data/one").chmod(0o750)
    (context / "Kitfile").write_text(KITFILE)
    (based / "Kitfile").write_text(BASED)
    (based / "NOTES.md").write_text("notes\n")
    for folder, reference in ((context, "small:1"), (based, "based:1")):
        words = ["pack", str(folder), "-t", reference, "--home", str(workshop.home), "--progress", "none", "-q"]
        assert run(words) == 0
    return workshop


def edit(old: str, new: str, name: str = "Kitfile") -> Callable[[Path], None]:
    """Replaces words in the Kitfile, which gets a name."""

    def do(top: Path) -> None:
        text = (top / "Kitfile").read_text()
        assert old in text
        (top / ".edited").write_text("# a comment stays here\n" + text.replace(old, new))
        if name != "Kitfile":
            (top / "Kitfile").unlink()
        (top / ".edited").rename(top / name)

    return do


def touch_and_append(top: Path) -> None:
    for path in (top / "model/weights.bin", top / "src/run.sh", top / "src/lib/a.py"):
        os.utime(path)
    (top / "src/lib/temporary").touch()
    (top / "src/lib/temporary").unlink()
    with open(top / "model/config.json", "a") as file:
        file.write("more\n")


def touch_all(top: Path) -> None:
    for path in top.rglob("*"):
        if ".kitfs" not in path.parts and path.name != "Kitfile":
            os.utime(path)


def move(top: Path) -> None:
    (top / "data/one").rename(top / "data/first")
    edit("data/one", "data/first")(top)


def remove(top: Path) -> None:
    shutil.rmtree(top / "data/two")
    edit(DATASETS[1], "")(top)


def replace(top: Path) -> None:
    """A directory becomes a file, a file a directory."""
    shutil.rmtree(top / "src/lib")
    (top / "src/lib").write_bytes(b"file\n")
    (top / "README.md").unlink()
    (top / "README.md").mkdir()
    (top / "README.md/part.md").write_bytes(b"part\n")


def ignore(top: Path) -> None:
    (top / "src/note.tmp").write_bytes(b"no\n")
    (top / "scratch").mkdir()
    (top / "scratch/a").write_bytes(b"no\n")
    (top / ".kitignore").write_text("**/*.tmp\nscratch\n")


def save_back(top: Path) -> None:
    """What a program does that loads and saves: new files with the old bytes."""
    for name in ("src/run.sh", "README.md"):
        mode = MODES.get(name, 0o644)
        (top / "new").write_bytes((top / name).read_bytes())
        (top / "new").chmod(mode)
        (top / "new").rename(top / name)
    edit("small", "other")(top)


EDITS = {
    "redescribed": (edit("version: 1.0.0", "version: 1.0.1\n  description: new"), {}),
    "entry renamed": (edit("name: one", "name: first"), {}),
    "reordered": (edit("".join(DATASETS), "".join(reversed(DATASETS))), {}),
    "kitfile": (edit("1.0.0\n", "1.0.0\n", "kitfile"), None),
    ".kitfile": (edit("version: 1.0.0", "version: 2", ".kitfile"), {}),
    "modes": (touch_and_append, {"model": "changed"}),
    "mode": (lambda top: (top / "src/lib/a.py").chmod(0o755), {"src": "changed"}),
    "moved": (move, {"data/first": "new", "data/one": "removed"}),
    "removed": (remove, {"data/two": "removed"}),
    "kind": (edit("docs:", "prompts:"), {"README.md": "changed"}),
    "replaced": (replace, {"src": "changed", "README.md": "changed"}),
    "ignored": (lambda top: (ignore(top), edit("small", "other")(top)), {}),
    "twins": (lambda top: (top / "data/two/same.csv").write_bytes(b"2\n"), {"data/two": "changed"}),
    "saved back": (save_back, {}),
    "empty folder": (lambda top: (top / "src/empty").mkdir(), {"src": "changed"}),
}


@pytest.mark.parametrize("name", [name for name, (_, states) in EDITS.items() if states is not None])
def test_child_of_an_edit(small, commit, commit_edited, name):
    """Only the layers with a change are written anew, whatever was touched; the others keep their descriptors."""
    before = commit("inspect", "small:1")
    change, states = EDITS[name]
    done = commit_edited("small:1", change, ("scratch", "src/note.tmp"))
    found = {layer["path"]: layer["state"] for layer in done["layers"] if layer["state"] != "unchanged"}
    assert found == states and done["digest"] != before["digest"]
    assert commit("inspect", "small:1") == before


@pytest.mark.parametrize("change", [lambda top: None, touch_all, EDITS["kitfile"][0], ignore], ids=range(4))
def test_nothing_to_commit(small, commit, commit_edited, change):
    """What changes nothing that a ModelKit holds gives no child: exit code 0, the parent's id, no tag."""
    commit("remove", "child:a", status=None)
    done = commit_edited("small:1", change)
    assert not done["committed"] and done["digest"] == commit("inspect", "small:1")["digest"] == done["parent"]
    commit("inspect", "child:a", status=3)


def change_based(top: Path) -> None:
    with open(top / "model/config.json", "a") as file:
        file.write("more\n")
    (top / "model/weights.bin").unlink()
    (top / "model/new.bin").write_bytes(b"new\n")
    (top / "src").mkdir()
    (top / "src/own.py").write_bytes(b"where the base has code\n")
    (top / "stray").write_bytes(b"stray\n")
    os.utime(top / "model/adapters/lora.bin")


def test_changes_of_a_base_are_refused(small, commit, edit_mounted):
    """Files of the ModelKit that model.path names can not be changed in a child: all are listed, nothing is dropped.

    Entries of the Kitfile for what is new, and for what is changed a model of one's own, are a way out.
    """
    refused = []
    staging = edit_mounted(
        "based:1", change_based, lambda place: refused.append(commit("commit", place, "child:based", status=1).err)
    )
    belongs = "it belongs to small:1, which model.path names"
    assert [line.strip() for line in refused[0].splitlines()[1:-1]] == [
        f"model/config.json (changed; {belongs})", "model/new.bin", "src/own.py", "stray",
        f"model/weights.bin (deleted; {belongs})",
    ]  # fmt: skip
    assert "make model.path the folder itself" in refused[0].splitlines()[-1]
    commit("inspect", "child:based", status=3)
    (staging / "upper/Kitfile").write_text(OWN)
    done = commit("commit", staging, "child:based")
    assert {layer["path"]: layer["state"] for layer in done["layers"]} == {
        "model": "new", "model/adapters": "new", "src": "new", "NOTES.md": "unchanged", "stray": "new"
    }  # fmt: skip
    layers = commit("inspect", "small:1")["manifest"]["layers"]
    assert layers[1] in commit("inspect", "child:based")["manifest"]["layers"]  # the adapters' bytes are the base's


def test_own_files_beside_a_base(small, commit, commit_edited):
    """A child of a ModelKit with a base has that base too, and its own files, some of them among the base's."""

    def change(top: Path) -> None:
        (top / "model/new.bin").write_bytes(b"new\n")
        edit("NOTES.md", "NOTES.md\n  - path: model/new.bin")(top)

    done = commit_edited("based:1", change)
    assert {layer["path"]: layer["state"] for layer in done["layers"]} == {
        "NOTES.md": "unchanged", "model/new.bin": "new"
    }  # fmt: skip
    assert "small:1" in commit("inspect", "child:a")["kitfile"]["model"]["path"]


def test_modelpack_without_a_kitfile(small, commit, edit_mounted, shared_fixtures):
    """modctl's artifacts have no Kitfile: the commit says so and what to do, and then keeps the layers it can."""
    commit("import", shared_fixtures / "modctl/layout", "--as", "mp", "--copy")
    seen = []

    def inside(place: Path) -> None:
        seen.append(commit("commit", place, "child:mp", status=3).err)
        commit("init", place, "--name", "packed")
        seen.append(commit("commit", place, "child:mp"))

    edit_mounted("mp:raw", lambda top: (top / "docs/new.md").write_bytes(b"new\n"), inside)
    assert "no Kitfile" in seen[0] and "kitfs init" in seen[0]
    states = {layer["path"]: layer["state"] for layer in seen[1]["layers"]}
    assert states["model-00001-of-00002.safetensors"] == states["model-00002-of-00002.safetensors"] == "unchanged"
    parent, child = commit("inspect", "mp:raw")["manifest"], commit("inspect", "child:mp")["manifest"]
    assert [layer for layer in parent["layers"] if ".weight.v1" in layer["mediaType"]] == child["layers"][:2]
    assert child["artifactType"] == parent["artifactType"]
    config = json.loads(next((small.home / "blobs").rglob(child["config"]["digest"][7:])).read_bytes())
    assert config["config"] == {"architecture": "transformer"} and config["descriptor"]["family"] == "bert"
