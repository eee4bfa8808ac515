"""One thread behind another: steps that run in order while the caller goes on, a bounded number behind.

The indexer and the materialiser use it to hash and write while they decode. One thread submits. The thread ends with
`close`, or when the pipeline is dropped; it keeps no process alive.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable

Step = Callable[[memoryview], None]

_QUEUE_LENGTH = 4


class _Shared:
    """What both threads see; it does not refer to the pipeline, whose end is the thread's."""

    def __init__(self) -> None:
        self.steps: queue.Queue[tuple[Step, memoryview] | None] = queue.Queue(_QUEUE_LENGTH)
        self.error: BaseException | None = None
        self.is_closed = False

    def run(self) -> None:
        while not self.is_closed:
            step = self.steps.get()
            try:
                if step is not None and self.error is None:
                    step[0](step[1])
            except BaseException as error:  # noqa: BLE001  # the submitting thread gets it
                self.error = error
            finally:
                del step
                self.steps.task_done()

    def end(self) -> None:
        """Let the thread end after the step at hand."""
        self.is_closed = True
        with contextlib.suppress(queue.Full):  # a full queue wakes the thread anyway
            self.steps.put_nowait(None)


class Pipeline:
    """Runs steps in order on one other thread; after one that failed, none."""

    def __init__(self, name: str) -> None:
        self._shared = _Shared()
        self._thread = threading.Thread(target=self._shared.run, name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._shared.end).atexit = False

    def submit(self, step: Step, data: memoryview) -> None:
        """Run `step(data)` after all earlier steps; waits while four are under way.

        The caller leaves `data` as it is until the step has run.

        Raises:
            BaseException: what an earlier step raised.
        """
        self._check()
        self._shared.steps.put((step, data))

    def drain(self) -> None:
        """Wait for all steps.

        Raises:
            BaseException: what the step that failed raised.
        """
        self._shared.steps.join()
        self._check()

    def _check(self) -> None:
        if self._shared.error is not None:
            raise self._shared.error

    def close(self) -> None:
        """Wait for the step at hand, drop the others, end the thread; never raises their errors."""
        self._shared.end()
        self._thread.join()
