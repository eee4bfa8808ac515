"""``kitfs unpack``: what lies in the directory afterwards, and what is refused."""

import hashlib
import os
from pathlib import Path

import pytest


def read_tree(directory: Path) -> list[dict[str, object]]:
    """What lies below a directory, in the form of the fixtures' ``expected``."""
    found = []
    for path in sorted(directory.rglob("*"), key=lambda path: str(path.relative_to(directory))):
        status = path.lstat()
        entry = {"path": str(path.relative_to(directory)), "mode": oct(status.st_mode & 0o7777)}
        if path.is_symlink():
            entry |= {"type": "link", "target": os.readlink(path)}
        elif path.is_dir():
            entry |= {"type": "dir"}
        else:
            entry |= {"type": "file", "size": status.st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        found.append(entry)
    return found


@pytest.fixture(autouse=True)
def usual_umask():
    """The mask that the fixtures were unpacked with."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_tree_is_what_its_own_program_unpacks(kitfs, recorded, tmp_path):
    """Paths, types, modes, sizes and digests of every fixture equal those that its own program's unpack left."""
    assert kitfs("import", *recorded.arguments).code == 0
    for number, (reference, expected) in enumerate(recorded.trees.items()):
        target = tmp_path / f"unpacked-{number}"
        done = kitfs("unpack", reference, "-d", target)
        assert done.code == 0, done.err
        assert {entry.pop("path"): entry for entry in read_tree(target)} == expected, reference


def test_result_is_told_in_kits_words(filled, tmp_path):
    """Standard output has kit's lines, in kit's order; -q none of them."""
    done = filled("unpack", "myllm:3.1.4", "-d", tmp_path / "a", "--progress", "none")
    lines = done.out.splitlines()
    assert lines[0] == f"Unpacking to {tmp_path / 'a'}"
    assert lines[1] == f"Unpacking config to {tmp_path / 'a/Kitfile'}"
    assert lines[2].startswith("Unpacking model ")
    assert done.err == ""
    assert filled("unpack", "myllm:3.1.4", "-d", tmp_path / "b", "-q", "--progress", "none").out == ""
    assert (tmp_path / "b/Kitfile").exists()


def test_result_as_json(filled, tmp_path):
    """JSON names the ModelKit, its parents, the directory, and counts what was written and passed over."""
    reference = "registry.example.com:8080/acme/team_a/tuned:1"
    first = filled("unpack", reference, "-d", tmp_path / "a", "--format", "json").json
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert first["files"] == len(files)
    assert first["size"] == sum(path.stat().st_size for path in files)
    assert first["directory"] == str(tmp_path / "a")
    assert first["digest"].startswith("sha256:") and len(first["parents"]) == 1
    second = filled("unpack", reference, "-d", tmp_path / "a", "-i", "--format", "json").json
    assert (second["files"], second["skipped"]) == (0, len(files) - 1)  # an equal Kitfile is no file to skip


def test_current_directory_is_the_default(filled, tmp_path, monkeypatch):
    """Without -d files go into the current directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert filled("unpack", "empty:0").code == 0
    assert (tmp_path / "here/Kitfile").exists()


@pytest.mark.parametrize("switch", ["kitfile", "model", "code", "datasets", "docs"])
def test_deprecated_switch_is_the_filter_of_its_name(filled, tmp_path, switch):
    """--model and its like do what --filter=model does, and say that they are deprecated; a filter goes before them."""
    done = filled("unpack", "myllm:3.1.4", f"--{switch}", "-d", tmp_path / "old", "--progress", "none")
    assert done.code == 0
    assert f"--{switch} is deprecated: use --filter={switch}" in done.err
    assert filled("unpack", "myllm:3.1.4", "-f", switch, "-d", tmp_path / "new").code == 0
    assert filled("unpack", "myllm:3.1.4", "-f", switch, "--docs", "-d", tmp_path / "both").code == 0
    assert read_tree(tmp_path / "old") == read_tree(tmp_path / "new") == read_tree(tmp_path / "both")


def test_several_deprecated_switches_add_up(filled, tmp_path):
    """Two switches give what both want."""
    assert filled("unpack", "myllm:3.1.4", "--kitfile", "--docs", "-d", tmp_path / "a").code == 0
    assert filled("unpack", "myllm:3.1.4", "-f", "kitfile,docs", "-d", tmp_path / "b").code == 0
    assert read_tree(tmp_path / "a") == read_tree(tmp_path / "b") != []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent:1"], 3, "absent:1 is not in the store"),
        (["myllm:3.1.4,latest"], 2, "can not unpack multiple tags"),
        (["myllm:3.1.4", "-f", "models", "-f", "sets"], 2, "  * invalid filter type sets (must be one of 'kitfile'"),
        (["MYLLM:1"], 1, "MYLLM"),
        ([], 2, "Missing argument"),
    ],
)
def test_mistakes_have_kits_words_and_the_usual_codes(filled, tmp_path, arguments, code, message):
    """What can not be done is said, with the exit code of its kind, and no directory is made."""
    done = filled("unpack", *arguments, "-d", tmp_path / "target")
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "target").exists()


def test_what_is_there_is_an_error(filled, tmp_path):
    """Unpacking twice fails with exit code 1, names the file as kit does, and says which switches help."""
    target = tmp_path / "target"
    assert filled("unpack", "myllm:3.1.4", "-d", target).code == 0
    done = filled("unpack", "myllm:3.1.4", "-d", target)
    assert done.code == 1
    assert "already exists" in done.err and "-o replaces" in done.err
    assert filled("unpack", "myllm:3.1.4", "-d", target, "-i").code == 0
    assert filled("unpack", "myllm:3.1.4", "-d", target, "-o").code == 0


def test_directory_that_can_not_be_made_is_an_error(filled, tmp_path):
    """A target below a file is refused with its name."""
    (tmp_path / "file").write_text("")
    done = filled("unpack", "myllm:3.1.4", "-d", tmp_path / "file/target")
    assert done.code == 1
    assert str(tmp_path / "file") in done.err


def test_store_is_no_target(filled, tmp_path):
    """Nothing is unpacked into the store's own folder."""
    done = filled("unpack", "myllm:3.1.4", "-d", tmp_path / "home/members/x")
    assert done.code == 2
    assert not (tmp_path / "home/members/x").exists()


def test_kit_that_is_only_in_kits_storage_is_brought_in(kitfs, shared_fixtures, tmp_path, monkeypatch):
    """A reference that kit has and the store has not is imported first, as a mount does."""
    monkeypatch.setenv("KITOPS_HOME", str(shared_fixtures / "kit-v1.7.0"))
    done = kitfs("unpack", "myllm:3.1.4", "-d", tmp_path / "target", "--progress", "none")
    assert done.code == 0, done.err
    assert (tmp_path / "target/Kitfile").exists()
