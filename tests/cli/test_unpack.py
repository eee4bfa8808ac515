"""``kitfs unpack``: what lies in the directory afterwards, and what is refused."""

import hashlib
import json
import os
from pathlib import Path

import pytest

SETS = ["kit-v0.1.0", "kit-v0.1.3", "kit-v0.2.3", "kit-v0.2.5", "kit-v0.4.0", "kit-v1.7.0", "modctl"]


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


def reference_of(expected: Path, name: str) -> str:
    """The reference behind the name of an ``expected`` file."""
    if name == "modctl":
        return f"localhost/mp:{expected.stem}"
    if expected.stem.startswith("registry.example.com"):
        return "registry.example.com:8080/acme/team_a/tuned:1"
    return expected.stem.replace("_", ":")


@pytest.fixture(autouse=True)
def usual_umask():
    """The mask that the fixtures were unpacked with."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("name", SETS)
def test_tree_is_what_its_own_program_unpacks(kitfs, shared_fixtures, tmp_path, name):
    """Paths, types, modes, sizes and digests of every fixture equal those that its own program's unpack left."""
    source = shared_fixtures / name
    options = ["--as", "mp"] if name == "modctl" else []
    assert kitfs("import", source / "layout" if name == "modctl" else source, "--copy", *options).code == 0
    for number, recorded in enumerate(sorted((source / "expected").glob("*.json"))):
        target = tmp_path / f"unpacked-{number}"
        done = kitfs("unpack", reference_of(recorded, name), "-d", target)
        assert done.code == 0, done.err
        expected = sorted(json.loads(recorded.read_text()), key=lambda entry: entry["path"])
        assert read_tree(target) == expected, recorded.name
