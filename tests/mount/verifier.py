"""A program that opens, maps, reads at random, closes and verifies files of a mount until its standard input closes.

Run as ``python -c SOURCE MOUNTED PLAIN SEED``: two folders with the same files. It prints a line when it has looked at
each file once, at the end JSON: ``reads``, ``wrong`` (each error and each range that differs) and ``stalls``, all looks
that took longer than ``SLOW_S`` as [when it began by the monotonic clock, seconds]. Pages are taken out of the page
cache before a look, so that most looks ask kitfs.
"""

import ctypes
import json
import mmap
import os
import random
import select
import sys
import time
from pathlib import Path

SLOW_S = 0.005
PIECE = 64 << 10
STALLS_MAX = 200_000

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MAP_FAILED = ctypes.c_void_p(-1).value


class Verifier:
    """The files of two folders, and what was seen of them."""

    def __init__(self, mounted: str, plain: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.files = [(os.path.join(mounted, name), Path(plain, name).read_bytes())
                      for name in sorted(os.listdir(plain))]  # fmt: skip
        self.looks = [self.read, self.read_direct, self.map, self.map_late]
        self.reads = 0
        self.wrong: list[str] = []
        self.stalls: list[tuple[float, float]] = []

    def look(self, path: str, expected: bytes) -> None:
        """One look at one file, timed from before it is opened until its bytes are compared."""
        start = self.rng.randrange(0, max(1, len(expected) - PIECE), 4096)
        look = self.rng.choice(self.looks)
        began = time.monotonic()
        try:
            fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if look == self.read_direct else 0))
            try:
                os.posix_fadvise(fd, start, PIECE, os.POSIX_FADV_DONTNEED)
                seen = look(fd, start)
            finally:
                os.close(fd)
            if seen is None:
                seen = self.see_late(min(PIECE, len(expected) - start))
            if seen != expected[start : start + PIECE]:
                self.wrong.append(f"{look.__name__} {path} {start}: {len(seen)} bytes differ")
        except OSError as error:
            self.wrong.append(f"{look.__name__} {path} {start}: {error}")
        took = time.monotonic() - began
        self.reads += 1
        if took > SLOW_S and len(self.stalls) < STALLS_MAX:
            self.stalls.append((began, took))

    def read(self, fd: int, start: int) -> bytes:
        return os.pread(fd, PIECE, start)

    def read_direct(self, fd: int, start: int) -> bytes:
        with mmap.mmap(-1, PIECE) as buffer:
            count = os.preadv(fd, [buffer], start)
            return buffer[:count]

    def map(self, fd: int, start: int) -> bytes:
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
            return mapped[start : start + PIECE]

    def map_late(self, fd: int, start: int) -> bytes | None:
        """Through a map that no descriptor belongs to any more: Python's own keep one."""
        address = LIBC.mmap(None, PIECE, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
        if address in (None, MAP_FAILED):
            raise OSError(ctypes.get_errno(), "mmap")
        self.mapped = address
        return None

    def see_late(self, size: int) -> bytes:
        """What the map of ``map_late`` shows."""
        try:
            return ctypes.string_at(self.mapped, size)
        finally:
            LIBC.munmap(self.mapped, PIECE)

    def run(self) -> None:
        """Look at each file once, then at random."""
        for path, expected in self.files:
            self.look(path, expected)
        print("begun", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            self.look(*self.rng.choice(self.files))
        print(json.dumps({"reads": self.reads, "wrong": self.wrong[:20], "stalls": self.stalls}))


verifier = Verifier(sys.argv[1], sys.argv[2], int(sys.argv[3]))
verifier.run()
