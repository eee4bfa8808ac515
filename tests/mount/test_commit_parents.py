"""A child of every kind of parent: other programs' and our own, of every era, form and compression.

Each is mounted writable and changed; the same is done to what ``kitfs unpack`` wrote of the parent, with the modes that
the parent records. What the child unpacks to must be that folder, and committing that folder must give the same child.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

PLAIN = ("--progress", "none")
ERAS = ["v0.1.0", "v0.1.3", "v0.2.3", "v0.2.5", "v0.4.0"]


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def edit_kitfile(top: Path, old: str, new: str) -> None:
    """As an editor does: a new file, renamed over the old."""
    text = (top / "Kitfile").read_text()
    assert old in text
    (top / ".Kitfile.swp").write_text(f"# edited\n{text.replace(old, new)}")
    (top / ".Kitfile.swp").rename(top / "Kitfile")


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def edit_myllm(top: Path) -> None:
    edit_kitfile(top, "version: 3.1.4", "version: 3.1.5")
    append(top / "data/train.jsonl", b'{"text": "more"}\n')
    write(top / "eval/new.csv", b"a,b\n")
    (top / "eval/empty.txt").unlink()
    os.utime(top / "model/config.json")


def edit_empty(top: Path) -> None:
    edit_kitfile(top, "package:", "docs:\n  - path: notes\npackage:")
    write(top / "notes/one.md", b"one\n")


def edit_whole(top: Path) -> None:
    append(top / "vocab.txt", b"more\n")


def edit_one_file(top: Path) -> None:
    append(top / "again/lora.safetensors", b"more")


def edit_tuned(top: Path) -> None:
    append(top / "head/classifier.bin", b"more")
    append(top / "README.md", b"more")


def edit_modctl(top: Path) -> None:
    append(top / "README.md", b"more")


def edit_all(top: Path) -> None:
    for path in sorted(path for path in top.rglob("*.bin")):
        append(path, b"more")


@dataclass(frozen=True)
class Case:
    reference: str
    edit: Callable[[Path], None]


CASES = [
    *(Case(f"old:{era}", edit_myllm) for era in ERAS),
    *(Case(f"myllm:3.1.4{form}", edit_myllm) for form in ("", "-gzip", "-fast")),
    Case("empty:0", edit_empty),
    Case("whole:dot", edit_whole),
    Case("one-file:1", edit_one_file),
    Case("registry.example.com:8080/acme/team_a/tuned:1", edit_tuned),
    Case("mp:raw", edit_modctl),
    Case("mp:tar", edit_modctl),
]


@pytest.fixture(scope="module")
def parents(workshop, shared_fixtures):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for era in ERAS:
        workshop.run("import", shared_fixtures / f"kit-{era}", "--copy", *PLAIN)
        workshop.run("tag", "myllm:3.1.4", f"old:{era}")
    workshop.run("import", shared_fixtures / "kit-v1.7.0", "--copy", *PLAIN)
    workshop.run("import", shared_fixtures / "modctl/layout", "--as", "mp", "--copy", *PLAIN)
    workshop.environment["SOURCE_DATE_EPOCH"] = "1700000000"
    return workshop


def read_tree(top: Path) -> dict[str, tuple[int, bytes | None]]:
    return {
        str(path.relative_to(top)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes() if path.is_file() else None)
        for path in top.rglob("*")
    }


def inspect(machine, reference: str) -> dict[str, object]:
    return json.loads(machine.run("inspect", reference).stdout)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reference.rsplit("/", 1)[-1])
def test_child_is_what_was_edited(parents, tmp_path, case):
    folder, staging, mnt = tmp_path / "folder", tmp_path / "staging", tmp_path / "mnt"
    mnt.mkdir()
    child = "child:" + tmp_path.name.replace("_", "-")[:40].lower()
    before = inspect(parents, case.reference)
    parents.run("unpack", case.reference, "-d", folder, *PLAIN)
    shutil.copytree(folder, tmp_path / "before")
    parents.run("mount", case.reference, mnt, "--writable", "--staging", staging)
    try:
        case.edit(folder)
        case.edit(mnt)
        done = parents.run("commit", mnt, child + "-a", "-m", "m", *PLAIN)
        print(done.stdout, done.stderr)
    finally:
        parents.run("umount", mnt)
    print(parents.run("commit", staging, child + "-b", "-m", "m", *PLAIN).stdout)
    print(parents.run("commit", folder, child + "-c", "-m", "m", "--parent", case.reference, *PLAIN).stdout)
    parents.run("unpack", child + "-a", "-d", tmp_path / "child", *PLAIN)
    mine, theirs = read_tree(tmp_path / "child"), read_tree(folder)
    mine.pop("Kitfile"), theirs.pop("Kitfile")
    assert mine == theirs
    after = inspect(parents, child + "-a")
    print(json.dumps(after, indent=1))
    assert inspect(parents, case.reference) == before
    parents.run("verify", child + "-a", *PLAIN)
    ids = {inspect(parents, child + end)["digest"] for end in ("-a", "-b", "-c")}
    assert len(ids) == 1
