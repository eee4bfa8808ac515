"""What the kernel counts: CPU time of processes, their threads and the machine, peak memory, caches.

Used by the cases. Reads `/proc` only; a process that is gone is the caller's mistake.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds, in user mode and in the kernel; the difference of two of them is what was used between."""

    user_s: float
    system_s: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.user_s - other.user_s, self.system_s - other.system_s)

    @property
    def total_s(self) -> float:
        """Both together."""
        return self.user_s + self.system_s


def _cpu(path: Path) -> Cpu:
    """Fields 14 and 15 of proc(5) `stat`; the kernel counts them in steps of 10 ms."""
    fields = path.read_text().rpartition(")")[2].split()
    return Cpu(int(fields[11]) / _TICKS, int(fields[12]) / _TICKS)


def process_cpu(pid: int) -> Cpu:
    """CPU time of a process, threads that have ended included."""
    return _cpu(Path(f"/proc/{pid}/stat"))


def main_thread_cpu(pid: int) -> Cpu:
    """CPU time of the first thread of a process."""
    return _cpu(Path(f"/proc/{pid}/task/{pid}/stat"))


def children_cpu() -> Cpu:
    """CPU time of all children of this process that have been waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cpu(used.ru_utime, used.ru_stime)


def machine_busy_s() -> float:
    """CPU seconds that all processors together have spent on anything (proc(5) `stat`, without idle and iowait)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def memory_mib(pid: int, field: str) -> float:
    """A field of proc(5) `status` in MiB: `VmHWM` is the largest RSS so far, `RssAnon` memory that is no file's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and its folders; none when it is not there."""
    return [path for path in folder.rglob("*") if path.is_file()]


def allocated_size(path: Path) -> int:
    """Bytes that a file takes on the disk."""
    return path.stat().st_blocks * 512


def missing_size(path: Path) -> int:
    """Bytes of a file that are not in the page cache (mincore(2)); touches none of them.

    A kernel may take pages back long before memory is short (DAMON), and other programs may drop caches.

    Raises:
        OSError: when the kernel does not tell.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as memory:
        place = ctypes.c_char.from_buffer(memory)
        resident = (ctypes.c_ubyte * -(-len(memory) // mmap.PAGESIZE))()
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(len(memory)), resident
        )
        del place
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(not page & 1 for page in resident) * mmap.PAGESIZE
