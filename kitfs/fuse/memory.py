"""A session's memory: what outlives its workers, and its daemon, in one sealed memfd beside the device.

Made by ``kitfs.daemon.session`` once INIT is answered; daemon, zygote and worker have it mapped or keep its descriptor,
and it goes wherever the device goes. It can not shrink or grow (seals), so a map of it never faults. Layout::

    0         magic (8) | version (u32) | length of the JSON (u32) | restarts (u64) | JSON of a ``SessionHeader``
    31.5 KiB  counters, 512 bytes: u64 each, in the order of ``COUNTERS``
    32 KiB    deliveries, 32 KiB
    64 KiB    open table, 8 MiB, whose untouched pages take no memory

All integers have the byte order of the machine. What the second and third part hold is for whoever uses them to say.

*Who is alive:* a worker holds a POSIX record lock (fcntl(2)) on byte 0 for as long as it lives. A process loses it by
closing **any** descriptor of the memory, so a worker opens no second one and closes none. Nothing here awaits.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from typing import Self

import msgspec

from kitfs.calls import MountState
from kitfs.errors import FuseError

JSON_SIZE_MAX = 31 << 10
"""A path of 4096 bytes, each byte six as JSON writes the oddest, is 24 KiB of it."""

COUNTERS_SIZE = 512
COUNTERS_START = (32 << 10) - COUNTERS_SIZE
COUNTERS = ("reads", "bytes_read", "opens", "lookups", "errors", "spans_decoded")
"""What all workers of a session have done together: the living one adds, so nothing is lost with a dead one."""

DELIVERIES_START = 32 << 10
DELIVERIES_SIZE = 32 << 10
OPENS_START = DELIVERIES_START + DELIVERIES_SIZE
OPENS_SIZE = 8 << 20
MEMORY_SIZE = OPENS_START + OPENS_SIZE

_MAGIC = b"kitfsmem"
_VERSION = 1
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_HEAD = struct.Struct("=8sII")
_RESTARTS = struct.Struct("=Q")
_COUNTERS = struct.Struct(f"={len(COUNTERS)}Q")
_RESTARTS_AT = _HEAD.size
_JSON_AT = _RESTARTS_AT + _RESTARTS.size
_FLOCK = struct.Struct("@hhqqi")
"""``struct flock`` where off_t has 64 bits (fcntl(2)): type, whence, start, length, pid."""


class MemoryUnusable(FuseError):
    """A descriptor that is not a session's memory, or of a version that this program does not know."""


class SessionHeader(msgspec.Struct, frozen=True):
    """What never changes while a mount lives.

    Attributes:
        mount: What ``List`` shows of it before it serves; its ``session`` is the session's identity.
        init: The copy of INIT for each worker's libfuse, masked to what was negotiated.
        offered: Every INIT flag that the kernel offered, both words in one.
        began_s: When it began, seconds since the epoch.
    """

    mount: MountState
    init: bytes
    offered: int
    began_s: float


_HEADER = msgspec.json.Decoder(SessionHeader)


class SessionMemory:
    """A session's memory, mapped.

    Attributes:
        header: What never changes.
        counters: Room for ``COUNTERS``, for whoever serves.
        deliveries: Room for how often requests were delivered.
        opens: Room for the open table.
    """

    def __init__(self, descriptor: int, header: SessionHeader, room: mmap.mmap) -> None:
        """Use ``create`` or ``map``."""
        self.header = header
        self._descriptor = descriptor
        self._map = room
        view = memoryview(room)
        self.counters = view[COUNTERS_START:DELIVERIES_START]
        self.deliveries = view[DELIVERIES_START:OPENS_START]
        self.opens = view[OPENS_START:MEMORY_SIZE]
        view.release()

    @classmethod
    def create(cls, header: SessionHeader) -> Self:
        """Make one, zeroed but for its header.

        Raises:
            MemoryUnusable: when the header does not fit.
        """
        raw = msgspec.json.encode(header)
        if len(raw) > JSON_SIZE_MAX:
            raise MemoryUnusable(f"a session's header of {len(raw)} bytes, more than {JSON_SIZE_MAX}")
        descriptor = os.memfd_create("kitfs-session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, MEMORY_SIZE)
            os.pwrite(descriptor, raw, _JSON_AT)
            os.pwrite(descriptor, _HEAD.pack(_MAGIC, _VERSION, len(raw)), 0)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            return cls(descriptor, header, mmap.mmap(descriptor, MEMORY_SIZE))
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def map(cls, descriptor: int) -> Self:
        """Map one that is there; the descriptor is its own from then on.

        Raises:
            MemoryUnusable: when it is none; the descriptor is still the caller's then.
        """
        try:
            header = _read_header(descriptor)
            return cls(descriptor, header, mmap.mmap(descriptor, MEMORY_SIZE))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MemoryUnusable(f"the descriptor is no session's memory: {error}") from None

    @property
    def session(self) -> str:
        """Identity of the session."""
        return self.header.mount.session

    @property
    def restarts(self) -> int:
        """How many workers have followed the first one."""
        (count,) = _RESTARTS.unpack_from(self._map, _RESTARTS_AT)
        return int(count)

    @restarts.setter
    def restarts(self, count: int) -> None:
        _RESTARTS.pack_into(self._map, _RESTARTS_AT, count)

    def read_counters(self) -> dict[str, int]:
        """The counters as they are just now."""
        return dict(zip(COUNTERS, _COUNTERS.unpack_from(self._map, COUNTERS_START), strict=True))

    def fileno(self) -> int:
        """Its descriptor, to be passed to another process."""
        return self._descriptor

    def lock_life(self) -> None:
        """Say that this process is the session's worker, for as long as it lives.

        Raises:
            OSError: EAGAIN when another worker lives.
        """
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0, os.SEEK_SET)

    def find_worker(self) -> int:
        """Process id of the worker that lives, 0 for none; of a process outside our PID namespace it is 0 or less."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else int(pid)

    def close(self) -> None:
        """Unmap and close it. Never in a worker, which would lose its lock."""
        if self._descriptor < 0:
            return
        self.counters.release()
        self.deliveries.release()
        self.opens.release()
        with contextlib.suppress(BufferError):  # a slice of it is still in use, and keeps the map
            self._map.close()
        os.close(self._descriptor)
        self._descriptor = -1


def _read_header(descriptor: int) -> SessionHeader:
    """Check a descriptor that came from elsewhere, and read its header."""
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise MemoryUnusable("the descriptor is no session's memory: it is not sealed")
    if os.fstat(descriptor).st_size != MEMORY_SIZE:
        raise MemoryUnusable(f"the descriptor is no session's memory: {os.fstat(descriptor).st_size} bytes")
    magic, version, length = _HEAD.unpack(os.pread(descriptor, _HEAD.size, 0))
    if magic != _MAGIC or length > JSON_SIZE_MAX:
        raise MemoryUnusable("the descriptor is no session's memory: it does not begin like one")
    if version != _VERSION:
        raise MemoryUnusable(f"a session's memory of version {version}, this program knows {_VERSION}")
    return _HEADER.decode(os.pread(descriptor, length, _JSON_AT))
