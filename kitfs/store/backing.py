"""Files that hold a member or a raw blob and nothing else, named so that another process can open the very same one.

For passthrough (lazy.md 3): a worker says which file, by digest and by the stamp of its record; the daemon, which knows
no index and believes no path, opens it below the store and compares the stamp itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Literal

import msgspec

from kitfs.digest import Digest
from kitfs.store.layout import Layout
from kitfs.store.plain import open_plain
from kitfs.store.records import Stamp
from kitfs.store.stamp import matches


class Backing(msgspec.Struct, frozen=True):
    """A trusted file.

    Attributes:
        kind: Which of the store's folders it lies in.
        digest: ``sha256:…`` of its bytes.
        stamp: What it looked like when they were verified.
    """

    kind: Literal["blobs", "members"]
    digest: str
    stamp: Stamp


def open_backing(layout: Layout, backing: Backing) -> int:
    """A descriptor (read only, close on exec) of a trusted file, which nobody evicts while it is open anywhere.

    Raises:
        OSError: ESTALE when its stamp does not hold any more, EAGAIN when it is just being evicted, or why it can not
            be opened.
        DigestMalformed: when the digest is none.
    """
    digest = Digest.parse(backing.digest)
    descriptor = open_plain(layout.member(digest) if backing.kind == "members" else layout.blob(digest))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not matches(backing.stamp, os.fstat(descriptor)):
            raise OSError(errno.ESTALE, "the file is not as it was when it was verified")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
