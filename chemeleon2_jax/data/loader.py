"""Batches of rows, in an order that depends on the seed and the step alone.

Every process plans the whole global batch from the sizes and fills only its own rows, so that
nothing is exchanged and a resumed run continues where it stopped without having to replay anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import jax
import numpy as np

from chemeleon2_jax.crystals import Crystals
from chemeleon2_jax.packing import (
    MAX_SHAPES,
    Assignment,
    RowShape,
    assign,
    assign_padded,
    build_rows,
    num_rows,
    plan_shapes,
)
from chemeleon2_jax.rows import Rows
from chemeleon2_jax.training.stage import Batch

ConditionFn = Callable[[Crystals], Mapping[str, np.ndarray]]
"""(crystals) -> name -> (G, width), as the conditions of a model."""


@dataclass(frozen=True)
class Layout:
    """How batches become rows: packed into one of `shapes`, or padded to `padded_tokens`, one
    crystal a row.
    """

    shapes: tuple[RowShape, ...]
    padded: bool = False

    @staticmethod
    def plan(
        sizes: np.ndarray,
        batch_size: int,
        *,
        num_devices: int = 1,
        row_tokens: int = 0,
        max_shapes: int = MAX_SHAPES,
        padded_tokens: int = 0,
        edges: bool = False,
        copies: int = 1,
    ) -> Layout:
        """Choose shapes for batches drawn from crystals of `sizes`; `padded_tokens` > 0 asks for
        padded rows. See `plan_shapes`.
        """
        if not padded_tokens:
            shapes = plan_shapes(
                sizes,
                batch_size,
                num_devices=num_devices,
                row_tokens=row_tokens,
                max_shapes=max_shapes,
                edges=edges,
                copies=copies,
            )
            return Layout(shapes)
        if sizes.max() > padded_tokens:
            raise ValueError(
                f"a crystal of {sizes.max()} atoms does not fit into rows padded to {padded_tokens}"
            )
        rows = num_devices * -(-min(batch_size, copies * len(sizes)) // num_devices)
        pairs = int((np.sort(sizes)[-batch_size:].astype(np.int64) ** 2).sum()) if edges else 0
        pairs = num_devices * -(-pairs // num_devices)
        return Layout((RowShape(rows, padded_tokens, 1, pairs),), padded=True)

    @staticmethod
    def for_batches(
        batches: Sequence[np.ndarray], *, like: Layout, num_devices: int = 1, coarse: bool = False
    ) -> Layout:
        """One shape that holds each of the given batches of sizes, with the tokens and slots of
        `like` where they fit; `coarse` rounds it up by at most an eighth, so that other batches
        have the same.
        """
        tokens, slots = like.shapes[0].tokens, like.shapes[0].slots
        largest = max(int(sizes.max()) for sizes in batches)
        if largest > tokens:
            tokens = largest if like.padded else 64 * -(-largest // 64)
        rows = [len(b) if like.padded else num_rows(b, tokens, slots) for b in batches]
        pairs = [
            int((b.astype(np.int64) ** 2).sum()) if like.shapes[0].edges else 0 for b in batches
        ]
        needed = [_round_up(max(counts)) if coarse else max(counts) for counts in (rows, pairs)]
        rows_needed, edges = (num_devices * -(-count // num_devices) for count in needed)
        return Layout((RowShape(rows_needed, tokens, slots, edges),), padded=like.padded)

    def assign(self, sizes: np.ndarray) -> Assignment:
        """Place crystals of `sizes` (B,)."""
        if not self.padded:
            return assign(sizes, self.shapes)
        shape = self.shapes[0]
        return assign_padded(sizes, shape.tokens, rows=shape.rows, edges=shape.edges)


def _round_up(count: int) -> int:
    """Round up to one of eight values an octave."""
    step = max(1, 2 ** (count.bit_length() - 4))
    return step * -(-count // step)


def local_rows(shape: RowShape) -> tuple[int, int]:
    """First and last + 1 row of this process: an equal share, in the order of the processes."""
    index, count = jax.process_index(), jax.process_count()
    return shape.rows * index // count, shape.rows * (index + 1) // count


@dataclass(frozen=True)
class Loader:
    """Training batches by step: a seeded permutation an epoch; a last partial batch is dropped.

    Attributes:
        crystals: the data set.
        batch_size: crystals in a global batch; all of them if there are fewer.
        layout: of the rows.
        seed: of the order.
        atom_features: name -> (A, width), in the order of the atoms of `crystals`.
        condition_fn: gives the conditions of the crystals of a batch.
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
        """Rows of the data set in the batch of a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        size = self.crystals_per_step
        order = _permutation(self.seed, epoch, len(self.crystals))
        return order[within * size : (within + 1) * size]

    def batch(self, step: int) -> Batch:
        """The batch of a step (0-based): a `Rows` of this process's rows."""
        indices = self.indices(step)
        rows, assignment = fill_rows(
            self.crystals,
            indices,
            self.layout,
            self.atom_features,
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
    atom_features: Mapping[str, np.ndarray] | None = None,
    *,
    conditions: Mapping[str, np.ndarray] | None = None,
    condition_fn: ConditionFn | None = None,
) -> tuple[Rows, Assignment]:
    """Place the crystals at `indices` and fill this process's rows; their crystal_id is their
    index. `atom_features` (A, width) and `conditions` (G, width) belong to all of `crystals`;
    `condition_fn` gives conditions of those that are placed.
    """
    chosen = crystals.take(indices)
    assignment = layout.assign(chosen.num_atoms)
    atoms = crystals.atom_indices(indices)
    rows = build_rows(
        chosen,
        assignment,
        crystal_ids=indices,
        row_range=local_rows(assignment.shape),
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
) -> Iterator[tuple[Rows, Assignment, np.ndarray]]:
    """Yield (rows, assignment, indices) over all crystals in order, the last batch partial: for
    validation and encoding.
    """
    for start in range(0, len(crystals), batch_size):
        indices = np.arange(start, min(start + batch_size, len(crystals)))
        rows, assignment = fill_rows(
            crystals,
            indices,
            layout,
            atom_features,
            conditions=conditions,
            condition_fn=condition_fn,
        )
        yield rows, assignment, indices
