"""Which crystals are the same: StructureMatcher over many pairs, each within a time limit.

Two crystals are the same where pymatgen's StructureMatcher fits one to the other. Each crystal is
reduced to its primitive Niggli cell once, however often it is compared. A crystal that cannot be
reduced, or a comparison that takes too long, affects no other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.geometry import as_arrays
from chemeleon2_jax.crystals.structures import (
    arrays_from_structure,
    check_arrays,
    structure_from_arrays,
)
from chemeleon2_jax.data.structure_files import NOT_BUILT
from chemeleon2_jax.workers import WorkerPool

Formula = tuple[tuple[int, int], ...]
"""A reduced formula: (atomic number, count) in order, the counts without a common divisor."""

Verdict = tuple[bool, str | None]
"""Whether two crystals are the same; None, or why they could not be compared."""

TIMEOUT_S = 3.0
"""Seconds for the reduction of a crystal, and for the comparison of two."""

_BATCH_SIZE = 16  # comparisons take about a millisecond
_CHUNK_SIZE = 8  # reductions take a few


@dataclass(frozen=True)
class Tolerances:
    """What StructureMatcher calls the same; the defaults are its own.

    Attributes:
        ltol: relative difference of cell lengths.
        stol: displacement of sites over (volume / number of atoms) ** (1/3).
        angle_tol: difference of cell angles in degrees.
    """

    ltol: float = 0.2
    stol: float = 0.3
    angle_tol: float = 5.0


@dataclass(frozen=True)
class Cell:
    """A crystal, reduced for comparisons.

    Attributes:
        formula: its reduced formula; empty where there is an error.
        arrays: atom_types, frac_coords and lattice before that; None where there is an error.
        reduced: those of the primitive Niggli cell; None where there is an error, or where no
            comparison needs it.
        error: None, or why it cannot be compared: "not built", "timeout after 3 s",
            "ValueError: ...".
    """

    formula: Formula = ()
    arrays: CrystalArrays | None = None
    reduced: CrystalArrays | None = None
    error: str | None = None


def reduced_formula(atom_types: np.ndarray) -> Formula:
    """Return the reduced formula of atomic numbers (n,).

    Raises:
        ValueError: no atom.
    """
    if not len(atom_types):
        raise ValueError("no atom")
    counts = Counter(atom_types.tolist())
    divisor = math.gcd(*counts.values())
    return tuple((number, count // divisor) for number, count in sorted(counts.items()))


def reduce_cells(
    structures: Iterable[Any],
    pool: WorkerPool | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    is_needed: Callable[[Formula], bool] | None = None,
) -> list[Cell]:
    """Reduce crystals to their primitive Niggli cells.

    Args:
        structures: structures, (atom_types, frac_coords, lattice) triples, None (not built), or
            cells, which are reduced if they are not yet.
        pool: processes to work in; None works in this one.
        timeout_s: limit for one crystal, in seconds.
        is_needed: whether crystals of a formula are to be reduced; all by default. The reduction of
            hundreds of atoms takes long: a crystal that is alone with its formula can do without.
    """
    cells = [item if isinstance(item, Cell) else _to_cell(item) for item in structures]
    indices = [
        index
        for index, cell in enumerate(cells)
        if cell.error is None
        and cell.reduced is None
        and (is_needed is None or is_needed(cell.formula))
    ]
    outcomes = (pool or WorkerPool(0)).map(
        _reduce,
        [cells[index].arrays for index in indices],
        timeout_s=timeout_s,
        chunk_size=_CHUNK_SIZE,
    )
    for index, outcome in zip(indices, outcomes, strict=True):
        if outcome.error is not None:
            cells[index] = Cell(error=outcome.error)
        else:
            cells[index] = replace(cells[index], reduced=outcome.value)
    return cells


def is_shared(structures: Iterable[Any]) -> Callable[[Formula], bool]:
    """Return a function that tells whether several of the crystals have a formula."""
    cells = (item if isinstance(item, Cell) else _to_cell(item) for item in structures)
    counts = Counter(cell.formula for cell in cells if cell.error is None)
    return lambda formula: counts[formula] > 1


def _to_cell(structure: Any) -> Cell:
    """Return a crystal that is not reduced yet, or the reason why it cannot be."""
    if structure is None:
        return Cell(error=NOT_BUILT)
    try:
        arrays = as_arrays(structure)
        check_arrays(*arrays)
        return Cell(reduced_formula(arrays[0]), arrays)
    except (TypeError, ValueError) as error:
        return Cell(error=f"{type(error).__name__}: {error}")


def _reduce(arrays: CrystalArrays) -> CrystalArrays:
    """Reduce one crystal as StructureMatcher does, in a worker."""
    reduced = structure_from_arrays(*arrays).get_reduced_structure(reduction_algo="niggli")
    return arrays_from_structure(reduced.get_primitive_structure())


def compare(
    groups: Sequence[tuple[Cell, Sequence[Cell]]],
    pool: WorkerPool | None = None,
    *,
    tolerances: Tolerances | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[list[Verdict]]:
    """Compare crystals with others.

    Args:
        groups: pairs of a crystal and the others to compare it with, all without errors.
        pool: processes to work in; None works in this one.
        tolerances: of StructureMatcher; None are its defaults.
        timeout_s: limit for one comparison, in seconds.

    Returns:
        for each group a verdict for each of the others.
    """
    fit_batch = partial(_fit_batch, tolerances=tolerances or Tolerances())
    verdicts: list[list[Verdict]] = [[(False, None)] * len(others) for _, others in groups]

    def run(pieces: list[tuple[int, list[int]]]) -> None:
        items = []
        for group, places in pieces:
            cell, others = groups[group]
            items.append((cell.reduced, [others[place].reduced for place in places]))
        outcomes = (pool or WorkerPool(0)).map(fit_batch, items, timeout_s=timeout_s)
        for (group, places), outcome in zip(pieces, outcomes, strict=True):
            answers = [False] * len(places) if outcome.error else outcome.value
            for place, same in zip(places, answers, strict=True):
                verdicts[group][place] = (same, outcome.error)

    run(list(_batches([len(others) for _, others in groups])))
    # A batch that failed is repeated pair by pair, unless the first few pairs show that the group's
    # own crystal is at fault: then all others would fail too.
    slow = {
        group: [place for place, (_, error) in enumerate(row) if error is not None]
        for group, row in enumerate(verdicts)
        if len(row) > 1
    }
    for part in (slice(0, _BATCH_SIZE), slice(_BATCH_SIZE, None)):
        run([(group, [place]) for group, places in slow.items() for place in places[part]])
        slow = {
            group: places
            for group, places in slow.items()
            if not mostly_failed([verdicts[group][place] for place in places[part]])
        }
    return verdicts


def _batches(sizes: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield (group, places of some of its others)."""
    for group, size in enumerate(sizes):
        for start in range(0, size, _BATCH_SIZE):
            yield group, list(range(start, min(start + _BATCH_SIZE, size)))


def mostly_failed(verdicts: Sequence[Verdict]) -> bool:
    """Whether more than half of several comparisons of one crystal failed."""
    failed = sum(error is not None for _, error in verdicts)
    return failed > 1 and 2 * failed > len(verdicts)


def _fit_batch(
    work: tuple[CrystalArrays, Sequence[CrystalArrays]], *, tolerances: Tolerances
) -> list[bool]:
    """Fit one reduced crystal to several, in a worker."""
    first, others = work
    matcher = StructureMatcher(
        ltol=tolerances.ltol, stol=tolerances.stol, angle_tol=tolerances.angle_tol
    )
    structure = structure_from_arrays(*first)
    return [
        bool(matcher.fit(structure, structure_from_arrays(*other), skip_structure_reduction=True))
        for other in others
    ]
