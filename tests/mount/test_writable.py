"""Writable mounts, by the kernel's overlayfs as root and by fuse-overlayfs as a user without privilege."""

import os
import shutil
import textwrap

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

MAKE_KIT = textwrap.dedent("""
    import pathlib, sys
    top = pathlib.Path(sys.argv[1])
    for name in ("model", "data/sub", "docs"):
        (top / name).mkdir(parents=True)
    (top / "Kitfile").write_text(
        'manifestVersion: 1.0.0\\npackage: {name: t}\\nmodel: {name: m, path: model}\\n'
        'datasets: [{name: d, path: data}]\\ndocs: [{path: docs}]\\n')
    (top / "model/weights.bin").write_bytes(bytes(range(256)) * 4096)
    (top / "model/private.bin").write_bytes(b"private")
    (top / "model/private.bin").chmod(0o600)
    (top / "data/a.txt").write_text("a\\n")
    (top / "data/sub/b.txt").write_text("b\\n")
    (top / "data/run.sh").write_text("#!/bin/sh\\necho runs\\n")
    (top / "data/run.sh").chmod(0o755)
    (top / "docs/README.md").write_text("read me\\n")
    """)

CHANGE = textwrap.dedent("""
    import os, pathlib, subprocess, sys
    top = pathlib.Path(sys.argv[1])
    with open(top / "data/a.txt", "a") as file:
        file.write("more\\n")
    with open(top / "model/weights.bin", "r+b") as file:
        file.seek(1000)
        file.write(b"tensor")
    (top / "model/private.bin").write_bytes(b"replaced")
    temporary = os.open(top / "model/tmp", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.ftruncate(temporary, 3)
    os.write(temporary, b"new")
    os.close(temporary)
    os.rename(top / "model/tmp", top / "model/new.bin")
    assert subprocess.run([top / "data/run.sh"], capture_output=True, check=True).stdout == b"runs\\n"
    (top / "data/run.sh").unlink()
    (top / "data/sub/b.txt").unlink()
    (top / "data/sub").rmdir()
    (top / "data/sub").mkdir()
    (top / "data/sub/c.txt").write_text("c\\n")
    (top / "docs/README.md").rename(top / "docs/READ.md")
    (top / "extra").mkdir()
    (top / "extra/e").touch()
    """)

LIST = textwrap.dedent("""
    import pathlib, sys
    top = pathlib.Path(sys.argv[1])
    for path in sorted(top.rglob("*")):
        if ".kitfs" not in path.parts and not path.is_symlink():
            print(path.relative_to(top), path.read_bytes()[:2000].hex() if path.is_file() else "/")
    """)


@pytest.fixture(params=["root", "user"])
def writer(request, machine):
    """The machine, used by root or by a user; ``kit:1`` is a ModelKit with a model, a dataset and docs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if request.param == "user":
        if shutil.which("fuse-overlayfs") is None:
            pytest.skip("fuse-overlayfs is absent")
        machine = request.getfixturevalue("as_nobody")
    machine.python(MAKE_KIT, machine.folder / "src")
    machine.run("pack", machine.folder / "src", "-t", "kit:1")
    return machine


def mount(writer, *options: object, name: str = "mnt", reference: str = "kit:1", status: int = 0):
    """Mount writable: the mount point, and what was said."""
    place = writer.folder / name
    writer.python("import os, sys; os.makedirs(sys.argv[1], exist_ok=True)", place)
    done = writer.run("mount", reference, place, "--writable", *options, status=status)
    return place, done.stderr


def read_only(writer) -> str:
    """What ``kit:1`` holds, by a mount that is not writable."""
    place = writer.folder / "plain"
    writer.python("import os, sys; os.makedirs(sys.argv[1], exist_ok=True)", place)
    writer.run("mount", "kit:1", place)
    listed = writer.python(LIST, place)
    writer.run("umount", place)
    return listed


def test_owner_appends_creates_replaces_and_deletes_everywhere(writer):
    """The owner may change everything, the parent stays what it was, and what was changed outlives the mount."""
    before = read_only(writer)
    place, _ = mount(writer)
    assert writer.python(LIST, place) == before
    writer.python(CHANGE, place)
    changed = writer.python(LIST, place)
    assert changed != before
    assert read_only(writer) == before
    writer.run("umount", place)
    assert writer.all_mounts() == [] and writer.sessions() == []
    place, _ = mount(writer)
    assert writer.python(LIST, place) == changed
    writer.run("umount", place)


def test_modes_are_those_that_an_owner_can_write_to(writer):
    """Files are 0644, or 0755 if any x bit, whatever was packed; directories are 0755; all belong to who mounted."""
    place, _ = mount(writer)
    script = (
        "import os, sys; print([oct(os.stat(p).st_mode & 0o7777) for p in sys.argv[1:]], os.stat(sys.argv[1]).st_uid)"
    )
    paths = [place, place / "data", place / "model/private.bin", place / "data/run.sh", place / "Kitfile"]
    assert writer.python(script, *paths).strip() == f"['0o755', '0o755', '0o644', '0o755', '0o644'] {writer.uid}"
    writer.run("umount", place)
