"""Runs one ``kitfs`` command in this interpreter and says, as JSON, how long the steps of a mount took.

Used by ``bench.mount``. ``BENCH_START_S`` is the moment at which the process was asked for.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from kitfs.cli.start import THRESHOLD

STEPS = {
    "check the mount point": ("kitfs.mounting", "check_mountpoint"),
    "daemon and worker, until prepared": ("kitfs.client", "Client.prepare"),
    "fusermount3": ("kitfs.mounting", "mount_device"),
    "daemon and worker, until ready": ("kitfs.client", "Preparation.mount"),
    "read-ahead": ("kitfs.mounting", "set_read_ahead"),
}


def _timed(function: Callable[..., Any], name: str, parts: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        start_s = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            parts[name] = parts.get(name, 0.0) + (time.perf_counter() - start_s) * 1e3

    return timed


def _time_step(module: str, path: str, name: str, parts: dict[str, float]) -> None:
    owner: Any = importlib.import_module(module)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    found = vars(owner)[attribute]
    if isinstance(found, classmethod):
        setattr(owner, attribute, classmethod(_timed(found.__func__, name, parts)))
    else:
        setattr(owner, attribute, _timed(found, name, parts))


def main() -> int:
    """Run the command line; returns its exit code."""
    begun_s = time.perf_counter()
    gc.set_threshold(THRESHOLD, 10, 10)
    parts = {"start of interpreter and probe": (begun_s - float(os.environ.pop("BENCH_START_S"))) * 1e3}
    from kitfs.cli.main import VERBS, run

    importlib.import_module(VERBS[sys.argv[1]].partition(":")[0])
    steps: dict[str, float] = {}
    for name, (module, path) in STEPS.items():
        _time_step(module, path, name, steps)
    parts["imports"] = (time.perf_counter() - begun_s) * 1e3
    run_s = time.perf_counter()
    code = run(sys.argv[1:])
    parts |= {**steps, "the rest of the command": (time.perf_counter() - run_s) * 1e3 - sum(steps.values())}
    print(json.dumps(parts))
    return code


if __name__ == "__main__":
    sys.exit(main())
