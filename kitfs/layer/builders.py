"""Which library finds checkpoints on this machine: each is tried on a stream whose checkpoints are known.

zlib-ng first (268 MB of weights per CPU-second here), zlib next (208), else none: layers are then indexed without
checkpoints and decoded once. The indexer asks; the answer is found once per process. Any thread.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable

from kitfs.layer.block_inflater import BlockInflater, Checkpoint
from kitfs.layer.gzip_stream import BodyBroken
from kitfs.layer.inflate import VERSION_ERROR, InflateLibrary, InflateUnusable, load_zlib, load_zlib_ng

_LIBRARIES: tuple[Callable[[], InflateLibrary], ...] = (load_zlib_ng, load_zlib)

_STREAM = bytes.fromhex(
    "4ace484dce2ec8cfcc2b513050c84f5328c94855284ecd49d32d492d2eb156481e951e95a69634000000ffff4292361c951e951e40698090"
    "a48d46a547a507af34000000ffff4292361e951e951eb2d20021499b8c4a8f4a0f576900000000ffff4292361d951e951ea1d2800100"
)
"""Blocks that end at whole bytes and between them."""

_DECODED_SIZE = 4185

_SPACING = 500
_CHECKPOINTS = [(0, 0, 0), (317, 620, 620), (438, 1271, 1271), (525, 1953, 1953), (647, 2666, 2666), (734, 3410, 3410)]
_PIECE_SIZES = (1, 7, 1 << 16)

_log = logging.getLogger(__name__)


def check_library(library: InflateLibrary) -> None:
    """Find out whether a library does what is expected.

    Raises:
        InflateUnusable: when it takes a stream of the wrong size, or gives other checkpoints than are known.
    """
    code = library.init(library.stream(), ctypes.sizeof(library.stream) - 8)
    if code != VERSION_ERROR:
        raise InflateUnusable(library.name, f"it takes a stream of the wrong size ({code})")
    for size in _PIECE_SIZES:
        found: list[Checkpoint] = []
        body = BlockInflater(library, found.append, _SPACING)
        body.begin(0)
        decoded_size = 0
        try:
            for at in range(0, len(_STREAM), size):
                decoded_size += sum(map(len, body.inflate(memoryview(_STREAM)[at : at + size])))
        except BodyBroken as error:
            raise InflateUnusable(library.name, str(error)) from error
        places = [(checkpoint.bit, checkpoint.offset, checkpoint.window_size) for checkpoint in found]
        if places != _CHECKPOINTS or decoded_size != _DECODED_SIZE or not body.is_ended:
            raise InflateUnusable(library.name, f"it finds other blocks than there are: {places}")


@functools.cache
def find_library() -> InflateLibrary | None:
    """The first library that can be used, or None."""
    for load in _LIBRARIES:
        try:
            library = load()
            check_library(library)
        except InflateUnusable as error:
            _log.warning("%s", error)
        else:
            return library
    return None
