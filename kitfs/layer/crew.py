"""A few threads that do tasks in any order, a bounded number ahead of them.

`deliver` uses it to read, decode, check and write on all cores. One thread submits. After a task that failed no other
is begun, and whoever submits or drains gets its error. Tasks take no locks of their callers.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

Task = Callable[[], None]

THREADS = max(2, os.cpu_count() or 1)
_LOOK_S = 0.2  # a signal that comes just before a wait without end is not seen in it
_AHEAD = 2  # tasks a thread that wait: the submitter reads the index meanwhile


class Cancelled(Exception):
    """Nobody waits for the result any more."""


class Crew:
    """Runs tasks; a context manager that, when it is left, lets the tasks at hand end and drops the others."""

    def __init__(self, name: str, *, threads: int = THREADS) -> None:
        self._tasks: queue.Queue[Task | None] = queue.Queue(threads * _AHEAD)
        self._error: BaseException | None = None
        self._is_closed = False
        self._at_end: list[Callable[[], None]] = []
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        """Run a task soon; waits while enough are waiting.

        Raises:
            BaseException: what an earlier task raised.
        """
        self.check()
        self._tasks.put(task)

    def drain(self) -> None:
        """Wait for all tasks.

        Raises:
            BaseException: what the first that failed raised.
        """
        self._tasks.join()
        self.check()

    def cancel(self) -> None:
        """Begin no more tasks; whoever submits or drains is told. Any thread may call it."""
        self._error = self._error or Cancelled()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call something when no thread works any more."""
        self._at_end.append(callback)

    def check(self) -> None:
        """Raise what a task raised.

        Raises:
            BaseException: what the first that failed raised.
        """
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                if task is None:
                    return
                if self._error is None and not self._is_closed:
                    task()
            except BaseException as error:  # noqa: BLE001  # the submitting thread gets it
                self._error = self._error or error
            finally:
                del task
                self._tasks.task_done()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for callback in self._at_end:
            callback()


def run_apart(name: str, work: Callable[[Crew], None]) -> None:
    """Run something with a crew, in a thread of its own, and wait for it.

    An interrupt is raised in the thread that waits. So it never cuts off what works between two steps that belong
    together; the tasks at hand end, the others are dropped, and then it goes on here.

    Raises:
        BaseException: what the work, or a task that it submitted, raised; or what ended the waiting.
    """
    errors: list[BaseException] = []
    is_done = threading.Event()  # an interrupted `Thread.join` takes a thread that runs for one that has ended
    crew = Crew(name)

    def run() -> None:
        try:
            with crew:
                work(crew)
        except BaseException as error:  # noqa: BLE001  # the caller gets it
            errors.append(error)
        finally:
            is_done.set()

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
        while not is_done.wait(_LOOK_S):
            pass
    except BaseException:
        crew.cancel()
        while thread in threading.enumerate() and not is_done.is_set():
            with contextlib.suppress(KeyboardInterrupt):
                is_done.wait(_LOOK_S)
        raise
    if errors:
        raise errors[0]
