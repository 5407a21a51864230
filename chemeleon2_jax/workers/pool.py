"""The pool of worker processes."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from chemeleon2_jax.workers.process import IN_WORKER, call_with_limit
from chemeleon2_jax.workers.schedule import Outcome, Run, Worker, WorkerError

MAX_DEFAULT_WORKERS = 16
"""More pay off on large jobs only; each takes memory, and a second or two to start."""


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers() -> int:
    """Return the default number of workers: one per CPU, at most 16."""
    return min(available_cpus(), MAX_DEFAULT_WORKERS)


def _stop_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()
    workers.clear()


class WorkerPool:
    """Worker processes, started when first needed and kept for later maps.

    A start takes a second or two if the function needs pymatgen: use one pool for a whole run. Use
    it as a context manager, or call :meth:`close`; workers also end with their parent process,
    however that ends.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        """Describe the pool; nothing is started yet.

        Args:
            num_workers: most processes; None is one per CPU, at most 16. A map with fewer chunks
                starts fewer. 0 works in this process, where a time limit is an alarm alone, and
                acts in the main thread alone.

        Raises:
            ValueError: a negative number of workers.
        """
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; it must be 0 (this process) or more")
        self.num_workers = default_workers() if num_workers is None else num_workers
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        self._run: Run | None = None  # the map that runs
        # No reference to self, so that a forgotten pool is collected and its workers stopped.
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers. A later map starts new ones."""
        _stop_all(self._workers)

    def cancel(self) -> None:
        """End a map that runs in another thread, which raises WorkerError. Later maps work."""
        run = self._run
        if run is not None:
            run.cancel()

    def map(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        timeout_s: float | None = None,
        chunk_size: int = 1,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Outcome]:
        """Call ``fn`` on every item and return the outcomes in the order of the items.

        Args:
            fn: module-level function of one argument. Its exceptions become outcomes.
            items: its arguments; items and results are pickled.
            timeout_s: limit for one item in seconds of its own running time, without the start of
                the worker and the wait in the queue; None is no limit.
            chunk_size: items sent to a worker at once; more is faster for items of milliseconds.
            on_done: called in this process with the number of items just finished (a progress
                bar's ``update``).

        Raises:
            WorkerError: the workers do not start or cannot load ``fn``.
            ValueError: a chunk size or time limit that is not positive.
        """
        if chunk_size < 1 or (timeout_s is not None and timeout_s <= 0):
            raise ValueError(
                f"chunk_size {chunk_size} must be 1 or more, timeout_s {timeout_s} positive or None"
            )
        queue = list(items)
        if not queue:
            return []
        if self.num_workers == 0:
            return self._map_here(fn, queue, timeout_s, on_done)
        if os.environ.get(IN_WORKER):
            raise WorkerError(
                "a worker process cannot start workers of its own. If your script was imported by "
                'a worker, put its top level under `if __name__ == "__main__":`, or move the '
                "function to a module; inside a worker's function use num_workers=0"
            )
        with self._lock:
            run = Run(
                self._workers,
                fn,
                queue,
                timeout_s=timeout_s,
                chunk_size=chunk_size,
                on_done=on_done,
            )
            self._run = run
            try:
                return run.collect(self.num_workers)
            except BaseException:
                self.close()  # answers to this map must not reach the next one
                raise
            finally:
                self._run = None

    def _map_here(
        self,
        fn: Callable[[Any], Any],
        items: list[Any],
        timeout_s: float | None,
        on_done: Callable[[int], None] | None,
    ) -> list[Outcome]:
        outcomes = []
        for item in items:
            outcomes.append(Outcome(*call_with_limit(fn, item, timeout_s)))
            if on_done is not None:
                on_done(1)
        return outcomes
