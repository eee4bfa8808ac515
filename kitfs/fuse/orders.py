"""What the daemon and a worker say to each other, one JSON object a datagram.

A worker that has just been forked waits for its first order. ``PrepareOrder`` has it resolve a ModelKit and answer
``prepared``; a ``ServeOrder`` follows once the client has mounted. A successor of a dead worker gets the ``ServeOrder``
at once. It carries device, INIT socket and session memory (SCM_RIGHTS), and is answered ``ready``. A worker whose
socket is closed before that ends. Used by ``kitfs.fuse.worker`` and ``kitfs.daemon``. Pure; knows no pyfuse3.
"""

from __future__ import annotations

import errno
import os

import msgspec

from kitfs.calls import PrepareAnswer, PrepareCall
from kitfs.control import Refusal
from kitfs.store.backing import Backing

DATAGRAM_SIZE_MAX = 64 << 10
"""Longest datagram: a reference and two paths of 4096 bytes, each byte six as JSON writes the oddest."""

SERVE_DESCRIPTORS = 3
"""Device, the SOCK_SEQPACKET end that holds the copy of INIT, the session's memory."""


class PrepareOrder(msgspec.Struct, frozen=True, tag="prepare"):
    """Resolve what is to be mounted, record it as a session, and hold it.

    Attributes:
        session: Identity of the session that is to be made.
        call: What the client asked for.
        uid: Who mounts.
        gid: That user's group.
    """

    session: str
    call: PrepareCall
    uid: int
    gid: int


class ServeOrder(msgspec.Struct, frozen=True, tag="serve"):
    """Serve a session through the device that comes along.

    Attributes:
        session: Which; that of the ``PrepareOrder`` when there was one.
        resend: Whether a worker that had this device has died and has been reaped.
        blame: How much its death says against what it had in hand (``kitfs.fuse.deliveries``): 8 when it died by its
            own doing, 2 for want of memory, 1 when somebody killed it, 0 when the daemon did so to replace it.
        socket: Where the daemon listens: whom to turn to when this daemon is gone; empty for nobody.
        may_start: Whether to start a daemon when none answers there.
    """

    session: str
    resend: bool
    blame: int = 1
    socket: str = ""
    may_start: bool = False


class HoldOrder(msgspec.Struct, frozen=True, tag="hold"):
    """Open a session that another worker serves, and answer ``prepared``; its ``ServeOrder`` follows.

    Attributes:
        session: Which.
    """

    session: str


Order = PrepareOrder | ServeOrder | HoldOrder

FOR_THIS_FILE = frozenset(
    {errno.ENOENT, errno.ESTALE, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINVAL, errno.EIO}
)
"""Errors of a ``BackingCall`` after which other files are asked for; after any other none is."""

_OBSTACLES = {
    errno.EPERM: "the daemon has no CAP_SYS_ADMIN",
    errno.ELOOP: "the store lies on a stacked file system, such as an overlay",
    errno.EOPNOTSUPP: "this kernel passes no files through (before Linux 6.9)",
    errno.ENOTTY: "this kernel passes no files through (before Linux 6.9)",
}


def describe_obstacle(number: int) -> str:
    """Why no file is passed through, in words."""
    return _OBSTACLES.get(number) or os.strerror(number)


class BackingCall(msgspec.Struct, omit_defaults=True):
    """Worker to daemon: make a file known to the kernel, or take one back.

    Attributes:
        number: Chosen by the worker, comes back in the answer.
        backing: Which file.
        give_back: The id of one that no open file uses any more; there is no answer.
    """

    number: int = 0
    backing: Backing | None = None
    give_back: int = 0


class BackingAnswer(msgspec.Struct, omit_defaults=True):
    """Daemon to worker: the id of a file, or why there is none (errno).

    Attributes:
        number: Of the call.
        backing_id: By which number the kernel knows the file.
        error: Why it does not.
    """

    number: int
    backing_id: int = 0
    error: int = 0


class WorkerMessage(msgspec.Struct, omit_defaults=True):
    """What a worker says: what it has prepared, that it serves, why it can not, that it is alive, or how its mount is.

    Its counters, which go with that, are in the session's memory.

    Attributes:
        prepared: Answer to a ``PrepareOrder``.
        ready: Answer to a ``ServeOrder``: reads work.
        failed: Why it ends.
        alive: Answer to ``{"probe": true}``, given by its event loop at once.
        backing: What it asks for itself, at any time.
        native: Share of the bytes shown that are plain files in the store.
        state: ``lazy``, ``partial`` or ``native``.
    """

    prepared: PrepareAnswer | None = None
    ready: bool = False
    failed: Refusal | None = None
    alive: bool = False
    backing: BackingCall | None = None
    native: float = 0.0
    state: str = "lazy"
