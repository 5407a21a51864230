"""Final states of relaxations, and the result for the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from chemeleon2_jax.common.scores import check_values
from chemeleon2_jax.energy.guard import Prepared, find_problem
from chemeleon2_jax.energy.results import Energies, Relaxed


@dataclass(frozen=True)
class FinalState:
    """The last state of a relaxation.

    Attributes:
        positions: (n, 3) angstrom.
        lattice: (3, 3) angstrom.
        energy: eV/atom.
        converged: forces fell below the limit.
        steps: number of steps taken.
    """

    positions: np.ndarray
    lattice: np.ndarray
    energy: float
    converged: bool
    steps: int


def collect_relaxed(
    prepared: Sequence[Prepared | None],
    final_states: Sequence[FinalState | None],
    reasons: Sequence[str | None],
    *,
    corrected: bool,
) -> Relaxed:
    """Return the result of the relaxations of G crystals.

    Args:
        prepared: (G,) the crystals as potentials saw them.
        final_states: (G,), None for a crystal with a reason.
        reasons: (G,) None, or why a crystal has no final state.
        corrected: scale of the energies.
    """
    energies, checked = check_values([s.energy if s else None for s in final_states], reasons)
    structures: list[Structure | None] = [None] * len(prepared)
    converged, steps = np.zeros(len(prepared), bool), np.zeros(len(prepared), int)
    all_reasons = list(checked)
    for index, (start, state) in enumerate(zip(prepared, final_states, strict=True)):
        if start is None or state is None or all_reasons[index] is not None:
            continue
        try:
            structure = start.to_structure(state.positions, state.lattice)
        except ValueError as error:
            problem: str | None = str(error)
        else:
            problem = find_problem(structure)
        if problem is not None:  # outside the potential's valid range
            reason = problem.removeprefix("implausible: ")
            all_reasons[index], energies[index] = f"diverged: {reason}", np.nan
            continue
        structures[index] = structure
        converged[index], steps[index] = state.converged, state.steps
    return Relaxed(
        tuple(structures), Energies(energies, tuple(all_reasons), corrected), converged, steps
    )
