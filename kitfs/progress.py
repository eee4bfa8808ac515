"""What a long operation tells while it runs: steps with a name and a size, and the bytes done in each.

The library reports through these calls and never prints; ``kitfs.cli.progress`` shows them. A step belongs to whoever
began it: several may run at once, each may be advanced from several threads. An operation that fails leaves its steps
unfinished.
"""

from __future__ import annotations

from typing import Protocol


class Step(Protocol):
    """One step under way. Thread-safe."""

    def advance(self, size: int) -> None:
        """So many more bytes are done."""

    def finish(self) -> None:
        """The step is done."""


class Progress(Protocol):
    """Is told of steps. Thread-safe."""

    def begin(self, name: str, size: int) -> Step:
        """A step begins; ``size`` in bytes, 0 where it is not known or nothing is to be done."""
        ...


class SilentStep:
    """A step that nobody looks at."""

    def advance(self, size: int) -> None:
        """Bytes are done."""

    def finish(self) -> None:
        """The step is done."""


class NoProgress:
    """Says nothing."""

    def begin(self, _name: str, _size: int) -> Step:
        """A step begins."""
        return _SILENT


_SILENT = SilentStep()
