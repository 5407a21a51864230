"""Reward for crystals that differ from each other and from known ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.metrics.distribution import (
    AMD_NEIGHBOURS,
    amd_distances,
    average_minimum_distances,
)
from chemeleon2_jax.metrics.matching import Cell, reduce_cells
from chemeleon2_jax.metrics.uniqueness import References, find_novel, find_unique
from chemeleon2_jax.rewards.component import Component, Context, Crystal
from chemeleon2_jax.workers import WorkerPool

SAME_DISTANCE = 1e-6
"""Angstrom; crystals whose average minimum distances differ by less count as copies."""


def build(context: Context) -> Component:
    """Score unique and novel crystals; see :func:`creativity`."""
    return Creativity(References(context.crystals))


@dataclass(frozen=True)
class Creativity:
    """:func:`creativity` of a rollout; cells are reduced chunk by chunk."""

    references: References

    def prepare(self, crystals: Sequence[Crystal], pool: WorkerPool) -> list[Any]:
        """Reduce the cells."""
        return list(reduce_cells(crystals, pool))

    def score(self, prepared: Sequence[Any], pool: WorkerPool) -> Scores:
        """Compare the crystals with each other and with the references."""
        return creativity(prepared, self.references, pool)


def creativity(
    structures: Iterable[Any],
    references: References,
    pool: WorkerPool | None = None,
) -> Scores:
    """Score 1 for unique and novel crystals, 0 for those that are neither.

    A crystal that is one of the two scores its distance in angstrom from the nearest crystal of the
    same reduced formula that is no copy of it, among those generated and the references: the
    largest difference of their average minimum distances to 100 neighbours. It scores 0 where all
    are copies.

    Args:
        structures: structures, (atom_types, frac_coords, lattice) triples, None (not built), or
            cells from :func:`~chemeleon2_jax.metrics.matching.reduce_cells`.
        references: known crystals.
        pool: processes to work in; None works in this one.
    """
    cells = reduce_cells(structures, pool)
    is_unique, is_novel = find_unique(cells, pool), find_novel(cells, references, pool)
    errors = [a or b for a, b in zip(is_unique.errors, is_novel.errors, strict=True)]
    values = np.where(is_unique.passed & is_novel.passed, 1.0, 0.0)
    between = [
        index
        for index, error in enumerate(errors)
        if error is None and is_unique.passed[index] != is_novel.passed[index]
    ]
    if between:
        values[between] = _distances_to_nearest(cells, between, references)
    return Scores.of(values, errors)


def _distances_to_nearest(
    cells: Sequence[Cell], indices: Sequence[int], references: References
) -> np.ndarray:
    """Distances (len(indices),) in angstrom of some cells from the nearest one that is no copy."""
    formulas = {cells[index].formula for index in indices}
    groups = defaultdict(list)
    for index, cell in enumerate(cells):
        if cell.formula in formulas:
            groups[cell.formula].append(index)
    nearest: dict[int, float] = {}
    for formula, group in groups.items():
        own = [_minimum_distances(cells[index]) for index in group]
        known = [
            references.minimum_distances(row, AMD_NEIGHBOURS) for row in references.rows(formula)
        ]
        distances = amd_distances(np.array(own), np.array(own + known))
        distances[distances < SAME_DISTANCE] = np.inf  # itself included
        nearest.update(zip(group, distances.min(1), strict=True))
    distance = np.array([nearest[index] for index in indices])
    return np.where(np.isfinite(distance), distance, 0.0)


def _minimum_distances(cell: Cell) -> np.ndarray:
    assert cell.arrays is not None  # cells without errors
    return average_minimum_distances(cell.arrays, AMD_NEIGHBOURS)
