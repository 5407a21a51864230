"""Processes for host-side work: parsing CIFs, matching structures, scoring crystals.

A pool starts fresh interpreters (never a fork: JAX runs threads). They see no accelerator, use one
BLAS thread each, and do not run the main script again, so that a script needs no
``if __name__ == "__main__"`` guard unless the function itself is defined in that script.

A slow or crashing item costs that item alone. The time limit is first an alarm inside the worker,
which goes on with the next item; where that is not heard, as in a loop in C, the worker is killed
and replaced.
"""

from chemeleon2_jax.workers.background import Background
from chemeleon2_jax.workers.pool import WorkerPool, default_workers
from chemeleon2_jax.workers.schedule import Outcome, WorkerError

__all__ = [
    "Background",
    "Outcome",
    "WorkerError",
    "WorkerPool",
    "default_workers",
]
