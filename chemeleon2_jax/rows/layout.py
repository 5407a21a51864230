"""Layout of a run's batches: packed or padded rows, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chemeleon2_jax.rows.packing import Assignment, RowShape, assign, assign_padded, num_rows
from chemeleon2_jax.rows.planning import MAX_SHAPES, plan_shapes


@dataclass(frozen=True)
class Layout:
    """Rows of a run: packed into the smallest of `shapes` that fits, or padded, one per crystal."""

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
        """Choose shapes for batches drawn from crystals of `sizes`, see `plan_shapes`; with
        `padded_tokens` > 0, rows are padded to it.

        Raises:
            ValueError: a crystal is larger than `padded_tokens`.
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
        """Return one shape that holds each of the batches of sizes.

        It has the tokens and slots of `like` where they suffice. `coarse` rounds it up by at most
        an eighth, so that similar batches share a compiled program.
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

    def without_edges(self) -> Layout:
        """Return the layout for a model that needs no pairs of atoms."""
        shapes = dict.fromkeys(shape._replace(edges=0) for shape in self.shapes)
        return Layout(tuple(shapes), padded=self.padded)

    def assign(self, sizes: np.ndarray) -> Assignment:
        """Place crystals of `sizes` (B,)."""
        if not self.padded:
            return assign(sizes, self.shapes)
        shape = self.shapes[0]
        return assign_padded(sizes, shape.tokens, rows=shape.rows, edges=shape.edges)


def _round_up(count: int) -> int:
    """Round up to one of eight values per octave."""
    step = max(1, 2 ** (count.bit_length() - 4))
    return step * -(-count // step)


def to_slots(
    values: np.ndarray, where: Assignment, row_range: tuple[int, int] | None = None
) -> np.ndarray:
    """Put values (B,) of crystals to their slots: (R, S), 0 where there is no crystal; with
    `row_range`, only the rows from its first to before its last.
    """
    shape = where.shape
    out = np.zeros(shape.rows * shape.slots, values.dtype)
    out[where.slot_index] = values
    first, last = row_range or (0, shape.rows)
    return out.reshape(shape.rows, shape.slots)[first:last]
