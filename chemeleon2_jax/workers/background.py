"""A background thread that runs tasks one after another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Background:
    """A daemon thread: unlike those of `concurrent.futures`, it does not delay the exit."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        """Queue a task; the future returns its result or raises its exception."""
        future: Future[Any] = Future()
        self._tasks.put((future, task))
        return future

    def stop(self) -> None:
        """End after the running task; queued tasks are dropped."""
        self._is_stopped = True
        self._tasks.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for the end; return whether the thread has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (entry := self._tasks.get()) is not None and not self._is_stopped:
            future, task = entry
            try:
                future.set_result(task())
            # Any exception belongs to whoever waits for the result.
            except BaseException as error:
                future.set_exception(error)
