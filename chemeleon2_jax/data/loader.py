"""Batches of rows, in an order that depends on the seed and the step alone.

Every process plans the whole global batch from the numbers of atoms and fills only its own rows:
nothing is exchanged, and a resumed run continues without replaying anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from chemeleon2_jax.common import hosts
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.rows.filling import build_rows
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.rows.rows import Rows

ConditionFn = Callable[[Crystals], Mapping[str, np.ndarray]]
"""(crystals) -> conditions of a model by name, (G, width)."""


@dataclass(frozen=True)
class Loader:
    """Training batches by step: one seeded permutation per epoch, without the last partial batch.

    Attributes:
        crystals: the data set, with A atoms in all.
        batch_size: crystals in a global batch; all of them if there are fewer.
        layout: of the rows.
        seed: of the order.
        atom_features: name -> (A, width), in the order of the atoms of `crystals`.
        condition_fn: computes the conditions of the crystals of a batch.
    """

    crystals: Crystals
    batch_size: int
    layout: Layout
    seed: int = 0
    atom_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    condition_fn: ConditionFn | None = None

    @property
    def crystals_per_step(self) -> int:
        """Crystals in every batch."""
        return min(self.batch_size, len(self.crystals))

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one pass over the data."""
        return len(self.crystals) // self.crystals_per_step

    def indices(self, step: int) -> np.ndarray:
        """Indices of the crystals in the batch of a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        size = self.crystals_per_step
        order = _permutation(self.seed, epoch, len(self.crystals))
        return order[within * size : (within + 1) * size]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step (0-based), with the rows of this process."""
        indices = self.indices(step)
        rows, assignment = fill_rows(
            self.crystals,
            indices,
            self.layout,
            atom_features=self.atom_features,
            condition_fn=self.condition_fn,
        )
        return Batch(rows, len(indices), assignment.useful_share)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def fill_rows(
    crystals: Crystals,
    indices: np.ndarray,
    layout: Layout,
    *,
    atom_features: Mapping[str, np.ndarray] | None = None,
    conditions: Mapping[str, np.ndarray] | None = None,
    condition_fn: ConditionFn | None = None,
    whole: bool = False,
) -> tuple[Rows, Assignment]:
    """Pack crystals and fill the rows of this process.

    Args:
        crystals: G crystals with A atoms in all.
        indices: of the crystals to pack; each index is the crystal_id in the rows.
        layout: of the rows.
        atom_features: name -> (A, width).
        conditions: name -> (G, width).
        condition_fn: computes the conditions of the packed crystals, in place of `conditions`.
        whole: fill all rows, for a program on the devices of this process alone.
    """
    chosen = crystals.take(indices)
    assignment = layout.assign(chosen.num_atoms)
    atoms = crystals.atom_indices(indices)
    rows = build_rows(
        chosen,
        assignment,
        crystal_ids=indices,
        row_range=None if whole else hosts.share(assignment.shape.rows),
        atom_features={k: v[atoms] for k, v in (atom_features or {}).items()},
        conditions=condition_fn(chosen)
        if condition_fn
        else {k: v[indices] for k, v in (conditions or {}).items()},
    )
    return rows, assignment


def in_order(
    crystals: Crystals,
    layout: Layout,
    batch_size: int,
    *,
    atom_features: Mapping[str, np.ndarray] | None = None,
    conditions: Mapping[str, np.ndarray] | None = None,
    condition_fn: ConditionFn | None = None,
    whole: bool = False,
) -> Iterator[tuple[Rows, Assignment, np.ndarray]]:
    """Yield (rows, assignment, indices) over all crystals in order, the last batch partial.

    For validation and encoding; arguments as for :func:`fill_rows`.
    """
    for start in range(0, len(crystals), batch_size):
        indices = np.arange(start, min(start + batch_size, len(crystals)))
        rows, assignment = fill_rows(
            crystals,
            indices,
            layout,
            atom_features=atom_features,
            conditions=conditions,
            condition_fn=condition_fn,
            whole=whole,
        )
        yield rows, assignment, indices
