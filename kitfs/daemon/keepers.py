"""Who holds copies of what keeps a mount alive, beside daemon and worker: every zygote, or a service manager.

Used by ``kitfs.daemon.session``.
"""

from __future__ import annotations

from kitfs.daemon.forker import Forker
from kitfs.daemon.kept import KeptSet
from kitfs.daemon.systemd import Supervisor


class Keepers:
    """Holders of copies.

    Attributes:
        forker: The zygote's end.
    """

    def __init__(self, forker: Forker, supervisor: Supervisor | None = None) -> None:
        self.forker = forker
        self._supervisor = supervisor

    async def keep(self, kept: KeptSet) -> None:
        """Give them copies; harmless when they have them."""
        if self._supervisor is not None:
            self._supervisor.keep(kept.session, kept.descriptors())
        await self.forker.keep(kept)

    async def drop(self, session: str) -> None:
        """Take them away; the zygote's are closed when this returns."""
        if self._supervisor is not None:
            self._supervisor.drop(session)
        await self.forker.drop(session)
