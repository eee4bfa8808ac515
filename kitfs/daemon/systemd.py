"""What the daemon and systemd say to each other: the listening socket, readiness, the watchdog (sd_notify(3)).

Used by ``kitfs.daemon.service``. The variables of the environment are taken out of it when they are read, so that no
child speaks in the daemon's name. Without them everything here does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3
"""Where passed descriptors begin (SD_LISTEN_FDS_START)."""


class Supervisor:
    """The service manager that this process was started by, if any.

    Attributes:
        listener: The descriptor of the listening socket that it passed, -1 for none.
        watchdog_s: How often it wants to hear that all is well, 0 for never: half of its patience.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        taken = {name: environ.pop(name, "") for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")}
        environ.pop("LISTEN_FDNAMES", None)
        us = str(os.getpid())
        usec = taken["WATCHDOG_USEC"]
        self.watchdog_s = int(usec) / 2e6 if usec.isdigit() and taken["WATCHDOG_PID"] in ("", us) else 0.0
        self.listener = FIRST_DESCRIPTOR if taken["LISTEN_FDS"] == "1" and taken["LISTEN_PID"] == us else -1
        if self.listener >= 0:
            os.set_inheritable(self.listener, False)

    def __bool__(self) -> bool:
        return bool(self._address)

    def tell(self, state: str) -> None:
        """Tell it the daemon's state, such as ``READY=1``; a failure is logged and passed over."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.sendto(state.encode(), address)
        except OSError as error:
            log.warning("the service manager can not be told %s: %s", state, error)
