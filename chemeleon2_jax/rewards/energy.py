"""Reward for stable crystals: minus the energy above the hull."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.energy.correction import correct_energies
from chemeleon2_jax.energy.hull import Hull
from chemeleon2_jax.energy.interface import EnergyModel
from chemeleon2_jax.workers import WorkerPool

Quantity = Literal["e_above_hull", "energy"]

MAX_E_ABOVE_HULL = 1.0
"""eV/atom; what is higher scores no worse."""


def energy_reward(
    structures: Sequence[Any],
    model: EnergyModel,
    hull: Hull | None = None,
    *,
    pool: WorkerPool | None = None,
    quantity: Quantity = "e_above_hull",
    relax_steps: int = 0,
) -> Scores:
    """Score crystals by their energies: as they are, or relaxed.

    Args:
        structures: structures, (atom_types, frac_coords, lattice) triples, or None (not built).
        model: gives energies. Where they are uncorrected and the hull is corrected, Materials
            Project's corrections are added.
        hull: known compounds.
        pool: processes for those corrections; None works in this one.
        quantity: ``e_above_hull`` scores minus that, clipped to 0..1 eV/atom; ``energy`` minus the
            energy in eV/atom, which says more of the elements than of the crystal.
        relax_steps: most steps of a relaxation before; what does not converge in them counts with
            the energy that it has come to. 0 takes the crystals as they are.

    Raises:
        EnergyError: see :func:`check_energy_reward`.
    """
    check_energy_reward(model, hull, quantity=quantity)
    if relax_steps:
        energies = model.relax(structures, steps=relax_steps).energies
    else:
        energies = model.energies(structures)
    if quantity == "energy" or hull is None:
        return Scores.of(-energies.values, energies.reasons)
    if needs_correction(model, hull):
        energies = correct_energies(structures, energies, pool)
    above = hull.e_above_hull(structures, energies)
    return Scores.of(-np.clip(above.values, 0.0, MAX_E_ABOVE_HULL), above.reasons)


def needs_correction(model: EnergyModel, hull: Hull) -> bool:
    """Whether a model's energies have to be corrected before they can be compared with a hull."""
    return hull.corrected and not model.corrected and not hull.has_both_scales


def check_energy_reward(
    model: EnergyModel, hull: Hull | None, *, quantity: Quantity = "e_above_hull"
) -> None:
    """Check, before a run, that the reward can be computed.

    Raises:
        EnergyError: there is no hull and one is needed, it is on a scale that the model's energies
            cannot be brought to, or there is no such quantity.
    """
    if quantity not in ("e_above_hull", "energy"):
        raise EnergyError(f"no quantity {quantity!r}: there are 'e_above_hull' and 'energy'")
    if quantity == "energy":
        return
    if hull is None:
        raise EnergyError(
            "the energy reward needs a hull: give a file of entries of known compounds "
            "(chemeleon2_jax.energy.hull.read_hull), or ask for minus the energy itself with "
            'quantity="energy"'
        )
    if not needs_correction(model, hull):
        hull.check_scale(model.corrected)
