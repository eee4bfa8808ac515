"""What the daemon and its zygote say to each other, one JSON object a datagram.

Used by ``kitfs.daemon.forker`` (the daemon's end) and ``kitfs.daemon.zygote`` (the other). Pure. Descriptors go along
as SCM_RIGHTS: with a ``ForkCall`` the worker's end of its control socket, with an answer to it a pidfd, with a
``KeepCall`` what keeps a mount alive.
"""

from __future__ import annotations

import msgspec

DATAGRAM_SIZE_MAX = 16 << 10
"""Longest datagram; the longest path in one is 4096 bytes."""


class Restart(msgspec.Struct, frozen=True):
    """What a zygote needs to start its daemon anew.

    Attributes:
        home: The store's folder.
        socket: Where the daemon listens.
        idle_s: For how long it outlives its last mount; 0 is for ever.
    """

    home: str
    socket: str
    idle_s: float


class ForkCall(msgspec.Struct, tag="fork"):
    """Daemon to zygote: fork a worker.

    Attributes:
        number: Chosen by the daemon, comes back in the answer.
        home: The store's folder.
    """

    number: int
    home: str


class KeepCall(msgspec.Struct, tag="keep"):
    """Daemon to zygote: hold copies of a session's device, memory and lock. Harmless when it does already."""

    session: str


class DropCall(msgspec.Struct, tag="drop"):
    """Daemon to zygote: close the copies of a session; answered when that is done."""

    number: int
    session: str


class ReadyCall(msgspec.Struct, tag="ready"):
    """A daemon that its zygote has started, to the zygote: it serves."""


DaemonCall = ForkCall | KeepCall | DropCall | ReadyCall


class ZygoteMessage(msgspec.Struct, omit_defaults=True):
    """Zygote to daemon: its version, an answer, or a child died and has been reaped.

    Attributes:
        number: The call that this answers; 0 for a death.
        pid: The child.
        error: Why there is none.
        exit_code: Of a dead child: its exit code, or minus the signal that killed it.
        version: Of the program; the first message of a zygote.
    """

    number: int = 0
    pid: int = 0
    error: str = ""
    exit_code: int | None = None
    version: str = ""
