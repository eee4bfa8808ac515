"""How patient a daemon is with its workers. Read once when it starts; the environment goes to its successors too.

Used by ``kitfs.daemon.forker``, which hands it to workers and sessions. Pure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

HUNG_S = 10.0
"""A worker whose event loop has answered nothing for so long is hung; on a quiet machine it answers in 1 ms."""

NO_WORKER_S = 60.0
"""With no worker for so long a mount is given up, so that its readers get an error instead of waiting for ever."""

HUNG_VARIABLE = "KITFS_HUNG_S"
NO_WORKER_VARIABLE = "KITFS_NO_WORKER_S"
NO_RESEND_VARIABLE = "KITFS_NO_RESEND"
"""Environment variables of the daemon: other times, and ``1`` for a kernel without ``FUSE_NOTIFY_RESEND``."""


@dataclass(frozen=True)
class Limits:
    """How patient the daemon is.

    Attributes:
        hung_s: After how long a silent worker is hung.
        no_worker_s: After how long without a worker a mount is given up.
        no_resend: Whether to go on as if the kernel could not send requests again.
    """

    hung_s: float = HUNG_S
    no_worker_s: float = NO_WORKER_S
    no_resend: bool = False

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """As the environment says; what is no time there is passed over."""
        return cls(
            _read_seconds(environ, HUNG_VARIABLE, HUNG_S),
            _read_seconds(environ, NO_WORKER_VARIABLE, NO_WORKER_S),
            environ.get(NO_RESEND_VARIABLE) == "1",
        )


def _read_seconds(environ: Mapping[str, str], name: str, otherwise: float) -> float:
    try:
        seconds = float(environ.get(name, ""))
    except ValueError:
        return otherwise
    return seconds if 0 < seconds < float("inf") else otherwise
