"""How fast this machine decodes a gzip layer span by span, with no mount: the bound of a cold load through one.

`measure_decoding` is used by case `gzip`; `python -m bench.decoding HOME LAYER THREADS` is the process in which it is
done. The layer's blob is read from the page cache. Every span goes the way of a read: published bytes, window, isal,
checksum; each of these is timed by the CPU clock of its thread. What a materialised member costs beyond that (SHA-256,
writing the file) is measured on some of the spans, one thread, after each other.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kitfs.digest import Digest
from kitfs.layer.lazy_layer import LazyLayer
from kitfs.store.store import Store

STEPS = {
    "reading published bytes": ("kitfs.layer.descriptor", "Descriptor.read_once"),
    "unpacking windows": ("kitfs.layer.lazy_layer", "unpack"),
    "inflating": ("kitfs.layer.decoders", "decode_span"),
    "checksums": ("kitfs.layer.lazy_layer", "checksum"),
}
SAMPLE_SIZE_MAX = 256 << 20


def measure_decoding(home: Path, layer: str, threads: int) -> dict[str, Any]:
    """Decode every span of a layer once; returns `size`, `wall_s`, `cpu_s`, and `steps`: CPU seconds of each.

    Raises:
        subprocess.CalledProcessError: when it fails.
    """
    command = [sys.executable, "-m", "bench.decoding", str(home), layer, str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


class _Clock:
    """CPU seconds of steps, from any thread."""

    def __init__(self) -> None:
        self.used_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, step: str, used_s: float) -> None:
        with self._lock:
            self.used_s[step] = self.used_s.get(step, 0.0) + used_s

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same and is timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            start_s = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.add(step, time.thread_time() - start_s)

        return timed

    def watch(self, step: str, module: str, path: str) -> None:
        """Time every call of a function of a module or class."""
        owner: Any = importlib.import_module(module)
        *parents, attribute = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, attribute, self.timed(step, getattr(owner, attribute)))


def _decode_all(layer: LazyLayer, threads: int) -> float:
    """Decode all spans; returns the wall seconds."""
    spans = iter(range(layer.spans.count))
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:
                span = next(spans, None)
            if span is None:
                return
            layer.decode(span)

    running = [threading.Thread(target=run) for _ in range(threads)]
    start_s = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return time.perf_counter() - start_s


def _measure_keeping(layer: LazyLayer, folder: Path, clock: _Clock) -> float:
    """Hash and write some decoded spans; returns what share of the layer that was."""
    size = sum(layer.spans.range(span)[1] - layer.spans.range(span)[0] for span in range(layer.spans.count))
    digester = hashlib.sha256()
    update, write = clock.timed("SHA-256", digester.update), clock.timed("writing", os.pwrite)
    done = 0
    with tempfile.TemporaryFile(dir=folder) as file:
        for span in range(layer.spans.count):
            data = layer.decode(span)
            update(data)
            write(file.fileno(), data, done)
            done += len(data)
            if done >= SAMPLE_SIZE_MAX:
                break
    return done / size


def main() -> None:
    """Be the process."""
    home, digest, threads = Path(sys.argv[1]), Digest(sys.argv[2]), int(sys.argv[3])
    with Store.open(home, create=False) as store:
        record = store.find_layer(digest)
        assert record is not None
        clock = _Clock()
        for step, (module, name) in STEPS.items():
            clock.watch(step, module, name)
        layer = LazyLayer(store, digest, record, store.get_toc(digest))
        for span in range(min(layer.spans.count, 8)):
            layer.decode(span)
        assert set(clock.used_s) == set(STEPS), f"not all steps are called by the names in STEPS: {clock.used_s}"
        clock.used_s.clear()
        with store.layout.blob(digest).open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
        before_s = time.process_time()
        wall_s = _decode_all(layer, threads)
        cpu_s = time.process_time() - before_s
        steps = dict(clock.used_s)
        share = _measure_keeping(layer, home / "ingest", clock)
        steps |= {step: clock.used_s[step] / share for step in ("SHA-256", "writing")}
        print(json.dumps({"size": record.size_decoded, "wall_s": wall_s, "cpu_s": cpu_s, "steps": steps}))


if __name__ == "__main__":
    main()
