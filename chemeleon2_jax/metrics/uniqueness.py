"""Which generated crystals are unique among themselves, and which are in no reference.

Only crystals of the same reduced formula are compared. A crystal that cannot be compared counts as
neither unique nor novel, with a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemeleon2_jax.crystals.arrays import CrystalArrays, Crystals
from chemeleon2_jax.crystals.geometry import as_arrays
from chemeleon2_jax.metrics.distribution import average_minimum_distances
from chemeleon2_jax.metrics.matching import (
    TIMEOUT_S,
    Cell,
    Formula,
    Tolerances,
    Verdict,
    compare,
    mostly_failed,
    reduce_cells,
    reduced_formula,
)
from chemeleon2_jax.metrics.structure import Check
from chemeleon2_jax.workers import WorkerPool


@dataclass(frozen=True)
class Comparison(Check):
    """Which crystals are unique, or novel.

    Attributes:
        matches: for each crystal, None, or the index of the other that it is the same as.
    """

    matches: tuple[int | None, ...]


class References:
    """Known crystals, by their reduced formula.

    Reduced cells and distances are kept, so one object should serve a whole run.
    """

    def __init__(self, crystals: Crystals | Sequence[Any]) -> None:
        """Index the crystals.

        Args:
            crystals: as arrays, or a list of structures or (atom_types, frac_coords, lattice).

        Raises:
            ValueError: the first that is no crystal, by its position.
        """
        self._crystals = crystals
        self._rows: dict[Formula, list[int]] = defaultdict(list)
        self._cells: dict[int, Cell] = {}
        self._distances: dict[tuple[int, int], np.ndarray] = {}
        for row in range(len(crystals)):
            try:
                formula = reduced_formula(self._arrays(row)[0])
            except (TypeError, ValueError) as error:
                raise ValueError(f"reference {row} is not a crystal: {error}") from error
            self._rows[formula].append(row)

    def __len__(self) -> int:
        return len(self._crystals)

    def _arrays(self, row: int) -> CrystalArrays:
        crystals = self._crystals
        return as_arrays(crystals.crystal(row) if isinstance(crystals, Crystals) else crystals[row])

    def rows(self, formula: Formula) -> list[int]:
        """Return the positions of the crystals with a reduced formula, ascending."""
        return list(self._rows.get(formula, ()))

    def cells(
        self, rows: Iterable[int], pool: WorkerPool | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> dict[int, Cell]:
        """Return the crystals at some positions, reduced for comparisons."""
        distinct = sorted(set(rows))
        missing = [row for row in distinct if row not in self._cells]
        reduced = reduce_cells([self._arrays(row) for row in missing], pool, timeout_s=timeout_s)
        self._cells.update(zip(missing, reduced, strict=True))
        return {row: self._cells[row] for row in distinct}

    def minimum_distances(self, row: int, k: int) -> np.ndarray:
        """Return the average minimum distances (k,) in angstrom of the crystal at a position.

        Raises:
            ValueError: its cell has no volume, or is not finite.
        """
        if (row, k) not in self._distances:
            self._distances[row, k] = average_minimum_distances(self._arrays(row), k)
        return self._distances[row, k]


def find_unique(
    structures: Iterable[Any],
    pool: WorkerPool | None = None,
    *,
    tolerances: Tolerances | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Comparison:
    """Find the first crystal of each group of the same.

    The groups are those of StructureMatcher's ``group_structures``: a crystal joins the first group
    whose first crystal it is the same as. "The same" is not transitive, so the groups can depend on
    the order.

    Args:
        structures: structures, (atom_types, frac_coords, lattice) triples, None (not built), or
            cells from :func:`~chemeleon2_jax.metrics.matching.reduce_cells`.
        pool: processes to work in; None works in this one.
        tolerances: of StructureMatcher; None are its defaults.
        timeout_s: limit for one comparison, in seconds.
    """
    cells = reduce_cells(structures, pool, timeout_s=timeout_s)
    matches: list[int | None] = [None] * len(cells)
    errors = [cell.error for cell in cells]
    by_formula: dict[Formula, list[int]] = defaultdict(list)
    for index, cell in enumerate(cells):
        if cell.error is None:
            by_formula[cell.formula].append(index)
    undecided = [indices for indices in by_formula.values() if len(indices) > 1]
    while undecided:
        # The first crystal of every formula, with all others of that formula.
        groups = [(cells[first], [cells[index] for index in rest]) for first, *rest in undecided]
        verdicts = compare(groups, pool, tolerances=tolerances, timeout_s=timeout_s)
        remaining = []
        for (first, *rest), answers in zip(undecided, verdicts, strict=True):
            if mostly_failed(answers):  # only the first is in all of these comparisons
                errors[first] = _failed_with("most others", answers)
                remaining.append(rest)
                continue
            for index, (same, error) in zip(rest, answers, strict=True):
                matches[index] = first if same else None
                errors[index] = error and f"comparison with structure {first}: {error}"
            remaining.append([i for i in rest if matches[i] is None and errors[i] is None])
        undecided = [indices for indices in remaining if len(indices) > 1]
    return _comparison(matches, errors, other="structure")


def find_novel(
    structures: Iterable[Any],
    references: References,
    pool: WorkerPool | None = None,
    *,
    tolerances: Tolerances | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Comparison:
    """Find the crystals that match no reference crystal.

    Args:
        structures: as for :func:`find_unique`.
        references: known crystals.
        pool: processes to work in; None works in this one.
        tolerances: of StructureMatcher; None are its defaults.
        timeout_s: limit for one comparison, in seconds.
    """
    cells = reduce_cells(structures, pool, timeout_s=timeout_s)
    rows = [references.rows(cell.formula) for cell in cells]
    known = references.cells((row for own in rows for row in own), pool, timeout_s=timeout_s)
    reducible = [[row for row in own if known[row].error is None] for own in rows]
    groups = [
        (cell, [known[row] for row in own]) for cell, own in zip(cells, reducible, strict=True)
    ]
    verdicts = compare(groups, pool, tolerances=tolerances, timeout_s=timeout_s)
    matches: list[int | None] = []
    errors = []
    for index, cell in enumerate(cells):
        answers = dict(zip(reducible[index], verdicts[index], strict=True))
        same = [row for row, (is_same, _) in answers.items() if is_same]
        failed = [
            f"comparison with reference {row}: {error}"
            for row in rows[index]
            if (error := answers[row][1] if row in answers else known[row].error) is not None
        ]
        matches.append(same[0] if same else None)
        # One match decides, even if other comparisons failed.
        errors.append(cell.error or (failed[0] if failed and not same else None))
    return _comparison(matches, errors, other="reference")


def _failed_with(others: str, answers: Sequence[Verdict]) -> str:
    first_error = next(error for _, error in answers if error is not None)
    return f"comparison with {others}: {first_error}"


def _comparison(
    matches: Sequence[int | None], errors: Sequence[str | None], *, other: str
) -> Comparison:
    faults = [None if match is None else f"same as {other} {match}" for match in matches]
    check = Check.of(faults, errors)
    return Comparison(check.passed, check.reasons, check.errors, tuple(matches))
