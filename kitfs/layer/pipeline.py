"""One thread behind another: steps that run in order while the caller goes on, a bounded number behind.

The indexer and the materialiser use it to hash and write while they decode. The thread starts when the first step comes
and ends with `close` or with the pipeline itself, so that nothing is left of one that was dropped. One thread submits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_QUEUE_LENGTH = 4


class Pipeline:
    """Runs steps in order on one other thread."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._pending: deque[Future[None]] = deque()

    def submit(self, step: Callable[[memoryview], None], data: memoryview) -> None:
        """Run `step(data)` after all earlier steps; waits when four are under way.

        The caller leaves `data` as it is until the step has run.

        Raises:
            BaseException: what an earlier step raised. Later steps may run nevertheless: a step that can fail
                must refuse to go on after it has.
        """
        if len(self._pending) >= _QUEUE_LENGTH:
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(step, data))

    def drain(self) -> None:
        """Wait for all steps.

        Raises:
            BaseException: what the first step that failed raised.
        """
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Drop steps that have not started, wait for the one that has, end the thread; never raises their errors."""
        self._executor.shutdown(cancel_futures=True)
        self._pending.clear()
