"""Writable mounts, by the kernel's overlayfs as root and by fuse-overlayfs as a user without privilege."""

import textwrap

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

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


def read_only(writer) -> str:
    """What ``kit:1`` holds, by a mount that is not writable."""
    place = writer.place("plain")
    writer.run("mount", "kit:1", place)
    listed = writer.listing(place)
    writer.run("umount", place)
    return listed


def test_owner_appends_creates_replaces_and_deletes_everywhere(writer):
    """The owner may change everything, the parent stays what it was, and what was changed outlives the mount."""
    before = read_only(writer)
    place = writer.mount_writable()
    assert writer.listing(place) == before
    writer.python(CHANGE, place)
    changed = writer.listing(place)
    assert changed != before
    assert read_only(writer) == before
    writer.run("umount", place)
    assert writer.all_mounts() == [] and writer.sessions() == []
    place = writer.mount_writable()
    assert writer.listing(place) == changed
    writer.run("umount", place)


def test_modes_are_those_that_an_owner_can_write_to(writer):
    """Files are 0644, or 0755 if any x bit, whatever was packed; directories are 0755; all belong to who mounted."""
    place = writer.mount_writable()
    script = (
        "import os, sys; print([oct(os.stat(p).st_mode & 0o7777) for p in sys.argv[1:]], os.stat(sys.argv[1]).st_uid)"
    )
    paths = [place, place / "data", place / "model/private.bin", place / "data/run.sh", place / "Kitfile"]
    assert writer.python(script, *paths).strip() == f"['0o755', '0o755', '0o644', '0o755', '0o644'] {writer.uid}"
    writer.run("umount", place)
