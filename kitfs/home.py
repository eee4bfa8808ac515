"""Where the store is when nobody says so: what the command line and the Python API have in common."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM_HOME = Path("/var/lib/kitfs")


def default_home() -> Path:
    """The store's place: ``$KITFS_HOME``, else ``/var/lib/kitfs`` for root, else the user's data folder."""
    if home := os.environ.get("KITFS_HOME"):
        return Path(home).absolute()
    return SYSTEM_HOME if os.geteuid() == 0 else user_data() / "kitfs"


def user_data() -> Path:
    """The folder for a user's data: ``$XDG_DATA_HOME``, else ``~/.local/share``."""
    if data := os.environ.get("XDG_DATA_HOME"):
        return Path(data)
    return Path.home() / ".local" / "share"
