"""``kitfs diff DIR``: what was changed over a ModelKit, as root and as a user without privilege."""

import json
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

TOUCH = textwrap.dedent("""
    import os, pathlib, sys
    top = pathlib.Path(sys.argv[1])
    for path in [path for path in top.rglob("*") if ".kitfs" not in path.parts and not path.is_symlink()]:
        os.utime(path)
    (top / "data/a.txt").write_text("a\\n")
    with open(top / "model/private.bin", "ab") as file:
        file.write(b"more")
        file.flush()
        os.ftruncate(file.fileno(), len(b"private"))
    """)

CHANGE = textwrap.dedent("""
    import os, pathlib, subprocess, sys
    top = pathlib.Path(sys.argv[1])
    with open(top / "model/private.bin", "ab") as file:
        file.write(b", more")
    with open(top / "model/weights.bin", "r+b") as file:
        file.write(b"tensor")
    (top / "docs/README.md").rename(top / "docs/READ.md")
    subprocess.run(["mv", top / "data/sub", top / "moved"], check=True)
    (top / "data/a.txt").unlink()
    (top / "data/a.txt").mkdir()
    (top / "data/a.txt/\\x1b[2J").touch()
    (top / "link").symlink_to("data")
    """)

REMOVE_CONTENT = textwrap.dedent("""
    import os, pathlib, sys
    size = os.stat(sys.argv[2]).st_size
    for path in pathlib.Path(sys.argv[1]).rglob("*"):
        if path.is_file() and size <= path.stat().st_size < 2 * size and path.suffix != ".mdb":
            path.unlink()
            print(path)
    """)

LINES = [
    "D data/a.txt",
    "A data/a.txt/",
    "A data/a.txt/\\x1b[2J",
    "D data/sub/",
    "A docs/READ.md",
    "D docs/README.md",
    "M model/private.bin",
    "M model/weights.bin",
    "A moved/",
    "A moved/b.txt",
]


@pytest.fixture
def staged(writer):
    """``kit:1`` is mounted writable at ``mnt``, staged in ``work``."""
    writer.mount_writable("--staging", writer.folder / "work")
    yield writer
    writer.run("umount", writer.folder / "mnt")


def test_what_was_changed_is_listed(staged):
    """A, M and D lines in the order of paths, from the mount point and from the staging directory, mounted or not."""
    place, work = staged.folder / "mnt", staged.folder / "work"
    staged.python(CHANGE, place)
    done = staged.run("diff", place)
    assert done.stdout.splitlines() == LINES
    assert done.stderr == "kitfs: warning: link is a symbolic link; a ModelKit can not hold it\n"
    assert staged.run("diff", work, "-q").stdout.splitlines() == [line[2:] for line in LINES]
    staged.run("umount", place)
    assert staged.run("diff", work).stdout.splitlines() == LINES
    staged.mount_writable("--staging", work)
    assert staged.run("diff", place).stdout.splitlines() == LINES


def test_sizes(staged):
    """``--stat`` shows each size before and after and the sums; JSON has the same numbers."""
    place = staged.folder / "mnt"
    staged.python(CHANGE, place)
    *lines, total = staged.run("diff", place, "--stat").stdout.splitlines()
    assert [line.split(maxsplit=5)[-1] for line in lines] == [line[2:] for line in LINES]
    assert lines[6] == "M        7 B       13 B  model/private.bin"
    assert lines[7] == "M    1.0 MiB    1.0 MiB  model/weights.bin"
    assert total == "5 added, 2 modified, 3 deleted; 1.0 MiB before, 1.0 MiB after"
    told = json.loads(staged.run("diff", place, "--format", "json").stdout)
    assert told["reference"] == "kit:1" and told["staging"] == str(staged.folder / "work")
    assert told["others"] == ["link"]
    assert told["sum"] == {
        "added": 5,
        "modified": 2,
        "deleted": 3,
        "sizeBefore": 2 + 2 + 8 + 7 + (1 << 20),
        "sizeAfter": 8 + 13 + (1 << 20) + 2,
    }
    change = {"status": "D", "path": "data/sub", "directory": True, "sizeBefore": 2, "sizeAfter": None}
    assert told["changes"][3] == change


def test_what_was_only_touched_is_no_change(staged):
    """Neither are files that were written to and hold what they held, with the mode that the mount shows."""
    place = staged.folder / "mnt"
    staged.python(TOUCH, place)
    assert staged.run("diff", place).stdout == ""
    assert staged.run("diff", place, "--stat").stdout == "0 added, 0 modified, 0 deleted; 0 B before, 0 B after\n"


def test_other_directories_and_stores(staged, tmp_path: Path):
    """A directory that is no staging directory is 3, one of another store 2; nothing is printed."""
    assert "is no staging directory" in staged.run("diff", staged.folder / "src", status=3).stderr
    assert "is no staging directory" in staged.run("diff", staged.folder / "mnt" / "data", status=3).stderr
    done = staged.run("--home", tmp_path / "other", "diff", staged.folder / "work", status=2)
    assert "belongs to the store" in done.stderr and f"--home {staged.home}" in done.stderr


def test_unchanged_files_are_not_read(staged):
    """What was not touched may be gone from the store: nothing asks for it."""
    place = staged.folder / "mnt"
    staged.write(place / "docs/README.md", "other\n")
    removed = staged.python(REMOVE_CONTENT, staged.home, place / "model/weights.bin").split()
    assert removed
    assert staged.run("diff", place).stdout == "M docs/README.md\n"
