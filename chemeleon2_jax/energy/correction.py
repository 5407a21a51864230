"""Materials Project's corrections (MP2020), for energies of models that predict plain PBE(+U)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.scores import Scores, check_values
from chemeleon2_jax.crystals.geometry import as_arrays
from chemeleon2_jax.crystals.structures import structure_from_arrays
from chemeleon2_jax.energy.guard import find_problem
from chemeleon2_jax.energy.results import Energies
from chemeleon2_jax.workers import WorkerPool

TIMEOUT_S = 10.0
"""Seconds for one crystal; guessing its oxidation states takes the time."""


def corrections(
    structures: Sequence[Any], pool: WorkerPool | None = None, *, timeout_s: float = TIMEOUT_S
) -> Scores:
    """Return the MP2020 corrections of crystals in eV/atom, to add to uncorrected energies.

    Wang et al., Sci. Rep. 11, 15496, 2021, as in pymatgen's ``MaterialsProject2020Compatibility``,
    with the U values of Materials Project for oxides and fluorides.

    Args:
        structures: structures, (atom_types, frac_coords, lattice) triples, or None.
        pool: processes to work in; None works in this one.
        timeout_s: limit for one crystal, in seconds.
    """
    reasons = [find_problem(structure) for structure in structures]
    todo = [index for index, reason in enumerate(reasons) if reason is None]
    items = [as_arrays(structures[index]) for index in todo]
    outcomes = (pool or WorkerPool(0)).map(_correction, items, timeout_s=timeout_s)
    values: list[float | None] = [None] * len(reasons)
    for index, outcome in zip(todo, outcomes, strict=True):
        values[index], reasons[index] = outcome.value, outcome.error
    return Scores(*check_values(values, reasons))


def correct_energies(
    structures: Sequence[Any],
    energies: Energies,
    pool: WorkerPool | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Energies:
    """Return uncorrected energies on Materials Project's corrected scale.

    Args:
        structures: as for :func:`corrections`.
        energies: of the structures in eV/atom.
        pool: as for :func:`corrections`.
        timeout_s: limit for one crystal, in seconds.

    Raises:
        EnergyError: the energies are on that scale already.
    """
    if energies.corrected:
        raise EnergyError("the energies are on the corrected scale already")
    added = corrections(structures, pool, timeout_s=timeout_s)
    reasons = [a or b for a, b in zip(energies.reasons, added.reasons, strict=True)]
    return Energies(*check_values(np.add(energies.values, added.values), reasons), True)


def _correction(crystal: Any) -> float:
    """Return the correction of one crystal in eV/atom, in a worker."""
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    structure = structure_from_arrays(*crystal)
    hubbards = _hubbards(structure.composition)
    parameters = {"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards}
    entry = ComputedStructureEntry(structure, 0.0, parameters=parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about oxidation states that cannot be guessed
        adjustments = _compatibility().get_adjustments(entry)
    return sum(adjustment.value for adjustment in adjustments) / len(structure)


@cache
def _compatibility() -> Any:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility(check_potcar=False)


def _hubbards(composition: Any) -> dict[str, float]:
    """Return the U values in eV that Materials Project uses for the elements of a composition."""
    from pymatgen.io.vasp.sets import MPRelaxSet

    most_electronegative = max(composition.elements, key=lambda element: element.X)
    values = MPRelaxSet.CONFIG["INCAR"]["LDAUU"].get(most_electronegative.symbol, {})
    return {e.symbol: values[e.symbol] for e in composition.elements if values.get(e.symbol)}
