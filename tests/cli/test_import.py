"""``kitfs import``: what it prints, and how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

from kitfs.store.fsck import check
from kitfs.store.store import Store


def test_prints_what_was_tagged(kitfs, shared_fixtures):
    """One line for each tag on standard output, progress on standard error."""
    done = kitfs("import", shared_fixtures / "kit-v0.4.0", "--copy", "--progress", "plain")
    digest = "sha256:7c53a6e85d72b4688284e339bc2cbe7da25f69ef0587393abd1942d7585dca64"
    assert done.code == 0
    assert done.out == f"Imported myllm:3.1.4 ({digest})\n"
    assert len(done.err.splitlines()) == 7


def test_quiet_prints_ids(kitfs, shared_fixtures):
    """-q prints each ModelKitID once."""
    done = kitfs("import", "-q", shared_fixtures / "kit-v1.7.0", "--copy", "--progress", "none")
    assert len(done.out.splitlines()) == 7
    assert all(line.startswith("sha256:") and len(line) == 71 for line in done.out.splitlines())
    assert done.err == ""


def test_json(kitfs, shared_fixtures):
    """--format json gives repo, tag and digest of each tag."""
    done = kitfs("import", "--format", "json", shared_fixtures / "modctl/layout", "--as", "registry.example.com/mp",
                 "--copy", "--progress", "none")  # fmt: skip
    assert [(item["repo"], item["tag"]) for item in done.json] == [
        ("registry.example.com/mp", "raw"),
        ("registry.example.com/mp", "tar"),
    ]


def test_by_reference(kitfs, shared_fixtures):
    """Named references come in, and no others but their parents."""
    done = kitfs("import", shared_fixtures / "kit-v1.7.0", "empty:0", "whole:dot", "--copy", "--progress", "none")
    assert [line.split()[1] for line in done.out.splitlines()] == ["empty:0", "whole:dot"]


def test_exit_codes(kitfs, shared_fixtures, tmp_path):
    """Not found is 3, a wrong request 2, a malformed source 1, and each message has its hint."""
    (tmp_path / "folder").mkdir()
    assert kitfs("import", tmp_path / "absent").code == 3
    assert kitfs("import", tmp_path / "folder").code == 2
    missing = kitfs("import", shared_fixtures / "kit-v0.4.0", "other:1")
    assert missing.code == 3 and "myllm:3.1.4" in missing.err
    assert kitfs("import", shared_fixtures / "kit-v0.4.0", "A//b").code == 1
    assert kitfs("import", shared_fixtures / "kit-v0.4.0", "--as", "x").code == 2
    (tmp_path / "folder/oci-layout").write_text("{}")
    assert kitfs("import", tmp_path / "folder").code == 1
    assert kitfs("import").code == 2


def test_a_broken_kit_among_others(kitfs, shared_fixtures, tmp_path):
    """What is sound is imported and printed; what is not is named, and decides the exit code (6: integrity)."""
    layout = tmp_path / "made"
    (layout / "blobs/sha256").mkdir(parents=True)
    for path in (shared_fixtures / "modctl/layout").rglob("*"):
        if path.is_file():
            (layout / path.relative_to(shared_fixtures / "modctl/layout")).write_bytes(path.read_bytes())
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    layer = layout / "blobs/sha256" / manifest["layers"][0]["digest"][7:]
    layer.write_bytes(b"\x00" * layer.stat().st_size)
    done = kitfs("import", layout, "--progress", "none")
    assert done.code == 6
    assert [line.split()[1] for line in done.out.splitlines()] == ["made:tar"]
    assert "digest" in done.err


def test_several_at_once(shared_fixtures, tmp_path):
    """Six processes that import one ModelKit into a store that none of them finds made all succeed, with one copy."""
    command = [Path(sys.executable).with_name("kitfs"), "--home", tmp_path / "home", "import", "-q", "--copy"]
    arguments = [*command, shared_fixtures / "kit-v0.2.5", "--progress", "none"]
    running = [subprocess.Popen(arguments, env=os.environ, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    printed = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 6
    assert len(printed) == 1
    with Store.open(tmp_path / "home") as store:
        assert check(store, read_data=True).problems == []
        folders = (tmp_path / "home/blobs", tmp_path / "home/recipes")
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        assert len(files) == len(list(store.iter_blobs())) == 7
