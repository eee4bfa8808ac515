"""``kitfs commit``: of any folder, with and without a parent; tags, dry runs, what is left out."""

import os
import shutil
from pathlib import Path

import pytest

KITFILE = """\
manifestVersion: "1.0.0"
package: {name: small}
model: {path: model}
datasets: [{path: data}]
docs: [{path: README.md}]
"""
PLAIN = ("--progress", "none")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Kitfile."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    top = tmp_path / "folder"
    for name, data in (("model/w.bin", b"w" * 5000), ("data/a.csv", b"1\n"), ("README.md", b"me\n")):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    (top / "Kitfile").write_text(KITFILE)
    return top


@pytest.fixture
def packed(kitfs, folder):
    """The command line; ``small:1`` is the folder."""
    assert kitfs("pack", folder, "-t", "small:1", *PLAIN).code == 0
    return kitfs


def digest(kitfs, reference: str) -> str | None:
    done = kitfs("inspect", reference)
    return done.json["digest"] if done.code == 0 else None


def test_without_a_parent_it_is_a_pack(packed, folder):
    """A folder without --parent gives what pack gives, with a message and no lineage."""
    assert packed("commit", folder, "small:same", *PLAIN).out == f"Model saved: {digest(packed, 'small:1')}\n"
    assert packed("commit", folder, "small:2", "-m", "why", *PLAIN).code == 0
    parent, child = packed("inspect", "small:1").json["manifest"], packed("inspect", "small:2").json["manifest"]
    assert child["annotations"].pop("org.kitfs.message") == "why"
    assert child == parent
    assert "why" in packed("log", "small:2").out


def test_parent_is_named(packed, folder):
    """With --parent unchanged layers are the parent's, and the child says what it was made from."""
    (folder / "data/a.csv").write_bytes(b"2\n")
    done = packed("commit", folder, "small:2", "--parent", "small:1", *PLAIN)
    assert done.out == f"Model saved: {digest(packed, 'small:2')}\nParent: {digest(packed, 'small:1')} (small:1)\n"
    parent, child = packed("inspect", "small:1").json, packed("inspect", "small:2").json
    same = [one == other for one, other in zip(parent["manifest"]["layers"], child["manifest"]["layers"], strict=True)]
    assert same == [True, False, True]
    assert child["lineage"]["parent"] == parent["digest"]


def test_unknown_parent_is_not_found(packed, folder):
    """A parent that is not there is exit code 3, and nothing is made."""
    assert packed("commit", folder, "small:2", "--parent", "nobody:1", *PLAIN).code == 3
    assert digest(packed, "small:2") is None


def test_nothing_to_commit(packed, folder):
    """An unchanged folder gives the parent's id and no tag; -q prints the id alone."""
    for arguments, out in ([], f"Nothing to commit: {digest(packed, 'small:1')} (small:1)\n"), (
        ["-q"], f"{digest(packed, 'small:1')}\n"
    ):  # fmt: skip
        done = packed("commit", folder, "small:2", "--parent", "small:1", *PLAIN, *arguments)
        assert (done.code, done.out) == (0, out)
    assert digest(packed, "small:2") is None


def test_tag_that_is_there(packed, folder):
    """An existing tag is exit code 7 and stays; --force moves it; an unchanged tree moves nothing."""
    before = digest(packed, "small:1")
    (folder / "data/a.csv").write_bytes(b"2\n")
    done = packed("commit", folder, "small:1", "--parent", "small:1", *PLAIN)
    assert done.code == 7 and "small:1" in done.err and "--force" in done.err
    assert digest(packed, "small:1") == before
    assert packed("commit", folder, "small:1", "--parent", "small:1", "--force", *PLAIN).code == 0
    after = packed("inspect", "small:1").json
    assert after["digest"] != before and after["lineage"]["parent"] == before
    assert packed("commit", folder, "small:1", "--parent", "small:1", "--force", *PLAIN).out.startswith("Nothing")
    assert digest(packed, "small:1") == after["digest"]


def test_dry_run_writes_nothing(packed, folder, tmp_path):
    """--dry-run says layer by layer what would be done, and the store stays as it is."""
    shutil.rmtree(folder / "data")
    (folder / "README.md").write_bytes(b"more\n")
    (folder / "new.txt").write_bytes(b"new\n")
    (folder / "Kitfile").write_text(KITFILE.replace("datasets: [{path: data}]", "code: [{path: new.txt}]"))
    blobs = sorted((tmp_path / "home/blobs").rglob("*"))
    done = packed("commit", folder, "small:2", "--parent", "small:1", "--dry-run", *PLAIN)
    assert [line.split()[:3] for line in done.out.splitlines()] == [
        ["unchanged", "model", "model"],
        ["new", "code", "new.txt"],
        ["changed", "docs", "README.md"],
        ["removed", "dataset", "data"],
    ]
    assert digest(packed, "small:2") is None and sorted((tmp_path / "home/blobs").rglob("*")) == blobs
    assert packed("commit", folder, "small:1", "--dry-run", *PLAIN).code == 7


@pytest.mark.parametrize("way", ["kitfile", "kitignore", "option"])
def test_untracked_files_stop_it(packed, folder, way):
    """Files under no entry are listed and nothing is made; the three ways that the message names each go on."""
    (folder / "data/a.csv").write_bytes(b"2\n")
    (folder / "stray").mkdir()
    for name in ("stray/one.txt", "two.txt"):
        (folder / name).write_bytes(b"stray\n")
    (folder / "link").symlink_to("two.txt")
    command = ("commit", folder, "small:2", "--parent", "small:1", *PLAIN)
    done = packed(*command)
    assert done.code == 1 and digest(packed, "small:2") is None
    shown = [line.strip() for line in done.err.splitlines() if line.startswith("  ")]
    assert shown[:2] == ["stray/one.txt", "two.txt"] and shown[2].startswith("link (a symbolic link")
    assert all(word in shown[3] for word in ("Kitfile", ".kitignore", "--ignore-untracked"))
    if way == "kitfile":
        (folder / "Kitfile").write_text(KITFILE.replace("README.md}", "README.md}, {path: stray}, {path: two.txt}"))
        (folder / "link").unlink()
    elif way == "kitignore":
        (folder / ".kitignore").write_text("stray\ntwo.txt\nlink\n")
    assert packed(*command, *(["--ignore-untracked"] if way == "option" else [])).code == 0
    packed("unpack", "small:2", "-d", folder.parent / "out", *PLAIN)
    assert (folder.parent / "out/two.txt").exists() == (way == "kitfile")
    assert not os.path.lexists(folder.parent / "out/link")


def test_ignored_files_of_a_layer_leave_it(packed, folder):
    """A .kitignore that names a file of an entry takes it out of the child's layer."""
    (folder / ".kitignore").write_text("data/*.csv\n")
    (folder / "data/b.txt").write_bytes(b"b\n")
    assert packed("commit", folder, "small:2", "--parent", "small:1", *PLAIN).code == 0
    packed("unpack", "small:2", "-d", folder.parent / "out", *PLAIN)
    assert sorted(path.name for path in (folder.parent / "out/data").iterdir()) == ["b.txt"]


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_compression_is_of_what_is_written(packed, folder, form):
    """--compression is for layers that are written; unchanged ones keep their parent's."""
    (folder / "data/a.csv").write_bytes(b"2\n")
    assert packed("commit", folder, "small:2", "--parent", "small:1", "--compression", form, *PLAIN).code == 0
    types = [layer["mediaType"].rpartition(".")[2] for layer in packed("inspect", "small:2").json["manifest"]["layers"]]
    assert types == ["tar", f"tar+{form}", "tar"]


@pytest.mark.parametrize("change", ["missing path", "no Kitfile", "broken Kitfile"])
def test_unusable_kitfiles_are_named(packed, folder, change):
    """An entry that leads nowhere, a Kitfile that is gone or broken: a message that says which, and no child."""
    if change == "missing path":
        shutil.rmtree(folder / "data")
    elif change == "no Kitfile":
        (folder / "Kitfile").unlink()
    else:
        (folder / "Kitfile").write_text(KITFILE + "nonsense: 1\n")
    done = packed("commit", folder, "small:2", "--parent", "small:1", *PLAIN)
    assert done.code == {"missing path": 2, "no Kitfile": 3, "broken Kitfile": 1}[change]
    assert {"missing path": "data", "no Kitfile": "kitfs init", "broken Kitfile": "nonsense"}[change] in done.err
    assert digest(packed, "small:2") is None
