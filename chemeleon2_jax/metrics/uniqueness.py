"""Which generated crystals are unique among themselves, and which are in no reference.

Only crystals of the same reduced formula are compared. A crystal that cannot be compared has no
verdict, but a reason; one without another of its formula needs no comparison.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from chemeleon2_jax.common.suggest import suggest
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
    is_shared,
    mostly_failed,
    reduce_cells,
    reduced_formula,
)
from chemeleon2_jax.metrics.structure import Check
from chemeleon2_jax.workers import WorkerPool

UNIQUE_RULES = ("first", "components")
"""Rules of groups of the same crystals, see `find_unique`."""

_CompareFn = Callable[[Sequence[tuple[Cell, Sequence[Cell]]]], list[list[Verdict]]]
_Groups = tuple[list[int | None], list[str | None]]


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
    rule: str = "first",
) -> Comparison:
    """Find the first crystal of each group of the same.

    "The same" is neither transitive nor symmetric for StructureMatcher. The groups of the rule
    `first` are those of its ``group_structures``: a crystal joins the first group whose first
    crystal it is the same as, so that the groups can depend on the order. The groups of the rule
    `components` do not: two crystals are in one group if a chain of crystals leads from one to the
    other, each the same as the next in either direction. It compares all pairs of a formula.

    Args:
        structures: structures, (atom_types, frac_coords, lattice) triples, None (not built), or
            cells from :func:`~chemeleon2_jax.metrics.matching.reduce_cells`.
        pool: processes to work in; None works in this one.
        tolerances: of StructureMatcher; None are its defaults.
        timeout_s: limit for one comparison, in seconds.
        rule: of `UNIQUE_RULES`.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in UNIQUE_RULES:
        raise ValueError(f"no rule of uniqueness {rule!r}: {suggest(rule, UNIQUE_RULES)}")
    items = list(structures)
    cells = reduce_cells(items, pool, timeout_s=timeout_s, is_needed=is_shared(items))
    by_formula: dict[Formula, list[int]] = defaultdict(list)
    for index, cell in enumerate(cells):
        if cell.error is None:
            by_formula[cell.formula].append(index)
    shared = [indices for indices in by_formula.values() if len(indices) > 1]
    group = _group_by_first if rule == "first" else _group_by_components
    matches, errors = group(
        shared, cells, partial(compare, pool=pool, tolerances=tolerances, timeout_s=timeout_s)
    )
    return _comparison(matches, errors, other="structure")


def _group_by_first(
    undecided: list[list[int]], cells: Sequence[Cell], compare_fn: _CompareFn
) -> _Groups:
    """Return for each crystal the first crystal of its group, or why there is no verdict."""
    matches: list[int | None] = [None] * len(cells)
    errors = [cell.error for cell in cells]
    while undecided:
        # The first crystal of every formula, with all others of that formula.
        groups = [(cells[first], [cells[index] for index in rest]) for first, *rest in undecided]
        verdicts = compare_fn(groups)
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
    return matches, errors


def _group_by_components(
    shared: list[list[int]], cells: Sequence[Cell], compare_fn: _CompareFn
) -> _Groups:
    """Return what `_group_by_first` does, for groups that do not depend on the order."""
    matches: list[int | None] = [None] * len(cells)
    errors = [cell.error for cell in cells]
    groups = [
        (cells[one], [cells[other] for other in indices if other != one])
        for indices in shared
        for one in indices
    ]
    verdicts = iter(compare_fn(groups))
    for indices in shared:
        answers = [next(verdicts) for _ in indices]
        same, problems = _pair_up(answers)
        _, labels = connected_components(same, directed=False)
        is_bad = [mostly_failed(own) for own in answers]  # by itself at fault
        for place, index in enumerate(indices):
            first = int(np.argmax(labels == labels[place]))
            if first < place:
                matches[index] = indices[first]
                continue
            # A crystal that could not be compared with an earlier one may belong to its group.
            failed = [
                f"comparison with structure {indices[other]}: {error}"
                for (one, other), error in problems.items()
                if one == place and (is_bad[one] or (other < one and not is_bad[other]))
            ]
            errors[index] = failed[0] if failed else None
    return matches, errors


def _pair_up(answers: list[list[Verdict]]) -> tuple[np.ndarray, dict[tuple[int, int], str]]:
    """Return which of n crystals are the same in either direction, (n, n) bool, and the errors of
    pairs that are not, from the verdicts of each with all others.
    """
    size = len(answers)
    same, problems = np.zeros((size, size), bool), {}
    for one, verdicts in enumerate(answers):
        others = [other for other in range(size) if other != one]
        for other, (is_same, error) in zip(others, verdicts, strict=True):
            same[one, other] = is_same
            if error is not None:
                problems[one, other] = problems[other, one] = error
    same |= same.T
    return same, {pair: error for pair, error in problems.items() if not same[pair]}


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
    cells = reduce_cells(
        structures, pool, timeout_s=timeout_s, is_needed=lambda f: bool(references.rows(f))
    )
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
