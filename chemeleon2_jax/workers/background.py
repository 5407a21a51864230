"""A thread that does one thing after another, beside the one that asks for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Background:
    """A thread that nobody waits for in the end, unlike those of `concurrent.futures`."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        """Have a task done after those before it; what it raises is raised by the result."""
        future: Future[Any] = Future()
        self._tasks.put((future, task))
        return future

    def stop(self) -> None:
        """End after what is being done; what was not begun is not done."""
        self._is_stopped = True
        self._tasks.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (entry := self._tasks.get()) is not None and not self._is_stopped:
            future, task = entry
            try:
                future.set_result(task())
            # Whatever it is, it belongs to the one who waits for the result.
            except BaseException as error:
                future.set_exception(error)
