"""How the daemon is, in one look: for ``kitfs status``, and for metrics.

Used by ``kitfs.daemon.service``. Looks at ``/proc/self`` and asks the workers; touches no mount and not the store.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kitfs import __version__
from kitfs.calls import Lack, StatusAnswer
from kitfs.daemon.abilities import MENDS, NO_PRIVILEGE, find_obstacle
from kitfs.daemon.forker import Forker
from kitfs.daemon.procfs import has_no_new_privileges
from kitfs.daemon.table import Table


class Overview:
    """What is known of one daemon.

    Attributes:
        home: The store's folder.
        metrics: Where metrics are served, empty for nowhere.
        lacks: What has not worked since the daemon started.
        is_service: Whether a service manager keeps it.
    """

    def __init__(self, table: Table, forker: Forker, home: Path, socket: Path) -> None:
        self.home = home
        self.metrics = ""
        self.lacks: list[Lack] = []
        self.is_service = False
        self._table = table
        self._forker = forker
        self._socket = socket
        self._started_s = time.time()

    async def describe(self) -> StatusAnswer:
        """All of it as it is now; a worker that does not answer within a second has its last counters."""
        answer = StatusAnswer(__version__, os.getpid(), os.fspath(self.home), os.fspath(self._socket), self._started_s)
        answer.mounts = await self._table.states()
        answer.zygote, answer.zygote_restarts = self._forker.zygote_pid, self._forker.zygote_restarts
        refused = (mount.passthrough for mount in answer.mounts if mount.passthrough)
        answer.passthrough = find_obstacle() or next(refused, "")
        answer.metrics, answer.degraded = self.metrics, [*self.lacks]
        answer.is_service = self.is_service
        if answer.passthrough == NO_PRIVILEGE and os.geteuid() == 0 and not has_no_new_privileges():
            what = "the daemon has no CAP_SYS_ADMIN, so files that are opened from now on are not passed through"
            answer.degraded.append(Lack(what, MENDS[NO_PRIVILEGE]))
        if not answer.zygote:
            answer.degraded.append(Lack("there is no zygote, so no worker can be replaced; the daemon's log says why"))
        return answer
