"""A background thread that makes batches and puts them on the devices ahead of the loop."""

import queue
import threading
from collections.abc import Iterator
from types import TracebackType

from jax.sharding import Mesh

from chemeleon2_jax.rows.batch import Batch, BatchSource
from chemeleon2_jax.training.parallel import shard_batch

_POLL_SECONDS = 0.1


class Prefetcher:
    """Iterates over the batches of steps `first_step`, `first_step + 1`, ... up to `end_step`.

    Args:
        source: batches by step.
        mesh: devices of the batches.
        first_step: step of the first batch.
        end_step: one past the step of the last batch; None: no end.
        size: number of batches that wait on the devices.

    `next` raises the errors of `source`. Leaving the context ends the thread.
    """

    def __init__(
        self,
        source: BatchSource,
        mesh: Mesh,
        *,
        first_step: int,
        end_step: int | None = None,
        size: int = 2,
    ) -> None:
        self._source, self._mesh = source, mesh
        self._first_step, self._end_step = first_step, end_step
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(size)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Iterator[Batch]:
        self._thread.start()
        return self._batches()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _batches(self) -> Iterator[Batch]:
        while True:
            entry = self._queue.get()
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry

    def _work(self) -> None:
        step = self._first_step
        try:
            while not self._stop.is_set() and (self._end_step is None or step < self._end_step):
                batch = self._source.batch(step)
                arrays = shard_batch(batch.arrays, self._mesh)
                self._put(Batch(arrays, batch.num_crystals, batch.useful_tokens))
                step += 1
            self._put(None)
        # Of any type: the training loop, which raises it, would otherwise wait forever.
        except BaseException as error:
            self._put(error)

    def _put(self, entry: Batch | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue
