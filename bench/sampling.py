"""Where processes spend their CPU time: samples by `perf`, sorted into what a load through a mount consists of.

Used by case `gzip`. Root only, and only where `perf` is installed; elsewhere that part is left out and said so.
Sampling costs a few percent, so a sampled load is no round of the measurement.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FREQUENCY_HZ = 499
_SAMPLE = re.compile(r"^\s*(?P<pid>\d+)\s+[0-9a-f]+ (?P<symbol>.*) \((?P<object>.*)\)$")

_KINDS = (
    (r"kernel", r"to_iter|copyout|copy_to_user", "kernel, copying what was read"),
    (r"kernel", r"from_iter|copyin|copy_from_user", "kernel, copying what was written"),
    (r"kernel", r"fuse|memcpy", "kernel, FUSE and copying of answers"),
    (
        r"kernel",
        r"clear_page|fault|anon|zap_|unmap|folio|lru|memcg|charge|freelist|alloc",
        "kernel, memory and page cache",
    ),
    (r"kernel|\[", r"", "kernel, the rest"),
    (r"/isal/", r"", "inflating (isal)"),
    (r"crypto|_hashlib|_sha2", r"", "SHA-256"),
    (r"xxhash", r"", "checksums (xxh3)"),
    (r"/zstandard/|lmdb", r"", "index (LMDB, zstandard)"),
    (r"/libc[.-]", r"mem(cpy|move|set)|mov", "copying in user mode"),
    (r"fuse", r"", "libfuse and pyfuse3"),
    (r"", r"", "Python and the rest"),
)
"""Pattern of the object, pattern of the symbol, kind; the first that fits."""


def can_sample() -> bool:
    """Whether `perf` is here and allowed."""
    return os.geteuid() == 0 and shutil.which("perf") is not None


class Samples:
    """CPU seconds by process and kind; filled when the block of `sampled` ends."""

    def __init__(self) -> None:
        self.used_s: dict[int, dict[str, float]] = {}

    def parse(self, text: str) -> None:
        """Count the lines of `perf script -F pid,ip,sym,dso`."""
        for line in text.splitlines():
            if match := _SAMPLE.match(line):
                kind = _kind_of(match["object"], match["symbol"])
                kinds = self.used_s.setdefault(int(match["pid"]), {})
                kinds[kind] = kinds.get(kind, 0.0) + 1 / FREQUENCY_HZ


def _kind_of(shared_object: str, symbol: str) -> str:
    return next(kind for objects, symbols, kind in _KINDS
                if re.search(objects, shared_object) and re.search(symbols, symbol))  # fmt: skip


@contextmanager
def sampled(pids: list[int], folder: Path) -> Iterator[Samples]:
    """Sample processes and the threads they start, for the time of the block.

    Raises:
        subprocess.CalledProcessError: when `perf` fails.
    """
    samples = Samples()
    data = folder / "perf.data"
    control, order = os.pipe()
    answer, acknowledge = os.pipe()
    recording = subprocess.Popen(
        ["perf", "record", "-q", "-F", str(FREQUENCY_HZ), "-D", "-1", "--control", f"fd:{control},{acknowledge}",
         "-p", ",".join(map(str, pids)), "-o", str(data)],
        pass_fds=(control, acknowledge), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for descriptor in (control, acknowledge):
        os.close(descriptor)
    try:
        os.write(order, b"enable\n")
        os.read(answer, 16)  # nothing when it has ended; then `perf script` fails below
        yield samples
    finally:
        recording.send_signal(signal.SIGINT)
        recording.wait()
        for descriptor in (order, answer):
            os.close(descriptor)
    done = subprocess.run(["perf", "script", "-i", str(data), "-F", "pid,ip,sym,dso"], check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    samples.parse(done.stdout)
    data.unlink()
