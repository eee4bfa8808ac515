"""A store with a daemon of its own, driven through the real command line; nothing of it is left behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("kitfs"))
TIMEOUT_S = 120


def mountpoints_below(folder: Path) -> list[Path]:
    """Mount points below a folder, from mountinfo; no mount is touched."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = line.split(" ")[4].encode().decode("unicode_escape")
        if path.startswith(f"{folder}/"):
            found.append(Path(path))
    return found


def processes_naming(text: str) -> list[int]:
    """Processes whose command line or environment names a path."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if text.encode() in entry.joinpath("cmdline").read_bytes() + entry.joinpath("environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@dataclass
class Kitfs:
    """The command line on one store."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def run(self, *arguments: object, status: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a verb and check its exit code."""
        done = subprocess.run(
            [COMMAND, *map(str, arguments)],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            **options,
        )
        assert done.returncode == status, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def mount(self, *arguments: object, at: str = "mnt") -> Path:
        """Mount and return the mount point."""
        directory = self.folder / at
        directory.mkdir()
        self.run("mount", *arguments, directory)
        return directory

    def mounts(self) -> list[dict[str, object]]:
        """What ``ps`` says."""
        return json.loads(self.run("ps", "--format", "json").stdout)

    def close(self) -> None:
        """Unmount lazily, stop the daemon, and check that nothing is left."""
        for directory in reversed(mountpoints_below(self.folder)):
            subprocess.run(["fusermount3", "-u", "-z", str(directory)], check=False, timeout=TIMEOUT_S)
        subprocess.run(
            [COMMAND, "daemon", "stop"],
            env={**os.environ, **self.environment},
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert mountpoints_below(self.folder) == []


@pytest.fixture
def kitfs(tmp_path: Path) -> Iterator[Kitfs]:
    """A fresh store, a fresh daemon; both are gone afterwards, and the store is sound."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = {
        "KITFS_HOME": str(tmp_path / "home"),
        "KITFS_SOCKET": str(runtime / "kitfs.sock"),
        "KITOPS_HOME": str(tmp_path / "kitops"),
        "XDG_RUNTIME_DIR": str(runtime),
    }
    made = Kitfs(tmp_path, environment)
    try:
        yield made
        if (made.home / "version").exists():
            made.run("fsck")
    finally:
        made.close()


def _copy_writable(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))
    return target


@pytest.fixture
def copy_writable() -> Callable[[Path, Path], Path]:
    """A function that copies a read-only fixture so that the copy may be changed."""
    return _copy_writable
