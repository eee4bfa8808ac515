"""A day of somebody who fine-tunes a model, by the real commands, as root and as a user without privilege."""

import json
import textwrap

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

PACK = textwrap.dedent("""
    import pathlib, random, sys
    top, numbers = pathlib.Path(sys.argv[1]), random.Random(7)
    def write(name, data, mode=0o644):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
    import numpy
    from safetensors.numpy import save
    for shard in range(1, 4):
        tensors = {f"layer.{shard}.{i}": numpy.frombuffer(numbers.randbytes(40_000), numpy.float32) for i in range(3)}
        write(f"model/model-{shard:05}-of-00003.safetensors", save(tensors))
    write("model/config.json", b"{}\\n", 0o600)
    write("model/vocab.txt", b"a\\nb\\n", 0o444)
    write("model/tokens/merges.txt", b"a b\\n", 0o640)
    (top / "model/tokens").chmod(0o750)
    write("data/train/one.jsonl", b"1\\n" * 3000)
    write("data/train/two.jsonl", b"2\\n" * 3000)
    write("data/eval.csv", b"a,b\\n")
    write("src/serve.sh", b"#!/bin/sh\\necho serves\\n", 0o755)
    write("docs/card.md", b"# card\\n")
    write("Kitfile", b'''manifestVersion: "1.0.0"
    package: {name: myllm, version: 3.1.4, authors: [me]}
    model: {name: m, path: model}
    datasets: [{name: train, path: data/train}, {name: eval, path: data/eval.csv}]
    code: [{path: src}]
    docs: [{path: docs}]
    ''')
    """)

TUNE = textwrap.dedent("""
    import os, pathlib, subprocess, sys
    import numpy
    from safetensors.numpy import load_file, save_file
    top = pathlib.Path(sys.argv[1])
    shard = top / "model/model-00002-of-00003.safetensors"
    tensors = {name: numpy.array(data) for name, data in load_file(shard).items()}
    tensors["layer.2.0"] += 1
    save_file(tensors, shard)
    save_file({"lora": numpy.ones(5000, numpy.float32)}, top / "model/adapter.safetensors")
    partial = os.open(top / "model/.state.tmp", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    os.ftruncate(partial, 10_000)
    os.pwrite(partial, b"state", 5000)
    os.fsync(partial)
    os.close(partial)
    os.rename(top / "model/.state.tmp", top / "model/state.bin")
    assert subprocess.run([top / "src/serve.sh"], capture_output=True, check=True).stdout == b"serves\\n"
    with open(top / "src/serve.sh", "a") as file:
        file.write("echo better\\n")
    with open(top / "model/config.json", "a") as file:
        file.write("\\n")
    with open(top / "model/vocab.txt", "a") as file:
        file.write("c\\n")
    os.utime(top / "model/tokens/merges.txt")
    (top / "model/tokens/new.txt").write_text("new\\n")
    os.utime(top / "docs/card.md")
    (top / "data/train/two.jsonl").unlink()
    (top / "data/eval.csv").unlink()
    (top / "docs/tuning.md").write_text("# how\\n")
    text = (top / "Kitfile").read_text()
    start, stop = text.index("  - name: eval"), text.index("docs:")
    assert "eval.csv" in text[start:stop]
    text = text[:start] + text[text.index("code:"):]  if "code:" in text[start:] else text[:start] + text[stop:]
    (top / ".Kitfile.swp").write_text("# tuned on tickets\\n" + text.replace("version: 3.1.4", "version: 3.1.5"))
    os.replace(top / ".Kitfile.swp", top / "Kitfile")
    """)

TREE = textwrap.dedent("""
    import hashlib, json, pathlib, stat, sys
    top, found = pathlib.Path(sys.argv[1]), {}
    for path in top.rglob("*"):
        if ".kitfs" not in path.parts and not path.is_symlink():
            data = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            found[str(path.relative_to(top))] = [stat.S_IMODE(path.stat().st_mode), data]
    print(json.dumps(found))
    """)

MAKE = "import os, sys; [os.makedirs(path, exist_ok=True) for path in sys.argv[1:]]"
MODES = {
    "model/config.json": 0o600,
    "model/vocab.txt": 0o444,
    "model/tokens": 0o750,
    "model/tokens/merges.txt": 0o640,
    "src/serve.sh": 0o755,
    "docs/card.md": 0o644,
    "model/model-00001-of-00003.safetensors": 0o644,
}
DIFF = """\
M Kitfile
D data/eval.csv
D data/train/two.jsonl
A docs/tuning.md
A model/adapter.safetensors
M model/config.json
M model/model-00002-of-00003.safetensors
A model/state.bin
A model/tokens/new.txt
M model/vocab.txt
M src/serve.sh
"""


@pytest.fixture(params=["root", "user"])
def tuner(request, used_by):
    """The machine, used by root or by a user; ``myllm:3.1.4`` was packed."""
    machine = used_by(request.param)
    machine.python(PACK, machine.folder / "src")
    machine.run("pack", machine.folder / "src", "-t", "myllm:3.1.4")
    machine.python(MAKE, *(machine.folder / name for name in ("mnt", "old", "new")))
    return machine


def tree(machine, place) -> dict[str, list[object]]:
    return json.loads(machine.python(TREE, place))


def inspect(machine, reference: str) -> dict[str, object]:
    return json.loads(machine.run("inspect", reference).stdout)


def unpacked(machine, reference: str, name: str) -> dict[str, list[object]]:
    machine.run("unpack", reference, "-d", machine.folder / name)
    return tree(machine, machine.folder / name)


def test_a_day(tuner, kit, read_tree):
    """What was saved, edited and deleted is in the child with the parent's modes; the parent is what it was."""
    folder = tuner.folder
    before, old = inspect(tuner, "myllm:3.1.4"), unpacked(tuner, "myllm:3.1.4", "before")
    assert {path: old[path][0] for path in MODES} == MODES
    tuner.run("mount", "myllm:3.1.4", folder / "mnt", "--writable", "--staging", folder / "work")
    tuner.python(TUNE, folder / "mnt")
    assert tuner.run("diff", folder / "mnt").stdout == DIFF
    shown = tree(tuner, folder / "mnt")
    planned = tuner.run("commit", folder / "mnt", "myllm:3.1.5", "--dry-run").stdout
    states = dict(line.split()[0:3:2] for line in planned.splitlines())
    assert planned.count("unchanged") == 0 and states["removed"] == "data/eval.csv"
    tuner.run("inspect", "myllm:3.1.5", status=3)
    done = json.loads(
        tuner.run("commit", folder / "mnt", "myllm:3.1.5", "-m", "tuned on tickets", "--format", "json").stdout
    )
    assert done["parent"] == before["digest"] and done["parentReference"] == "myllm:3.1.4"
    assert "tuned on tickets" in tuner.run("log", "myllm:3.1.5").stdout

    tuner.run("mount", "myllm:3.1.4", folder / "old")
    tuner.run("mount", "myllm:3.1.5", folder / "new")
    hashes = {path: data for path, (_, data) in tree(tuner, folder / "new").items()}
    assert hashes.pop("Kitfile") and hashes == {path: data for path, (_, data) in shown.items() if path != "Kitfile"}
    assert {path: data for path, (_, data) in tree(tuner, folder / "old").items()} == {
        path: data for path, (_, data) in old.items()
    }
    for name in ("old", "new", "mnt"):
        tuner.run("umount", folder / name)
    assert inspect(tuner, "myllm:3.1.4") == before and unpacked(tuner, "myllm:3.1.4", "after") == old
    tuner.run("verify", "myllm:3.1.4")

    new = unpacked(tuner, "myllm:3.1.5", "child")
    assert {path: new[path][0] for path in MODES} == MODES
    assert new["docs/card.md"] == old["docs/card.md"] and "data/eval.csv" not in new
    again = json.loads(tuner.run("commit", folder / "work", "again:1", "-m", "m", "--format", "json").stdout)
    assert [layer["digest"] for layer in inspect(tuner, "again:1")["manifest"]["layers"]] == [
        layer["digest"] for layer in inspect(tuner, "myllm:3.1.5")["manifest"]["layers"]
    ] and again["parent"] == before["digest"]
    if kit is not None:
        tuner.run("export", "--kit", "myllm:3.1.5", folder / "kit")
        kit(folder / "kit", "unpack", "myllm:3.1.5", "-d", folder / "by-kit")
        assert read_tree(folder / "by-kit") == read_tree(folder / "child")
    assert tuner.all_mounts() == [] and tuner.sessions() == []
    tuner.run("fsck")
