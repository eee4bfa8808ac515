"""Progress of long operations on standard error: bars on a terminal, a line per step otherwise.

The library reports through ``Progress`` calls and never prints. ``fancy`` draws bars with bytes, rate and time
left; ``plain`` prints a line when a step is done; ``none`` prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from kitfs.cli.output import format_size, say


class Progress(Protocol):
    """What a long operation tells: steps with a name and a size, and bytes done in the current one."""

    def start(self, name: str, size: int) -> None:
        """A step begins; ``size`` in bytes."""

    def advance(self, size: int) -> None:
        """So many more bytes of the current step are done."""

    def finish(self) -> None:
        """The current step is done."""


class NoProgress:
    """Says nothing."""

    def start(self, name: str, size: int) -> None:
        """A step begins."""

    def advance(self, size: int) -> None:
        """Bytes are done."""

    def finish(self) -> None:
        """The step is done."""


class PlainProgress(NoProgress):
    """One line for each step that is done."""

    def __init__(self) -> None:
        self._name, self._size = "", 0

    def start(self, name: str, size: int) -> None:
        """A step begins."""
        self._name, self._size = name, size

    def finish(self) -> None:
        """Print the step's line."""
        say(f"{self._name}  {format_size(self._size)}")


class FancyProgress:
    """Bars with bytes, rate and time left, one for each step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
                   TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
        self._bars = Bars(*columns, console=Console(stderr=True))
        self._task = self._bars.add_task("", visible=False)

    def start(self, name: str, size: int) -> None:
        """Draw a bar for the step."""
        self._task = self._bars.add_task(name, total=max(size, 1))

    def advance(self, size: int) -> None:
        """Move the bar."""
        self._bars.advance(self._task, size)

    def finish(self) -> None:
        """Fill the bar."""
        task = self._bars.tasks[self._task]
        self._bars.update(self._task, completed=task.total or 1)

    def __enter__(self) -> FancyProgress:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()


@contextmanager
def show_progress(style: str) -> Iterator[Progress]:
    """Progress in the given style (``none``, ``plain``, ``fancy``) for the time of the block."""
    if style == "fancy":
        with FancyProgress() as fancy:
            yield fancy
    elif style == "plain":
        yield PlainProgress()
    else:
        yield NoProgress()
