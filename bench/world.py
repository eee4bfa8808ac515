"""A store, a daemon and mounts of their own for one measurement, in a temporary folder, gone afterwards.

Only the ``kitfs`` command is used, as a person would. The store lies in the system's temporary folder
(``TMPDIR`` moves it); bodies run one after the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DROPPED = ("KITFS_", "KITOPS_", "PYTHONDONTWRITEBYTECODE")
"""Variables of the caller's that do not reach the world. Without bytecode on disk every command compiles all of
kitfs: 45 ms."""

KITFS = [str(Path(sys.executable).with_name("kitfs"))]


class World:
    """Runs ``kitfs`` against a store of its own.

    Attributes:
        folder: A temporary folder for whatever the measurement needs.
        environment: The environment in which ``kitfs`` runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)},
            "KITFS_HOME": str(folder / "home"),
            "KITFS_SOCKET": str(folder / "kitfs.sock"),
            "KITOPS_HOME": str(folder / "kitops"),
        }

    def kitfs(self, *arguments: str | Path) -> str:
        """Run one command; returns its standard output.

        Raises:
            subprocess.CalledProcessError: when it fails.
        """
        command = [*KITFS, *map(str, arguments)]
        return subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    def pack(self, context: Path, reference: str) -> None:
        """Pack a folder under a reference."""
        self.kitfs("--progress", "none", "pack", context, "-t", reference)

    def mount(self, reference: str, name: str = "mnt") -> Path:
        """Mount a ModelKit at a new folder; returns the folder."""
        mountpoint = self.folder / name
        mountpoint.mkdir(exist_ok=True)
        self.kitfs("mount", reference, mountpoint)
        return mountpoint

    def mounts(self) -> list[dict[str, object]]:
        """What ``kitfs ps`` lists."""
        rows = json.loads(self.kitfs("ps", "--format", "json"))
        assert isinstance(rows, list)
        return rows

    def close(self) -> None:
        """Unmount everything and stop the daemon; says nothing when there is none."""
        for arguments in (["umount", "--all", "--lazy"], ["daemon", "stop"]):
            subprocess.run([*KITFS, *arguments], env=self.environment, check=False, capture_output=True)


@contextmanager
def make_world() -> Iterator[World]:
    """A world for the time of the block; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="kitfs-") as folder:
        world = World(Path(folder))
        try:
            yield world
        finally:
            world.close()
