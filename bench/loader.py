"""Loads all tensors of safetensors files by mmap, in a process of its own that has imported everything before.

`Loader` is used by the cases; `python -m bench.loader` is that process. It says `ready`, reads paths as one line of
JSON, loads and keeps every tensor, and says as JSON what that took. So a cold load does not time the interpreter.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors

from bench.kits import encode_safetensors
from bench.processes import Cpu


class Loader:
    """A loader that waits for its paths; ended with the block."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "bench.loader"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def __enter__(self) -> Loader:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def load(self, paths: list[Path]) -> tuple[float, Cpu]:
        """Load every tensor; returns the wall seconds and the loader's own CPU time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([str(path) for path in paths]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert answer["size"] >= 0.99 * sum(path.stat().st_size for path in paths), answer
        return answer["wall_s"], Cpu(answer["user_s"], answer["system_s"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def load(paths: list[Path]) -> tuple[float, Cpu]:
    """Load once, in a new loader."""
    with Loader() as loader:
        return loader.load(paths)


def _load_all(paths: list[str]) -> list[Any]:
    tensors: list[Any] = []
    for path in paths:
        with safetensors.safe_open(path, "numpy") as shard:
            tensors += [shard.get_tensor(name) for name in shard.keys()]  # noqa: SIM118  # it is no dictionary
    return tensors


def main() -> None:
    """Be the process."""
    with tempfile.NamedTemporaryFile() as file:  # what the first use imports
        file.write(encode_safetensors({"tensor": ([2], bytes(4))}, "F16"))
        file.flush()
        _load_all([file.name])
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        return
    paths = json.loads(line)
    before, start_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    tensors = _load_all(paths)
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_SELF)
    answer = {"wall_s": wall_s, "size": sum(tensor.nbytes for tensor in tensors),
              "user_s": after.ru_utime - before.ru_utime, "system_s": after.ru_stime - before.ru_stime}  # fmt: skip
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
