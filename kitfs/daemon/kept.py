"""What keeps a mount alive: its device, its session's memory and its session's lock, and who holds copies of them.

The three are a *kept set*. Daemon and worker have one, and the zygote has a copy; under a service manager its store of
descriptors has one instead (``kitfs.daemon.systemd``). As long as one holder lives the mount does, and when all have
dropped it the connection ends. Each holder has each set once. Used by ``kitfs.daemon``; nothing here awaits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from kitfs.control import is_fuse_device
from kitfs.errors import UsageError
from kitfs.fuse.memory import MemoryUnusable, SessionMemory

KEPT_DESCRIPTORS = 3


class KeptSetRefused(UsageError):
    """Descriptors that are not a device, a session's memory and a lock."""


@dataclass(eq=False)
class KeptSet:
    """What keeps one mount alive; closed once, by its holder.

    Attributes:
        device: The connection's ``/dev/fuse``.
        memory: The session's memory.
        lock: A descriptor that holds the flock of the session's record.
    """

    device: int
    memory: SessionMemory
    lock: int

    @property
    def session(self) -> str:
        """Identity of the session."""
        return self.memory.session

    def descriptors(self) -> list[int]:
        """The three, to be passed to another process."""
        return [self.device, self.memory.fileno(), self.lock]

    @classmethod
    def of(cls, descriptors: Iterable[int]) -> Self:
        """Tell three descriptors from another process apart by what they are, and take them over.

        Raises:
            KeptSetRefused: when they are not the three; they are closed then.
        """
        rest = list(descriptors)
        device = lock = -1
        memory: SessionMemory | None = None
        try:
            for descriptor in list(rest):
                status = os.fstat(descriptor)
                if device < 0 and is_fuse_device(descriptor):
                    device = descriptor
                elif memory is None and _is_sealed(descriptor):
                    memory = SessionMemory.map(descriptor)
                    rest.remove(descriptor)
                elif lock < 0 and stat.S_ISREG(status.st_mode):
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    lock = descriptor
                else:
                    raise KeptSetRefused("a descriptor is neither device, memory nor lock")
            if device < 0 or lock < 0 or memory is None:
                raise KeptSetRefused("device, memory and lock are needed")
        except (OSError, MemoryUnusable, KeptSetRefused) as error:
            for descriptor in rest:
                os.close(descriptor)
            if memory is not None:
                memory.close()
            raise KeptSetRefused(f"these descriptors keep no mount alive: {error}") from None
        return cls(device, memory, lock)

    def close(self) -> None:
        """Let go of it."""
        if self.device >= 0:
            os.close(self.device)
            self.memory.close()
            os.close(self.lock)
            self.device = self.lock = -1


def open_worker(memory: SessionMemory) -> tuple[int, int] | None:
    """Process id and pidfd of the worker that lives, None when there is none."""
    pid = memory.find_worker()
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if memory.find_worker() == pid:
        return pid, pidfd
    os.close(pidfd)
    return None


def _is_sealed(descriptor: int) -> bool:
    """Whether a file can not shrink: a file in the store is none."""
    with contextlib.suppress(OSError):
        return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    return False
