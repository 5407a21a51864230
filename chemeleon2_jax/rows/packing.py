"""Packing: the row, slot and tokens of each crystal of a batch.

Letters: R rows, T tokens in a row, S slots (crystals) in a row. A crystal lies in one row, so that
all arrays shard on the first axis. Places depend on sizes alone, so that all hosts agree on them.
In a packed row the last slot is a dummy crystal (identity lattice, no atoms) that owns the padding
tokens. All of it is numpy, on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class RowShape(NamedTuple):
    """Static shape of a batch: rows R, tokens T and slots S per row, and E pairs of atoms, 0 for a
    model without edges.
    """

    rows: int
    tokens: int
    slots: int
    edges: int = 0


@dataclass(frozen=True)
class Assignment:
    """Place of each of B crystals: row, slot and first token in the row, each (B,) int64."""

    shape: RowShape
    sizes: np.ndarray
    row: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    padded: bool = False

    @property
    def token_index(self) -> np.ndarray:
        """(A,) index of each atom in the flattened (R * T) tokens, crystal after crystal."""
        first = self.row * self.shape.tokens + self.start
        ends = np.cumsum(self.sizes)
        return np.repeat(first - (ends - self.sizes), self.sizes) + np.arange(self.sizes.sum())

    @property
    def slot_index(self) -> np.ndarray:
        """(B,) index of each crystal in the flattened (R * S) slots."""
        return self.row * self.shape.slots + self.slot

    @property
    def useful_share(self) -> float:
        """Share of the tokens that are atoms."""
        return float(self.sizes.sum() / (self.shape.rows * self.shape.tokens))

    def split_atoms(self, values: Any) -> list[np.ndarray]:
        """Return (R, T, ...) values as one (n, ...) array per crystal."""
        array = np.asarray(values)
        atoms = array.reshape(-1, *array.shape[2:])[self.token_index]
        return np.split(atoms, np.cumsum(self.sizes)[:-1])

    def take_slots(self, values: Any) -> np.ndarray:
        """Return (R, S, ...) values as (B, ...), one per crystal."""
        array = np.asarray(values)
        return array.reshape(-1, *array.shape[2:])[self.slot_index]


def best_fit(
    sizes: np.ndarray, tokens: int, slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pack crystals into rows: largest first, each into the fullest row with room for it.

    Args:
        sizes: (B,) numbers of atoms, each at most `tokens`.
        tokens: tokens in a row.
        slots: slots in a row; the last stays free for the padding.

    Returns:
        row, slot and first token of each crystal, (B,) int64.
    """
    row, slot, start = (np.zeros(len(sizes), np.int64) for _ in range(3))
    open_rows: list[list[int]] = [[] for _ in range(tokens + 1)]  # by free tokens
    used_slots: list[int] = []
    for index in np.argsort(-sizes, kind="stable"):
        size = int(sizes[index])
        free = next((f for f in range(size, tokens + 1) if open_rows[f]), None)
        if free is None:
            used_slots.append(0)
            free, chosen = tokens, len(used_slots) - 1
        else:
            chosen = open_rows[free].pop()
        row[index], slot[index], start[index] = chosen, used_slots[chosen], tokens - free
        used_slots[chosen] += 1
        if used_slots[chosen] < slots - 1:
            open_rows[free - size].append(chosen)
    return row, slot, start


def num_rows(sizes: np.ndarray, tokens: int, slots: int) -> int:
    """Return the number of rows that `best_fit` opens."""
    return int(best_fit(sizes, tokens, slots)[0].max(initial=-1)) + 1


def assign(sizes: Sequence[int] | np.ndarray, shapes: Sequence[RowShape]) -> Assignment:
    """Pack crystals of `sizes` (B,) into the smallest of `shapes` (of one T and S) that holds them.

    Raises:
        ValueError: no shape holds them.
    """
    sizes = np.asarray(sizes, np.int64)
    tokens, slots = shapes[0].tokens, shapes[0].slots
    if sizes.max(initial=0) > tokens:
        raise ValueError(
            f"a crystal of {sizes.max()} atoms does not fit into rows of {tokens} tokens; "
            "raise config.packing.row_tokens or lower config.data.max_atoms"
        )
    row, slot, start = best_fit(sizes, tokens, slots)
    needed, pairs = int(row.max(initial=-1)) + 1, int((sizes**2).sum())
    for shape in sorted(shapes):
        if shape.rows >= needed and (not shape.edges or shape.edges >= pairs):
            return Assignment(shape, sizes, row, slot, start)
    raise ValueError(
        f"{len(sizes)} crystals need {needed} rows; the largest shape is {max(shapes)}"
    )


def assign_padded(
    sizes: Sequence[int] | np.ndarray, tokens: int, *, rows: int = 0, edges: int = 0
) -> Assignment:
    """Place one crystal per row, padded to `tokens`; the padding belongs to the crystal.

    This is the layout of the original. The interleaved variance of converted models depends on it.
    """
    sizes = np.asarray(sizes, np.int64)
    index, zeros = np.arange(len(sizes)), np.zeros(len(sizes), np.int64)
    return Assignment(
        RowShape(max(rows, len(sizes)), tokens, 1, edges), sizes, index, zeros, zeros, padded=True
    )
