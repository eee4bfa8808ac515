"""Faults for the zygote of a test, and so for its workers: what a file's name says happens to whoever reads it.

Put into ``PYTHONPATH`` by ``test_supervision.py``; Python imports a module of this name when it starts.
"""

import os
import signal
import sys
import time

if "kitfs.daemon.zygote" in sys.orig_argv:
    from kitfs.modelkit.served import OpenFile, ServedKit

    _open = ServedKit.open

    def _hang() -> None:
        time.sleep(3600)

    _FAULTS = {
        b"crash.bin": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        b"suicide.bin": lambda: os.kill(os.getpid(), signal.SIGKILL),
        b"hang.bin": _hang,
    }

    class _Faulty:
        """A file whose reads do what its name says, on the event loop."""

        def __init__(self, file: OpenFile, name: bytes) -> None:
            self._file, self._name = file, name

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def read_ready(self, start: int, stop: int) -> object:
            _FAULTS[self._name]()
            return self._file.read_ready(start, stop)

    def _open_faulty(kit: ServedKit, inode: int) -> object:
        file = _open(kit, inode)
        name = kit.node(inode).name
        return _Faulty(file, name) if name in _FAULTS else file

    ServedKit.open = _open_faulty
