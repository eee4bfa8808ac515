"""Opening what should be a plain file, wherever something else may lie in its place.

Used by reads of blobs and members. Never follows a symlink, never waits for the other end of a pipe.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class NotPlain(OSError):
    """A path at which no plain file lies."""


def open_plain(path: Path) -> int:
    """A descriptor (read only, close on exec) of a plain file.

    Raises:
        NotPlain: when something else lies there: a symlink, a folder, a pipe, a socket, a device.
        OSError: when it can not be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotPlain(error.errno, "no plain file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotPlain(errno.EINVAL, "no plain file", str(path))
    return fd
