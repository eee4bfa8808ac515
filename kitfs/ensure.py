"""``python -m kitfs.ensure HOME SOCKET [--replace]``: see that a daemon of this version listens there.

Run by a worker whose daemon is gone (``kitfs.fuse.adoption``), and by a daemon whose zygote turned out to be of another
version. An interpreter of its own, so that neither imports what only a client needs.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from kitfs import logs
from kitfs.client import ensure_daemon, replace_daemon
from kitfs.errors import KitfsError


def main(home: str, socket: str, *options: str) -> int:
    """See that one listens; 0 when one does."""
    logs.configure_service("kitfs-ensure")
    try:
        if "--replace" in options:
            replace_daemon(Path(home), Path(socket))
        else:
            ensure_daemon(Path(home), Path(socket))
    except KitfsError as error:
        logging.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
