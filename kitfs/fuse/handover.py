"""How a worker comes to serve a connection that is alive already.

libfuse insists on reading INIT before anything else, but the daemon has answered the kernel's INIT long ago. So the
worker's descriptor is at first one end of a SOCK_SEQPACKET pair that holds a copy of that request. libfuse reads the
copy and calls ``Operations.init()``; *there*, before libfuse reads again, the real device takes the socket's number.
libfuse's reply to INIT goes to the real device under a number that the kernel does not know; it answers ENOENT, which
libfuse passes over. The first worker and every later one start in this way.

Used by ``kitfs.fuse.worker``. Nothing here awaits.
"""

from __future__ import annotations

import errno
import logging
import os

import pyfuse3
import trio

from kitfs.errors import FuseError
from kitfs.fuse.protocol import RESEND_NOTIFICATION

log = logging.getLogger(__name__)


class HandoverFailed(FuseError):
    """The device could not be taken over."""


class Handover:
    """One connection that passes from the daemon to this process.

    Attributes:
        resend: Whether a worker that had this device has died.
        taken: Set when the descriptor is the real device.
        error: Why it could not be taken over.
    """

    def __init__(self, *, device: int, init: int, resend: bool) -> None:
        """Remember what is to be taken over.

        Args:
            device: The connection's ``/dev/fuse`` descriptor; it is closed when it has been taken over.
            init: The socket that holds the copy of INIT; its number becomes the device.
            resend: Whether a worker that had this device has died, and has been reaped.
        """
        self._device = device
        self._init = init
        self.resend = resend
        self.taken = trio.Event()
        self.error: OSError | None = None

    @property
    def place(self) -> str:
        """The mount point as libfuse is told it: a descriptor (``fuse_session_mount``, libfuse 3.3 and newer)."""
        return f"/dev/fd/{self._init}"

    def take(self) -> None:
        """Put the device in the socket's place; called from ``Operations.init()``, where nothing may be raised.

        When it fails, the session ends and ``run_session`` raises.
        """
        try:
            self._take()
        except OSError as error:
            self.error = error
            pyfuse3.terminate()

    def _take(self) -> None:
        # Of two readers killed at once one may take its request back between poll and read; a read that blocks would
        # hold up every answer that comes from a thread.
        os.set_blocking(self._device, False)
        os.dup2(self._device, self._init, inheritable=False)
        os.close(self._device)
        if self.resend:
            os.write(self._init, RESEND_NOTIFICATION)
        self.taken.set()


async def run_session(operations: pyfuse3.Operations, handover: Handover) -> None:
    """Serve a connection until it is gone: unmounted or aborted.

    Args:
        operations: The handlers; its ``init`` calls ``handover.take``.
        handover: The connection.

    Raises:
        HandoverFailed: when libfuse did not accept INIT, or the device can not be taken over.
    """
    pyfuse3.init(operations, handover.place, set())
    try:
        while await _serve_until_nothing_to_read():
            log.debug("a request was taken back before it was read")
    finally:
        pyfuse3.close(unmount=False)
    if not handover.taken.is_set():
        reason = handover.error or "libfuse did not accept the kernel's INIT"
        raise HandoverFailed(f"the FUSE device can not be taken over: {reason}")


async def _serve_until_nothing_to_read() -> bool:
    """Run pyfuse3's loop. True when it ended only because a request was gone before it was read.

    pyfuse3 cancels its other tasks then; handlers shield themselves, so every request that was read is answered.
    """
    try:
        await pyfuse3.main()
    except BaseExceptionGroup as group:
        rest = group.split(_is_nothing_to_read)[1]
        if rest is not None:
            raise rest from None
        return True
    return False


def _is_nothing_to_read(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EAGAIN
