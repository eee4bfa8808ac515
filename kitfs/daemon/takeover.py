"""How a daemon takes the mounts of a running one over, so that a new version serves them (``kitfs daemon --replace``).

Both ends: ``take_over`` is the new daemon's, before it has an event loop, ``hand_over`` the old one's. Over a
SOCK_SEQPACKET pair goes a datagram per session with what keeps it alive; the new daemon answers when it has all, and
only then does the old one end, its zygote first. Until then it serves on, whatever becomes of the new one.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from kitfs import __version__
from kitfs.calls import HandOverAnswer, HandOverCall
from kitfs.control import ControlConnection, DaemonUnreachable, encode_descriptors, parse_descriptors
from kitfs.daemon.kept import KEPT_DESCRIPTORS, KeptSet

log = logging.getLogger(__name__)

TIMEOUT_S = 20.0
_TAKEN = b"taken"


class TakenOver(NamedTuple):
    """What a daemon has handed over.

    Attributes:
        kept: By session, its descriptors.
        idle_s: For how long that daemon would have outlived its last mount.
    """

    kept: dict[str, list[int]]
    idle_s: float


def take_over(path: Path) -> TakenOver:
    """Have the daemon at a socket hand its mounts over, and wait until it has ended. Blocks.

    Raises:
        DaemonUnreachable: when it does not; it serves on then.
        KitfsError: why it does not want to.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept: dict[str, list[int]] = {}
    with ours, ControlConnection.connect(path) as connection:
        with theirs:
            call = HandOverCall(__version__)
            answer = connection.call(
                "HandOver", call, HandOverAnswer, descriptors=[theirs.fileno()], timeout_s=TIMEOUT_S
            )
        process = os.pidfd_open(answer.pid)
        try:
            ours.settimeout(TIMEOUT_S)
            room = socket.CMSG_LEN(4 * KEPT_DESCRIPTORS)
            for _ in range(answer.count):
                raw, ancillary, _, _ = ours.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
                if not raw:
                    raise DaemonUnreachable("the daemon did not hand over all its mounts")
                kept[raw.decode("utf-8", "replace")] = parse_descriptors(ancillary)
            ours.send(_TAKEN)
            if not select.select([process], [], [], TIMEOUT_S)[0]:
                log.error("the daemon before (process %d) does not end", answer.pid)
        except OSError as error:
            raise DaemonUnreachable(f"the daemon did not hand over all its mounts: {error}") from None
        finally:
            os.close(process)
    return TakenOver(kept, answer.idle_s)


async def hand_over(kept: Sequence[KeptSet], successor: trio.socket.SocketType, leave: Callable[[], None]) -> None:
    """Send each set, and end this process when the other daemon says that it has all; else go on."""
    with successor, trio.move_on_after(TIMEOUT_S):
        try:
            for each in kept:
                await successor.sendmsg([each.session.encode()], encode_descriptors(each.descriptors()))
            said = await successor.recv(len(_TAKEN))
        except OSError as error:
            log.warning("the other daemon has not taken over: %s", error)
            return
        if said == _TAKEN:
            leave()
    log.warning("the other daemon has not taken over")
