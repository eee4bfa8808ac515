"""ratarmount, which is what one would use without kitfs: its index of a tar.gz, and a mount with that index.

Used by case `gzip`. It comes with the extra `bench`; where it is not installed, `find_ratarmount` says so and its
lines are left out.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

_TIMEOUT_S = 60.0


class Ratarmount:
    """Runs ratarmount on one archive.

    Attributes:
        name: What its lines are called.
        index: Its index file; `make_index` writes it.
    """

    def __init__(self, program: Path, archive: Path, index: Path, threads: int) -> None:
        self.name = f"ratarmount -P {threads}"
        self.index = index
        self.archive = archive
        self._command = [str(program), "-P", str(threads), "--index-file", str(index)]

    def make_index(self, archive: Path | None = None) -> float:
        """Index an archive anew, as its command does; returns the seconds of the whole command.

        Raises:
            subprocess.CalledProcessError: when it fails.
        """
        self.index.unlink(missing_ok=True)
        command = [*self._command, "--recreate-index", "--no-mount", str(archive or self.archive)]
        start_s = time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)  # fmt: skip
        elapsed_s = time.perf_counter() - start_s
        assert self.index.stat().st_size
        return elapsed_s

    @contextmanager
    def mounted(self, mountpoint: Path) -> Iterator[int]:
        """A mount with the index that is there, for the time of the block; gives the process that serves it."""
        mountpoint.mkdir(exist_ok=True)
        command = [*self._command, "-f", str(self.archive), str(mountpoint)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            deadline_s = time.monotonic() + _TIMEOUT_S
            while not mountpoint.is_mount():
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"{self.name} does not mount")
                time.sleep(0.001)
            yield process.pid
        finally:
            subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=False, capture_output=True)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def find_ratarmount(archive: Path, folder: Path) -> list[Ratarmount]:
    """ratarmount as it comes (one thread) and with a thread for each processor (``-P 0``); none where it is missing."""
    program = Path(sys.executable).with_name("ratarmount")
    if not program.exists():
        return []
    return [Ratarmount(program, archive, folder / f"ratarmount-{threads}.sqlite", threads) for threads in (1, 0)]


def versions() -> str:
    """What decodes for ratarmount."""
    names = ("ratarmount", "ratarmountcore", "rapidgzip", "indexed_gzip")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)
