"""What the daemon and systemd say to each other: the listening socket, readiness, the watchdog (sd_notify(3)).

systemd also holds copies of what keeps mounts alive (``FDSTORE=1``, the session's identity as ``FDNAME``): they come
back with the listening socket when it starts the daemon again.

Used by ``kitfs.daemon.service``. The variables of the environment are taken out of it when they are read, so that no
child speaks in the daemon's name. Without them everything here does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence

from kitfs.control import encode_descriptors

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3
"""Where passed descriptors begin (SD_LISTEN_FDS_START)."""


class Supervisor:
    """The service manager that this process was started by, if any.

    Attributes:
        listener: The descriptor of the listening socket that it passed, -1 for none.
        kept: By session, the descriptors that an earlier daemon had it hold.
        watchdog_s: How often it wants to hear that all is well, 0 for never: half of its patience.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        taken = {name: environ.pop(name, "") for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")}
        names = environ.pop("LISTEN_FDNAMES", "").split(":")
        us = str(os.getpid())
        usec = taken["WATCHDOG_USEC"]
        self.watchdog_s = int(usec) / 2e6 if usec.isdigit() and taken["WATCHDOG_PID"] in ("", us) else 0.0
        self.listener = -1
        self.kept: dict[str, list[int]] = {}
        if taken["LISTEN_FDS"].isdigit() and taken["LISTEN_PID"] == us:
            self._take(int(taken["LISTEN_FDS"]), names)

    def _take(self, count: int, names: list[str]) -> None:
        """Sort what was passed: sockets are to be listened at, the rest keeps mounts alive."""
        for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count):
            os.set_inheritable(descriptor, False)
            index = descriptor - FIRST_DESCRIPTOR
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                self.kept.setdefault(names[index] if index < len(names) else "", []).append(descriptor)
            elif self.listener < 0:
                self.listener = descriptor
            else:
                os.close(descriptor)

    def __bool__(self) -> bool:
        return bool(self._address)

    def keep(self, session: str, descriptors: Sequence[int]) -> None:
        """Have it hold copies; those that it holds already it holds once (file-descriptor-store(7))."""
        self.tell(f"FDSTORE=1\nFDNAME={session}", descriptors)

    def drop(self, session: str) -> None:
        """Have it close its copies of a session."""
        self.tell(f"FDSTOREREMOVE=1\nFDNAME={session}")

    def tell(self, state: str, descriptors: Sequence[int] = ()) -> None:
        """Tell it the daemon's state, such as ``READY=1``; a failure is logged and passed over."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.sendmsg([state.encode()], encode_descriptors(descriptors) if descriptors else [], 0, address)
        except OSError as error:
            log.warning("the service manager can not be told %s: %s", state, error)
