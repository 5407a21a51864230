"""Batches of training, and their source."""

from dataclasses import dataclass
from typing import Any, Protocol

PyTree = Any


@dataclass(frozen=True)
class Batch:
    """This process's part of a global batch.

    Attributes:
        arrays: pytree of host arrays: the rows of this process, leading axis sharded over devices;
            scalars are replicated. Read-only.
        num_crystals: crystals in the global batch, for the rate in crystals/s.
        useful_tokens: share of the global batch's tokens that are atoms, 0..1.
    """

    arrays: PyTree
    num_crystals: int
    useful_tokens: float = 1.0


class BatchSource(Protocol):
    """Batches as a pure function of the step, so that a resumed run sees the same ones."""

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one pass over the data."""
        ...

    def batch(self, step: int) -> Batch:
        """Return the batch of a step (0-based, counted over the whole run).

        Called from a background thread.
        """
        ...
