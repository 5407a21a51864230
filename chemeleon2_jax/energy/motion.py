"""Where relaxations end, and what is made of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from chemeleon2_jax.common.scores import check_values
from chemeleon2_jax.energy.guard import Prepared, find_problem
from chemeleon2_jax.energy.results import Energies, Relaxed


@dataclass(frozen=True)
class Motion:
    """Where a relaxation ended.

    Attributes:
        positions: (n, 3) angstrom.
        lattice: (3, 3) angstrom.
        energy: eV/atom.
        converged: forces fell below the limit.
        steps: that were taken.
    """

    positions: np.ndarray
    lattice: np.ndarray
    energy: float
    converged: bool
    steps: int


def collect_relaxed(
    prepared: Sequence[Prepared | None],
    ends: Sequence[Motion | None],
    reasons: Sequence[str | None],
    *,
    corrected: bool,
) -> Relaxed:
    """Return the result of a relaxation.

    Args:
        prepared: what it started from.
        ends: for each crystal, where it ended; None where it has a reason.
        reasons: for each crystal, None, or why it ended nowhere.
        corrected: scale of the energies.
    """
    energies, whys = check_values([end.energy if end else None for end in ends], reasons)
    structures: list[Structure | None] = []
    why = list(whys)
    for index, (start, end) in enumerate(zip(prepared, ends, strict=True)):
        structure = None
        if start is not None and end is not None and why[index] is None:
            structure, problem = _built(start, end)
            if problem is not None:
                why[index], energies[index] = f"diverged: {problem}", np.nan
        structures.append(structure)
    alive = [end if s is not None else None for s, end in zip(structures, ends, strict=True)]
    return Relaxed(
        tuple(structures),
        Energies(energies, tuple(why), corrected),
        np.array([end is not None and end.converged for end in alive], bool),
        np.array([0 if end is None else end.steps for end in alive], int),
    )


def _built(start: Prepared, end: Motion) -> tuple[Structure | None, str | None]:
    """Return the structure of an end, or why it is none that a potential is to be believed of."""
    try:
        structure = start.to_structure(end.positions, end.lattice)
    except ValueError as error:
        return None, str(error)
    problem = find_problem(structure)
    if problem is None:
        return structure, None
    return None, problem.removeprefix("implausible: ")
