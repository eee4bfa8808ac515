"""Whether a daemon can still be found: its socket lies where commands look for it.

A socket unit that is started where a daemon runs already takes the path, and so does whoever cleans up a folder of
temporary files. No command reaches the daemon then, yet it holds the store. Used by ``kitfs.daemon.service``.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
from pathlib import Path

import trio

log = logging.getLogger(__name__)


async def wait_until_lost(path: Path) -> None:
    """Return when what lies at ``path`` now is no longer there; main thread only.

    The kernel tells of changes of the folder (F_NOTIFY, fcntl(2)); where it can not, this never returns.
    """
    ours = _identify(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with trio.open_signal_receiver(signal.SIGIO) as changes:
            try:
                kinds = fcntl.DN_CREATE | fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT
                fcntl.fcntl(folder, fcntl.F_NOTIFY, kinds)
            except OSError as error:
                log.info("changes of %s are not seen: %s", path.parent, error)
                await trio.sleep_forever()
            while _identify(path) == ours:
                await anext(changes)
    finally:
        os.close(folder)


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
