"""When members of a layer get files of their own.

Chosen for each mount (``-o materialise=…``, the configuration) and kept by its session; `reader` acts on it. Pure.
"""

from __future__ import annotations

from enum import StrEnum


class Materialise(StrEnum):
    """What becomes of the bytes of a member that is opened."""

    AUTO = "auto"
    """What is read is written behind, while the quota allows."""
    NEVER = "never"
    """Nothing is written; only a layer that can not be read by spans is decoded into files, or it could not be read."""
    ALWAYS = "always"
    """A member that is opened is materialised whole, in the background, read or not."""


MATERIALISED_SIZE_MIN = 1 << 20
"""Bytes of the smallest member that is made a file for being read, two spans or three: a smaller one is decoded in
2 ms, and making it durable takes longer (two fsyncs and a commit, 5 to 20 ms)."""
