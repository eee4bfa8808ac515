"""Pack, then unpack: kitops' own cases, and that what comes out is what went in."""

import os
import stat
from pathlib import Path

import pytest
from ruamel.yaml import YAML

CASES = 10
"""How many kitops has; a case that is not there would pass."""


def listing(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """All below a folder: path to permission bits and, for files, bytes."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path.relative_to(folder))] = (stat.S_IMODE(status.st_mode), data)
    return found


@pytest.fixture
def cases(corpora: Path) -> dict[str, dict[str, object]]:
    """kitops' cases by name."""
    found = sorted((corpora / "kitops/pack-unpack").glob("*.yaml"))
    assert len(found) == CASES
    return {path.stem: YAML(typ="safe", pure=True).load(path.read_text()) for path in found}


def test_kitops_cases_come_out_of_unpack(kitfs, cases, tmp_path):
    """Of each case's files exactly those come out that must, with their bytes; what is ignored does not."""
    for name, case in cases.items():
        folder, target = tmp_path / name / "modelkit", tmp_path / name / "unpacked"
        files = [os.path.normpath(path) for path in case.get("files") or []]
        ignored = [os.path.normpath(path) for path in case.get("ignored") or []]
        for path in files + ignored:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(f"content of {path}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Kitfile").write_text(case["kitfile"])
        if case.get("kitignore"):
            (folder / ".kitignore").write_text(case["kitignore"])
        assert kitfs("pack", folder, "-t", f"test:{name.lower()}").code == 0, name
        assert f"{name.lower()} " in kitfs("list").out
        assert kitfs("unpack", f"test:{name.lower()}", "-d", target).code == 0, name
        out = {path: data for path, (_, data) in listing(target).items() if data is not None}
        assert out.pop("Kitfile").startswith(b"manifestVersion: 1.0.0\n")
        assert out == {path: f"content of {path}".encode() for path in files}, name


def test_packing_again_gives_the_same_modelkit(kitfs, tmp_path, monkeypatch):
    """Other times of the files change nothing, and neither does packing what was unpacked."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    folder = tmp_path / "modelkit"
    (folder / "test-dir").mkdir(parents=True)
    (folder / "test-file.txt").write_text("one")
    (folder / "test-dir/test-subfile.txt").write_text("two")
    (folder / "Kitfile").write_text("model:\n  path: test-file.txt\ndatasets:\n  - path: test-dir/test-subfile.txt\n")
    first = kitfs("-q", "pack", folder, "-t", "test:repack1").out
    for name in ("test-file.txt", "test-dir", "test-dir/test-subfile.txt"):
        os.utime(folder / name, (2_000_000_000, 2_000_000_000))
    assert kitfs("-q", "pack", folder, "-t", "test:repack2").out == first
    assert kitfs("unpack", "test:repack1", "-d", tmp_path / "out").code == 0
    assert kitfs("-q", "pack", tmp_path / "out", "-t", "test:repack3").out == first


def test_tree_comes_out_as_it_went_in(kitfs, tmp_path):
    """Odd names, empty files and folders, nested entries: the same paths, permission bits and bytes."""
    folder = tmp_path / "modelkit"
    names = ["w/a", "w/part/b", "w/part/deep/c", "with space/ x ", "new\nline", "é", "-dash", "d..d/..x", "n" * 255]
    for number, name in enumerate([*names, "long/" + "/".join(["d" * 90] * 4) + "/x", "empty"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * number * 100)
        path.chmod((0o644, 0o600, 0o755, 0o444)[number % 4])
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    (folder / "hollow/inside").mkdir(parents=True)
    (folder / "hollow").chmod(0o750)
    (folder / "Kitfile").write_text(
        "manifestVersion: 1.0.0\nmodel:\n  path: w\n  parts:\n    - path: w/part\ncode:\n  - path: .\n"
        "docs:\n  - path: w/part/deep/c\n"
    )
    previous = os.umask(0)
    try:
        for path in [*folder.rglob("*")]:
            if path.is_dir() and path.name != "hollow":
                path.chmod(0o755)
        assert kitfs("pack", folder, "-t", "odd:1").code == 0
        assert kitfs("unpack", "odd:1", "-d", tmp_path / "out").code == 0
    finally:
        os.umask(previous)
    before, after = listing(folder), listing(tmp_path / "out")
    for found in (before, after):
        del found["Kitfile"]
    assert after == before
