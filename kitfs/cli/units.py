"""``kitfs doctor --install-units``: the units of systemd, with the path of this kitfs in them, and ``mount.kitfs``.

Writes nothing but them and starts nothing; running it again brings them up to date.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from kitfs.cli.fstab import NAME
from kitfs.errors import NotFoundError
from kitfs.mountinfo import absolute

UNIT_FOLDER = "etc/systemd/system"
USER_FOLDER = "etc/systemd/user"
MOUNT_FOLDER = "sbin"
_PROGRAM = "@kitfs@"


class ProgramNotFound(NotFoundError):
    """The command ``kitfs`` is nowhere where a unit could run it."""

    hint = "install kitfs, or put the folder of its command into PATH"


def iter_units(users: bool = False) -> Iterator[tuple[str, str]]:
    """Name and text of each unit of the system, or of users; ``@kitfs@`` stands for the command's path."""
    folder = resources.files("kitfs").joinpath("systemd", *(["user"] if users else []))
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.is_file():
            yield entry.name, entry.read_text("utf-8")


def find_program() -> Path:
    """The command ``kitfs``: the one that runs, else the one beside this Python, else the first in PATH.

    Raises:
        ProgramNotFound: when there is none.
    """
    places = [shutil.which(sys.argv[0]), Path(sys.executable).parent / "kitfs", shutil.which("kitfs")]
    for place in places:
        if place and Path(place).name == "kitfs" and os.access(place, os.X_OK):
            return absolute(Path(place))
    raise ProgramNotFound("there is no command kitfs that a unit could run")


def install_units(root: Path, program: Path) -> list[Path]:
    """Write the units, and link ``mount.kitfs`` to the program.

    Args:
        root: Where ``/etc`` and ``/sbin`` lie.
        program: What the units run.

    Returns:
        What was written.

    Raises:
        OSError: when something can not be written.
    """
    written = []
    for folder, users in ((root / UNIT_FOLDER, False), (root / USER_FOLDER, True)):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in iter_units(users):
            scratch = folder / f".{name}.new"
            scratch.write_text(text.replace(_PROGRAM, os.fspath(program)), "utf-8")
            scratch.chmod(0o644)
            written.append(scratch.rename(folder / name))
    link = root / MOUNT_FOLDER / NAME
    link.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(program)
    return [*written, link]
