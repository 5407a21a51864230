"""Batches made in a background thread and put on the devices ahead of the training loop."""

import itertools
import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace

from jax.sharding import Mesh

from chemeleon2_jax.rows.batch import Batch, BatchSource
from chemeleon2_jax.training.parallel import shard_batch

_NUM_WAITING = 2


def prefetch(
    source: BatchSource, mesh: Mesh, *, first_step: int, end_step: int | None = None
) -> Generator[Batch, None, None]:
    """Yield the batches of steps `first_step` up to `end_step` (None: no end), on the devices.

    `next` raises the errors of `source`. Closing the generator ends the thread.
    """
    steps = itertools.count(first_step) if end_step is None else range(first_step, end_step)
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_NUM_WAITING)
    closed = threading.Event()

    def work() -> None:
        try:
            for step in steps:
                batch = source.batch(step)
                ready.put(replace(batch, arrays=shard_batch(batch.arrays, mesh)))
                if closed.is_set():
                    return
            ready.put(None)
        # Of any type: the training loop, which raises it, would otherwise wait forever.
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        closed.set()
        while thread.is_alive():
            with suppress(queue.Empty):  # make room for a batch that the thread holds
                ready.get(timeout=0.1)
