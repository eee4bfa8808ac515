"""Runs commands that are killed or broken on purpose, one child for each line on standard input.

``conftest`` starts it once for a campaign, under strace where a fault is injected. Its arguments are modules that are
imported before, so that a child is killed at its work. strace counts the calls of each process by itself, so a child
that shall meet the fault at its n-th call first makes ``FAULT_AT - n`` calls of that kind that fail and change nothing.
Answers with the child's pid, then with its wait status.
"""

import ctypes
import importlib
import json
import os
import sys

from kitfs.cli.main import run

FAULT_AT = 500

_LIBC = ctypes.CDLL(None)
_CALLS = {
    "fsync": lambda: _LIBC.fsync(-1),
    "fdatasync": lambda: _LIBC.fdatasync(-1),
    "write": lambda: _LIBC.write(-1, b"", 0),
    "pwrite64": lambda: _LIBC.pwrite64(-1, b"", 0, 0),
    "writev": lambda: _LIBC.writev(-1, None, 0),
    "renameat2": lambda: _LIBC.renameat2(-1, b"", -1, b"", 1),
    "rename": lambda: _LIBC.rename(b"", b""),
    "linkat": lambda: _LIBC.linkat(-1, b"", -1, b"", 0),
    "fchmod": lambda: _LIBC.fchmod(-1, 0),
    "unlink": lambda: _LIBC.unlink(b""),
    "openat": lambda: _LIBC.openat(-1, b"", 0),
}


def victim(request: dict) -> int:
    """The child: output goes to a file, then the command."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    call = request.get("call")
    for _ in range(FAULT_AT - request["number"] if call else 0):
        _CALLS[call]()
    code = run(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    """Serve until standard input ends."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(victim(request))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
