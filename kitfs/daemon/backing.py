"""Backing files of one session: what its worker asks for is opened here and made known to the kernel.

Registering one needs CAP_SYS_ADMIN, which no worker has (fuse.md 3). The daemon believes no path and no descriptor of a
worker: it opens the file itself by digest and compares the stamp. The kernel's copy of that open file keeps its flock,
so nobody evicts a member that is passed through.

Used by ``kitfs.daemon.session``. Ids that no open file uses are given back when the worker says so, and before each
worker begins: then those that the dead one had asked for and not used are found.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct

import trio

from kitfs.digest import DigestMalformed
from kitfs.fuse.opentable import IssuedIds
from kitfs.fuse.orders import FOR_THIS_FILE, BackingAnswer, BackingCall, describe_obstacle
from kitfs.store.backing import Backing, open_backing
from kitfs.store.layout import Layout

log = logging.getLogger(__name__)

CALLS_MAX = 128
"""Questions of one worker under way at once; it has at most 99 requests of the kernel."""

_IOC_BACKING_OPEN = 0x4010E501
_IOC_BACKING_CLOSE = 0x4004E502
"""``FUSE_DEV_IOC_BACKING_OPEN`` and ``_CLOSE`` (linux/fuse.h 7.40, Linux 6.9)."""

_MAP = struct.Struct("=iIQ")
"""``struct fuse_backing_map``: descriptor, flags, padding."""

_ID = struct.Struct("=i")


class BackingFiles:
    """What the kernel may read by itself of one session.

    Attributes:
        obstacle: Why the kernel has refused a file, where that holds for all of them; empty while it has not.
    """

    def __init__(self, layout: Layout, device: int, room: memoryview) -> None:
        """Begin; nothing is registered.

        Args:
            layout: The store.
            device: The session's device.
            room: ``SessionMemory.opens``.
        """
        self.obstacle = ""
        self._layout = layout
        self._device = device
        self._room = room
        self._ids: IssuedIds | None = None
        self._is_closed = False
        self._calls = 0

    async def answer(self, call: BackingCall) -> BackingAnswer | None:
        """Carry out what a worker asks for; a file that is to be given back needs no answer."""
        if self._is_closed:
            return None
        ids = self._find_ids()
        if call.give_back:
            if call.give_back in ids:
                self._give_back(ids, call.give_back)
            return None
        if call.backing is None or ids.is_full or self._calls >= CALLS_MAX:
            return BackingAnswer(call.number, error=errno.EMFILE)
        return await self._open(ids, call.number, call.backing)

    async def _open(self, ids: IssuedIds, number: int, backing: Backing) -> BackingAnswer | None:
        self._calls += 1
        try:
            descriptor = await trio.to_thread.run_sync(open_backing, self._layout, backing)
        except DigestMalformed:
            return BackingAnswer(number, error=errno.EINVAL)
        except OSError as error:
            return BackingAnswer(number, error=error.errno or errno.EIO)
        finally:
            self._calls -= 1
        if self._is_closed or ids.is_full:
            os.close(descriptor)
            return None
        try:
            backing_id = fcntl.ioctl(self._device, _IOC_BACKING_OPEN, bytearray(_MAP.pack(descriptor, 0, 0)))
        except OSError as error:
            reason = error.errno or errno.EIO
            self.obstacle = "" if reason in FOR_THIS_FILE else describe_obstacle(reason)
            return BackingAnswer(number, error=reason)
        finally:
            os.close(descriptor)
        self.obstacle = ""
        ids.add(backing_id)
        return BackingAnswer(number, backing_id)

    def sweep(self) -> int:
        """Give back every id that no open file uses. While no worker serves.

        Returns:
            How many there were.
        """
        ids = self._find_ids()
        unnamed = ids.find_unnamed()
        for backing_id in unnamed:
            self._give_back(ids, backing_id)
        return len(unnamed)

    def _find_ids(self) -> IssuedIds:
        if self._ids is None:
            self._ids = IssuedIds(self._room)
        return self._ids

    def _give_back(self, ids: IssuedIds, backing_id: int) -> None:
        try:
            fcntl.ioctl(self._device, _IOC_BACKING_CLOSE, _ID.pack(backing_id))
        except OSError as error:
            log.warning("backing file %d could not be given back: %s", backing_id, error)
        ids.remove(backing_id)

    def close(self) -> None:
        """Let go of the session's memory; what the kernel has registered goes with the mount."""
        self._is_closed = True
        if self._ids is not None:
            self._ids.close()
            self._ids = None
