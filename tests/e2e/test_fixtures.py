"""Every ModelKit that another program packed shows exactly what that program unpacks."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

LIST_TREE = """
import hashlib, json, os, sys
found = {}
for folder, folders, files in os.walk(sys.argv[1]):
    for name in folders + files:
        path = os.path.join(folder, name)
        stat = os.lstat(path)
        entry = {"mode": oct(stat.st_mode & 0o7777)}
        if os.path.islink(path):
            entry |= {"type": "link", "target": os.readlink(path)}
        elif os.path.isdir(path):
            entry |= {"type": "dir"}
        else:
            with open(path, "rb") as file:
                entry |= {"type": "file", "size": stat.st_size, "sha256": hashlib.sha256(file.read()).hexdigest()}
        found[os.path.relpath(path, sys.argv[1])] = entry
print(json.dumps(found))
"""


def read_tree(directory: Path) -> dict[str, dict[str, object]]:
    """What another process sees below a directory."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_TREE, directory], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_mounted_tree_is_what_its_own_program_unpacks(kitfs, recorded):
    """Paths, types, sizes and digests equal the recorded ones; modes too with modes=tar."""
    kitfs.run("import", *recorded.arguments)
    for number, (reference, expected) in enumerate(recorded.trees.items()):
        served = read_tree(kitfs.mount(reference, at=f"served-{number}"))
        recorded_modes = read_tree(kitfs.mount(reference, "-o", "modes=tar,nometa", at=f"tar-{number}"))

        assert served.pop(".kitfs")["type"] == "dir"
        meta = {path: served.pop(path) for path in list(served) if path.startswith(".kitfs/")}
        assert sorted(meta) == [".kitfs/config.json", ".kitfs/id", ".kitfs/manifest.json", ".kitfs/reference"]
        links = [tree.pop("model") for tree in (served, recorded_modes) if tree.get("model", {}).get("type") == "link"]
        assert len(links) in (0, 2)
        assert recorded_modes == expected, reference
        assert served.keys() == expected.keys()
        for path, entry in expected.items():
            wanted = 0o555 if entry["type"] == "dir" or int(entry["mode"], 8) & 0o111 else 0o444
            assert served[path] == {**entry, "mode": oct(wanted)}, (reference, path)


def test_id_of_a_mount_is_kits_digest(kitfs, shared_fixtures):
    """`.kitfs/id` is the ModelKitID that kit printed, and `.kitfs/manifest.json` has that digest."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    directory = kitfs.mount("myllm:3.1.4")
    identity = (directory / ".kitfs/id").read_text().strip()
    assert identity == "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316"
    manifest = (directory / ".kitfs/manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == identity


def test_list_is_in_kits_form(kitfs, shared_fixtures):
    """`list` prints what kit 1.7.0 printed for the same storage, to the byte."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    assert kitfs.run("list").stdout == (shared_fixtures / "kit-v1.7.0/kit-list.txt").read_text()


def test_every_kit_with_a_model_has_an_entry_named_model(kitfs, shared_fixtures):
    """`/repository/tag/model` exists for each kit with a model, as a folder or as a link to it."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    directory = kitfs.mount("--all")
    assert os.readlink(directory / "one-file/1/model") == "lora.safetensors"
    assert os.readlink(directory / "whole/dot/model") == "."
    assert (directory / "myllm/3.1.4/model/config.json").stat().st_size == 612
    assert (directory / "registry.example.com:8080/acme/team_a/tuned/1/model/config.json").stat().st_size == 612
    assert not (directory / "empty/0/model").exists()
