"""An export that is killed or broken at any moment leaves nothing that looks like one, and the next one succeeds."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from kitfs.transfer.kit_storage import KitStorage

CALLS = ("write", "fsync", "fchmod", "rename", "renameat2", "mkdir", "unlink")
FAILED_AT = ("write", "fsync", "rename", "renameat2", "mkdir")
TAG = "1"
RUN = "from kitfs.cli.main import main; main()"


@pytest.fixture
def home(make_layout, strace, python, tmp_path) -> Path:
    """A store with a ModelKit ``m:1``, whose layer is kept split."""
    layout = make_layout("m", "none", {"large": os.urandom(600_000), "small": b"weights"})
    strace.plain([*python, "-c", RUN, "--home", tmp_path / "home", "import", layout, "--copy", "-q"])
    return tmp_path / "home"


class Place:
    """Somewhere to export to, and what has to hold there whatever happened."""

    def __init__(self, kind: str, path: Path, read_layout) -> None:
        self.path = path
        self.arguments = {"folder": [path], "archive": [path, "--force"], "kit": ["--kit", path]}[kind]
        self._kind = kind
        self._read_layout = read_layout

    def is_there(self) -> bool:
        """Whether the export is there: all of it then, and nothing of it where it is not."""
        if self._kind == "archive":
            if not self.path.exists():
                return False
            folder = self.path.with_suffix(".x")
            folder.mkdir(exist_ok=True)
            subprocess.run(["tar", "-xf", self.path, "-C", folder], check=True)
            return list(self._read_layout(folder)) == [TAG]
        if self._kind == "kit":
            return self._is_in_storage(self.path / "storage")
        if not (self.path / "index.json").exists():
            return False
        return list(self._read_layout(self.path)) == [TAG]

    def _is_in_storage(self, storage: Path) -> bool:
        if not storage.exists():
            return False
        source = KitStorage(storage)
        try:
            entries = list(source.iter_entries())
            for entry in entries:
                with entry.blobs.open_blob(entry.descriptor.digest) as blob:
                    manifest = json.loads(blob.read())
                for item in (manifest["config"], *manifest["layers"]):
                    assert (storage / "blobs/sha256" / item["digest"][7:]).stat().st_size == item["size"]
        finally:
            source.close()
        return [entry.tag for entry in entries] == [TAG]

    def assert_clean(self) -> None:
        """No file of a killed export is left."""
        assert not list(self.path.parent.rglob(".kitfs-export-*"))


@pytest.mark.parametrize("kind", ["folder", "archive", "kit"])
@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC"])
def test_a_fault_at_any_call(kind, fault, home, strace, points, python, tmp_path, read_layout, assert_holds):
    """A kill leaves all or nothing; a full disk is named and 1; the next export is whole and removes what was left."""
    command = [*python, "-c", RUN, "--home", home, "export", "m:1", "--progress", "none"]
    name = "x.tar" if kind == "archive" else "x"
    calls = CALLS if fault.startswith("signal") else FAILED_AT
    counted = Place(kind, tmp_path / "counted" / name, read_layout)
    counted.path.parent.mkdir()
    counts = strace.count([*command, *counted.arguments], calls)
    met = 0
    for call, number in points(counts, calls):
        place = Place(kind, tmp_path / f"{call}-{number}" / name, read_layout)
        place.path.parent.mkdir()
        outcome = strace.run([*command, *place.arguments], call, number, fault)
        is_there = place.is_there()
        met += outcome.returncode != 0
        if outcome.returncode == 0:
            assert is_there
        elif not fault.startswith("signal"):
            assert outcome.returncode == 1 and "No space left" in outcome.stderr, outcome
            assert "Traceback" not in outcome.stderr and "bug" not in outcome.stderr
            place.assert_clean()
        strace.plain([*command, *place.arguments])
        assert place.is_there()
        place.assert_clean()
    assert met > len(calls) // 2
    assert_holds(home)
