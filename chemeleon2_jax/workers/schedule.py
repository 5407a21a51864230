"""The parent's side of a map over worker processes: assignment of items, time limits, results."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.spawn import get_executable
from typing import Any

from chemeleon2_jax.workers.process import IN_WORKER, MainModule, error_text, timeout_text

GRACE_S = 2.0
"""Seconds between the alarm inside a worker and its end by force."""

_MAX_FAILED_STARTS = 3

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# The parent's import path has to be there before this package is imported.
_BOOTSTRAP = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from chemeleon2_jax.workers.process import serve; serve(**arguments)"
)


class WorkerError(RuntimeError):
    """Workers cannot run at all: they do not start, or cannot load the function."""


@dataclass(frozen=True)
class Outcome:
    """Result of one item.

    Attributes:
        value: return value of the function; None if it failed.
        error: None, "timeout after 3 s", "ValueError: ...", or "worker died (signal 11)".
    """

    value: Any
    error: str | None = None


@dataclass(eq=False)
class Worker:
    """The parent's view of a worker process."""

    process: subprocess.Popen[bytes]
    connection: Connection
    items: deque[int] = field(default_factory=deque)  # in flight; the first one is running
    has_function: bool = False  # was sent the function of the running map
    is_ready: bool = False  # has loaded it: the time limit counts from here
    item_start: float = 0.0

    def send(self, kind: str, content: Any) -> None:
        """Send one message of :mod:`chemeleon2_jax.workers.process`."""
        self.connection.send_bytes(pickle.dumps((kind, content)))

    def kill(self) -> int:
        """Kill the process, if it is alive, and return its exit status (negative: a signal)."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()

    def wait_for_end(self) -> str:
        """Return how a worker ended that has closed its pipe."""
        try:
            status = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            status = self.kill()
        self.connection.close()
        return f"signal {-status}" if status < 0 else f"exit status {status}"


def _start_worker() -> Worker:
    connection, child_end = Pipe()
    arguments = {
        "path": [entry or os.getcwd() for entry in sys.path],
        "fd": child_end.fileno(),
        "parent_pid": os.getpid(),
        "main": _main_module(),
    }
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1")}
    environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", IN_WORKER: "1"}
    process = subprocess.Popen(
        [os.fsdecode(get_executable()), "-c", _BOOTSTRAP, json.dumps(arguments)],
        stdin=subprocess.DEVNULL,
        env=environment,
        pass_fds=[child_end.fileno()],
        process_group=0,  # Ctrl-C is for the parent, also while the worker starts
    )
    child_end.close()
    return Worker(process, connection)


def _main_module() -> MainModule:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return {"name": spec.name}
    file = getattr(main, "__file__", None)
    return {"file": os.path.abspath(file)} if file else {}


class Run:
    """One map: chunks to do, items of each worker, and outcomes."""

    def __init__(
        self,
        workers: list[Worker],
        fn: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        timeout_s: float | None,
        chunk_size: int,
        on_done: Callable[[int], None] | None,
    ) -> None:
        self._workers = workers
        self._items = items
        self._timeout_s = timeout_s
        self._on_done = on_done
        self._function_name = getattr(fn, "__qualname__", repr(fn))
        self._function = pickle.dumps((fn, timeout_s))
        starts = range(0, len(items), chunk_size)
        self._chunks = deque(deque(range(i, min(i + chunk_size, len(items)))) for i in starts)
        self._outcomes: dict[int, Outcome] = {}
        self._failed_starts = 0
        self._is_cancelled = False

    def cancel(self) -> None:
        """End `collect`, which runs in another thread, with an error; running items are lost."""
        self._is_cancelled = True
        for worker in list(self._workers):
            worker.process.kill()  # its closed pipe wakes the other thread

    def collect(self, num_workers: int) -> list[Outcome]:
        """Work until every item has an outcome, with at most ``num_workers`` processes.

        Raises:
            WorkerError: the workers do not start or cannot load the function, or `cancel`.
        """
        for worker in list(self._workers):
            worker.has_function = worker.is_ready = False
            if worker.process.poll() is not None:  # ended from outside since the last map
                worker.kill()
                self._workers.remove(worker)
        while len(self._outcomes) < len(self._items):
            if self._is_cancelled:
                raise WorkerError(f"the calls of {self._function_name} were cancelled")
            self._assign(num_workers)
            busy = [worker for worker in self._workers if worker.items]
            answering = wait([worker.connection for worker in busy], self._seconds_to_deadline())
            for worker in busy:
                if worker.connection in answering:
                    self._receive(worker)
            self._kill_late()
        return [self._outcomes[index] for index in range(len(self._items))]

    def _assign(self, num_workers: int) -> None:
        """Give a chunk to every idle worker, and start workers while there are too few."""
        for worker in list(self._workers):
            if self._chunks and not worker.items:
                self._send_chunk(worker)
        while self._chunks and len(self._workers) < num_workers:
            worker = _start_worker()
            self._workers.append(worker)
            self._send_chunk(worker)

    def _send_chunk(self, worker: Worker) -> None:
        chunk = self._chunks.popleft()
        payloads = []
        for index in list(chunk):
            try:
                payloads.append((index, pickle.dumps(self._items[index])))
            except Exception as error:  # anything that the item's own class raises
                chunk.remove(index)
                self._finish(index, None, f"item cannot be pickled: {error_text(error)}")
        worker.items = chunk
        try:
            if not worker.has_function:
                worker.send("function", self._function)
                worker.has_function = True
            worker.item_start = time.monotonic()
            worker.send("items", payloads)
        except OSError:
            self._remove_dead(worker, is_at_work=False)

    def _receive(self, worker: Worker) -> None:
        """Read all messages of a worker, so that its time limit counts from the last one."""
        try:
            while worker.connection.poll():
                kind, *content = pickle.loads(worker.connection.recv_bytes())
                worker.item_start = time.monotonic()
                if kind == "ready":
                    worker.is_ready = True
                    self._failed_starts = 0
                elif kind == "broken":
                    raise WorkerError(
                        f"worker processes cannot run {self._function_name}: {content[0]}"
                    )
                else:
                    index, payload, error = content
                    worker.items.remove(index)
                    self._finish(index, payload, error)
        except (EOFError, OSError):
            self._remove_dead(worker, is_at_work=worker.is_ready)

    def _finish(self, index: int, payload: bytes | None, error: str | None) -> None:
        value = None
        if payload is not None:
            try:
                value = pickle.loads(payload)
            except Exception as failure:  # anything that the value's own class raises
                error = f"result cannot be unpickled: {error_text(failure)}"
        self._outcomes[index] = Outcome(value, error)
        if self._on_done is not None:
            self._on_done(1)

    def _remove_dead(self, worker: Worker, *, is_at_work: bool) -> None:
        """Remove a dead worker; its running item fails, its other items go to the next worker."""
        self._workers.remove(worker)
        status = worker.wait_for_end()
        if is_at_work and worker.items:
            self._finish(worker.items.popleft(), None, f"worker died ({status})")
        elif not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts == _MAX_FAILED_STARTS:
                raise WorkerError(
                    f"worker processes end before they can run {self._function_name} ({status}); "
                    "their messages are on stderr"
                )
        if worker.items:
            self._chunks.appendleft(worker.items)

    def _deadline(self, worker: Worker) -> float:
        if self._timeout_s is None or not (worker.items and worker.is_ready):
            return math.inf
        return worker.item_start + self._timeout_s + GRACE_S

    def _seconds_to_deadline(self) -> float | None:
        """Seconds until the next deadline; None where there is none."""
        deadline = min(map(self._deadline, self._workers), default=math.inf)
        return None if deadline == math.inf else max(0.0, deadline - time.monotonic())

    def _kill_late(self) -> None:
        for worker in list(self._workers):
            if time.monotonic() < self._deadline(worker) or worker.connection.poll():
                continue
            worker.kill()
            self._workers.remove(worker)
            assert self._timeout_s is not None
            self._finish(worker.items.popleft(), None, timeout_text(self._timeout_s))
            if worker.items:
                self._chunks.appendleft(worker.items)
