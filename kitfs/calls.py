"""What the calls of the control protocol and their answers say, one struct each.

Used by ``kitfs.client`` and ``kitfs.daemon`` and, as far as it is a worker that carries a call out, by ``kitfs.fuse``.
Framing, errors and the socket are ``kitfs.control``'s. Pure.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Nothing(msgspec.Struct):
    """No parameters."""


class PrepareCall(msgspec.Struct):
    """``Prepare``: resolve what is to be mounted, record it as a session, and have a worker hold it ready.

    The session lasts until ``Mount`` on the same connection; when that does not come, it ends with the connection.

    Attributes:
        reference: The ModelKit, or an empty string for the whole store.
        mountpoint: Where it will be mounted.
        modes: ``kit``, ``writable`` or ``tar``.
        meta: Whether ``.kitfs`` is shown.
        kitops_home: kit's home, looked at first when it is given.
        materialise: When members get files of their own.
        size_max: What members may take of the disk, as ``kitfs.store.quota`` reads it.
        filters: What of the ModelKit is shown, as in ``kitfs.modelkit.filters``; none for all.
        manifests: ``sha256:…`` of the ModelKit and its parents, when it was resolved before; none to resolve it now.
        staging: Identity of the staging directory whose lower layer it will be, empty for none.
    """

    reference: str
    mountpoint: str
    modes: str = "kit"
    meta: bool = True
    kitops_home: str = ""
    materialise: Literal["auto", "never", "always"] = "auto"
    size_max: str = ""
    filters: list[str] = []
    manifests: list[str] = []
    staging: str = ""


class PrepareAnswer(msgspec.Struct):
    """What ``Prepare`` made.

    Attributes:
        session: Identity of the session.
        reference: What is mounted, as it is shown.
        import_first: kit's storage may hold something newer: nothing was made, the client imports it and asks again.
    """

    session: str = ""
    reference: str = ""
    import_first: bool = False


class MountCall(msgspec.Struct):
    """``Mount``: serve what this connection has prepared through the descriptor that comes along.

    Answered when reads work.

    Attributes:
        session: What ``Prepare`` answered.
        device: ``major:minor`` of the mount, which names it in every mount namespace.
    """

    session: str
    device: str


class WaitEndedCall(msgspec.Struct):
    """``WaitEnded``: answered when the daemon has dropped the session, at once when it knows none."""

    session: str
    timeout_s: float = 10.0


class WaitEndedAnswer(msgspec.Struct):
    """Whether the session is gone."""

    ended: bool


class AdoptCall(msgspec.Struct):
    """``Adopt``: go on with a session whose daemon is gone.

    Its device, memory and lock come along; from its worker also one end of a SOCK_SEQPACKET pair, which is its control
    socket from then on.

    Attributes:
        session: Which.
        version: Of the program that calls; a worker of another version than the daemon's is replaced.
    """

    session: str
    version: str


class HandOverCall(msgspec.Struct):
    """``HandOver``: send every session's device, memory and lock over the socket that comes along, then end.

    The daemon ends once it has heard on that socket that all have come, and goes on when it hears nothing.

    Attributes:
        version: Of the daemon that calls, for the log.
    """

    version: str


class HandOverAnswer(msgspec.Struct):
    """What follows on the socket.

    Attributes:
        pid: The process that ends.
        count: So many sessions, a datagram each.
        idle_s: For how long the daemon would have outlived its last mount; 0 is for ever.
    """

    pid: int
    count: int
    idle_s: float = 0.0


class MountState(msgspec.Struct):
    """One mount as ``List`` shows it; the counters are those of all its workers.

    Attributes:
        state: ``lazy``, ``partial`` or ``native``; ``starting`` while no worker answers. Of what nobody serves
            ``kitfs ps`` says ``absent`` when it is wanted and not mounted, and ``dead`` when it is mounted.
        native: Share of the bytes shown that are plain files in the store just now, opened or not, 0 to 1.
        is_writable: Whether it is the lower layer of an overlay, which is what lies at ``mountpoint``.
        wanted: Whether it is mounted again after a reboot.
        spans_decoded: Spans of compressed layers that have been decoded, of about 512 KiB.
        opens: Files opened.
        lookups: Names looked up.
        errors: Requests that failed because something is broken.
        reason: Why it is in its state, where that is not plain: of ``starting`` why no worker serves it.
        passed_through: Files that are open just now and that the kernel reads by itself.
        passthrough: Empty unless the kernel has refused a file for a reason that holds for all of the store's.
    """

    session: str
    mountpoint: str
    reference: str
    device: str
    pid: int = 0
    uptime_s: float = 0.0
    restarts: int = 0
    reads: int = 0
    bytes_read: int = 0
    state: str = "starting"
    native: float = 0.0
    spans_decoded: int = 0
    is_writable: bool = False
    wanted: bool = False
    opens: int = 0
    lookups: int = 0
    errors: int = 0
    reason: str = ""
    passed_through: int = 0
    passthrough: str = ""


class ListAnswer(msgspec.Struct):
    """All mounts that the daemon serves."""

    mounts: list[MountState]


PROTOCOL = 1
"""What client and daemon must agree on; fields that one of them does not know change nothing."""


class PingAnswer(msgspec.Struct):
    """Who answers.

    Attributes:
        protocol: The version of the calls that it understands.
        is_service: Whether a service manager keeps it, and starts it anew.
    """

    version: str
    pid: int
    home: str
    protocol: int = PROTOCOL
    is_service: bool = False


class Lack(msgspec.Struct, frozen=True):
    """Something of the daemon that does not work as it should.

    Attributes:
        what: What, and why.
        mend: The line that mends it, empty where there is none.
    """

    what: str
    mend: str = ""


class StatusAnswer(msgspec.Struct):
    """How the daemon is, and all its mounts.

    Attributes:
        started_s: When it started, seconds since the epoch.
        zygote: Process id of the zygote, 0 while there is none.
        zygote_restarts: Zygotes that died since the daemon started.
        passthrough: Empty when files can be passed through to readers, else why not.
        degraded: What does not work as it should; empty when all is well.
        metrics: Where metrics are served, empty for nowhere.
        is_service: Whether a service manager keeps it, and starts it anew.
        mounts: As ``List``.
    """

    version: str
    pid: int
    home: str
    socket: str
    started_s: float
    zygote: int = 0
    zygote_restarts: int = 0
    passthrough: str = ""
    degraded: list[Lack] = []
    metrics: str = ""
    is_service: bool = False
    mounts: list[MountState] = []
