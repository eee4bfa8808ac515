"""Reads through a shared descriptor give each thread its own bytes."""

import os
import threading

from kitfs.layer.descriptor import Descriptor


def test_scratch_memory_is_a_threads_own(tmp_path):
    """What one thread has read once is not overwritten by another's small read, only by its own next."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * 4096 + b"b" * 4096)
    descriptor = Descriptor(os.open(path, os.O_RDONLY))
    mine = descriptor.read_once(0, 100)
    thread = threading.Thread(target=descriptor.read_once, args=(4096, 100))
    thread.start()
    thread.join()
    assert bytes(mine) == b"a" * 100
    descriptor.read_once(4096, 100)
    assert bytes(mine) == b"b" * 100
