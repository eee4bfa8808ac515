"""Progress of long operations on standard error: bars on a terminal, a line per step otherwise.

``fancy`` draws a bar with bytes, rate and time left for each step; ``plain`` prints a line when a step is done;
``none`` prints nothing. All are thread-safe, and steps may run at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kitfs.cli.output import format_size, say
from kitfs.progress import NoProgress, Progress, SilentStep, Step

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class PlainProgress:
    """One line for each step that is done."""

    def begin(self, name: str, size: int) -> Step:
        """A step begins."""
        return _PlainStep(name, size)


class _PlainStep(SilentStep):
    def __init__(self, name: str, size: int) -> None:
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

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True),
                   TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
        self._bars = Bars(*columns, console=Console(stderr=True))

    def begin(self, name: str, size: int) -> Step:
        """Draw a bar for the step."""
        return _Bar(self._bars, self._bars.add_task(name, total=max(size, 1)), max(size, 1))

    def __enter__(self) -> FancyProgress:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()


class _Bar:
    """One bar; rich takes its lock for each call."""

    def __init__(self, bars: Bars, task: TaskID, total: int) -> None:
        self._bars, self._task, self._total = bars, task, total

    def advance(self, size: int) -> None:
        """Move the bar."""
        self._bars.advance(self._task, size)

    def finish(self) -> None:
        """Fill the bar."""
        self._bars.update(self._task, completed=self._total)


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
