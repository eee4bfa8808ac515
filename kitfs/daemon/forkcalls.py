"""What the daemon and its zygote say to each other, one JSON object a datagram.

Used by ``kitfs.daemon.forker`` (the daemon's end) and ``kitfs.daemon.zygote`` (the other). Pure. Descriptors go along
as SCM_RIGHTS: with a ``ForkCall`` the worker's end of its control socket, with an answer to it a pidfd.
"""

from __future__ import annotations

import msgspec

DATAGRAM_SIZE_MAX = 16 << 10
"""Longest datagram; the longest path in one is 4096 bytes."""


class ForkCall(msgspec.Struct):
    """Daemon to zygote: fork a worker.

    Attributes:
        number: Chosen by the daemon, comes back in the answer.
        home: The store's folder.
    """

    number: int
    home: str


class ZygoteMessage(msgspec.Struct, omit_defaults=True):
    """Zygote to daemon: a fork was made (with its pidfd) or failed, or a child died and has been reaped.

    Attributes:
        number: The call that this answers; 0 for a death.
        pid: The child.
        error: Why there is none.
        exit_code: Of a dead child: its exit code, or minus the signal that killed it.
    """

    number: int = 0
    pid: int = 0
    error: str = ""
    exit_code: int | None = None
