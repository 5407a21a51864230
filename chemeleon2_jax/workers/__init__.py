"""Processes for host-side work: parsing CIFs, matching structures, scoring crystals.

A pool starts fresh interpreters (never a fork: JAX runs threads). They see no accelerator, use one
BLAS thread each, and do not run the main script again: a script needs an
``if __name__ == "__main__"`` guard only if it defines the called function itself.

A slow or crashing item fails alone. Its time limit is an alarm inside the worker, which then takes
the next item; if the alarm has no effect, as in a loop in C, the worker is killed and replaced.
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
