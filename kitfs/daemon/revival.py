"""How a zygote starts its daemon anew, when that died and nobody else would.

Used by ``kitfs.daemon.zygote``. The daemon is forked, so it takes 10 ms where a new interpreter takes 200, and it has
what the zygote keeps without being sent it. When another daemon serves the store already, one that a command has
started meanwhile, that one is given everything and the zygote ends. With nothing to keep it ends at once, and when no
daemon could be started for ``GIVE_UP_S`` it lets go of all, so that readers get an error. One thread, blocking.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kitfs import __version__, logs
from kitfs.calls import AdoptCall, Nothing
from kitfs.control import ControlConnection
from kitfs.daemon.forkcalls import Restart
from kitfs.errors import BusyError, DaemonError, KitfsError

if TYPE_CHECKING:
    from kitfs.daemon.zygote import Zygote

log = logging.getLogger(__name__)

GIVE_UP_S = 60.0
ADOPT_TIMEOUT_S = 5.0

_TAKEN = 75
"""Exit code of a daemon that found another one (EX_TEMPFAIL, sysexits.h)."""

_FAILED = 70
_QUICK_DEATHS_MAX = 5
_QUICK_S = 1.0
_PAUSE_MAX_S = 1.0


def revive(zygote: Zygote, restart: Restart, score: int) -> None:
    """Start a daemon whenever one has died; returns when there is nothing left to keep, or nobody to keep it for.

    Args:
        zygote: It has lost its daemon.
        restart: How a daemon is started.
        score: The daemon's ``oom_score_adj``; the zygote's own is higher.
    """
    quick_deaths = 0
    ready_s = time.monotonic()
    while zygote.kept:
        began_s = time.monotonic()
        pid = _fork_daemon(zygote, restart, score)
        log.warning("the daemon died; process %d follows it, for %d mount(s)", pid, len(zygote.kept))
        zygote.run()
        _, status = os.waitpid(pid, 0)
        now_s = time.monotonic()
        if zygote.heard_ready:
            ready_s = now_s
        elif os.waitstatus_to_exitcode(status) == _TAKEN and _give_away(zygote, restart):
            return
        elif now_s - ready_s > GIVE_UP_S:
            log.error("no daemon could be started for %g s: %d mount(s) end", GIVE_UP_S, len(zygote.kept))
            return
        quick_deaths = quick_deaths + 1 if now_s - began_s < _QUICK_S else 0
        if quick_deaths > _QUICK_DEATHS_MAX:
            time.sleep(min(0.05 * 2.0 ** (quick_deaths - _QUICK_DEATHS_MAX), _PAUSE_MAX_S))


def _fork_daemon(zygote: Zygote, restart: Restart, score: int) -> int:
    """Fork a daemon, which serves what the zygote keeps, and listen to it from now on; its process id."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become_daemon(zygote, restart, score, (theirs, parent))
    theirs.close()
    zygote.serve_daemon(ours)
    return pid


def _become_daemon(zygote: Zygote, restart: Restart, score: int, parent: tuple[socket.socket, int]) -> NoReturn:
    code = _FAILED
    try:
        from kitfs.daemon.main import serve
        from kitfs.daemon.service import Inheritance
        from kitfs.daemon.zygote import set_oom_score

        zygote.leave()
        os.setsid()
        logs.name_process("kitfs-daemon")
        with contextlib.suppress(OSError):  # another user may not lower it again
            set_oom_score(score)
        inheritance = Inheritance(list(zygote.kept.values()), parent)
        serve(Path(restart.home), Path(restart.socket), idle_s=restart.idle_s, inheritance=inheritance)
        code = 0
    except BusyError as error:
        log.warning("%s", error)
        code = _TAKEN
    except (KitfsError, OSError) as error:
        log.error("the daemon can not be started: %s", error)
    except BaseException:  # nothing may return into the zygote's loop from a child
        log.exception("the daemon")
    logging.shutdown()
    os._exit(code)


def _give_away(zygote: Zygote, restart: Restart) -> bool:
    """Give what is kept to the daemon that serves the store. True when all has been taken."""
    for session, descriptors in list(zygote.kept.items()):
        try:
            with ControlConnection.connect(Path(restart.socket)) as connection:
                call = AdoptCall(session, __version__)
                connection.call("Adopt", call, Nothing, descriptors=descriptors, timeout_s=ADOPT_TIMEOUT_S)
        except DaemonError as error:
            log.warning("session %s could not be given away: %s", session, error)
            return False
        except KitfsError as error:
            log.error("session %s is not wanted: %s", session, error)
        zygote.drop(session)
    return True
