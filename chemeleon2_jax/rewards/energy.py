"""Reward for stable crystals: minus the energy above the hull."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import EnergyError, RewardError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.energy.correction import correct_energies
from chemeleon2_jax.energy.hull import Hull, read_hull
from chemeleon2_jax.energy.interface import EnergyModel
from chemeleon2_jax.energy.model import energy_model, works_in_workers
from chemeleon2_jax.rewards.component import Component, Context, Crystal, PerChunk
from chemeleon2_jax.rewards.custom import read_json
from chemeleon2_jax.rewards.options import check_positive
from chemeleon2_jax.workers import WorkerPool

QUANTITIES = ("e_above_hull", "energy")
_SCALES = {"": None, "true": True, "false": False}

MAX_E_ABOVE_HULL = 1.0
"""eV/atom; what is higher scores no worse."""


def build(
    context: Context,
    *,
    model: str = "nequix",
    model_path: str = "",
    model_kwargs: str = "",
    hull: str = "",
    hull_corrected: str = "",
    quantity: str = "e_above_hull",
    relax_steps: int = 0,
) -> Component:
    """Score minus the energy above the hull, of crystals as they are or relaxed.

    Args:
        context: workers and time limit.
        model: nequix, chgnet, mace, ase:<module>:<class>
        model_path: weights of nequix; '' fetches the published ones once
        model_kwargs: of the other models, as JSON
        hull: file of entries: known compounds and their energies
        hull_corrected: true or false, its scale, where the file does not say
        quantity: e_above_hull; or energy, minus the energy itself
        relax_steps: most steps of a relaxation; 0 judges crystals as they are

    Raises:
        RewardError: a hull is missing, or hull_corrected is invalid.
        EnergyError: a model or a hull cannot be loaded, or they do not fit.
    """
    if quantity == "e_above_hull" and not hull:
        raise RewardError(
            "hull is empty: it names a file of entries of known compounds (see Energies in the "
            "README); quantity=energy does without"
        )
    if hull_corrected not in _SCALES:
        raise RewardError(f"hull_corrected is {hull_corrected!r}; it is true, false or ''")
    check_positive(relax_steps, "relax_steps", or_zero=True)
    potential = _open_model(context, model, path=model_path, kwargs=model_kwargs)
    known = read_hull(hull, corrected=_SCALES[hull_corrected]) if hull else None
    check_energy_reward(potential, known, quantity=quantity)

    def judge(crystals: Sequence[Crystal], pool: WorkerPool) -> Scores:
        try:
            return energy_reward(
                crystals, potential, known, pool=pool, quantity=quantity, relax_steps=relax_steps
            )
        except EnergyError as error:  # a calculator that cannot be made, say
            raise RewardError(f"reward energy: {error}") from error

    return PerChunk(judge)


def _open_model(context: Context, name: str, *, path: str, kwargs: str) -> EnergyModel:
    settings: dict[str, Any] = {"model_path": path}
    if works_in_workers(name):
        limit = context.timeout_s
        settings = {"pool": context.pool, "timeout_s": limit, "relax_timeout_s": limit}
    return energy_model(name, **(settings | read_json(kwargs, "model_kwargs")))


def energy_reward(
    structures: Sequence[Any],
    model: EnergyModel,
    hull: Hull | None = None,
    *,
    pool: WorkerPool | None = None,
    quantity: str = "e_above_hull",
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
        relax_steps: most steps of a relaxation; a crystal that does not converge in them counts
            with the energy of its last step. 0 takes the crystals as they are.

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
    if _needs_correction(model, hull):
        energies = correct_energies(structures, energies, pool)
    above = hull.e_above_hull(structures, energies)
    return Scores.of(-np.clip(above.values, 0.0, MAX_E_ABOVE_HULL), above.reasons)


def _needs_correction(model: EnergyModel, hull: Hull) -> bool:
    """Whether a model's energies have to be corrected before they can be compared with a hull."""
    return hull.corrected and not model.corrected and not hull.has_both_scales


def check_energy_reward(
    model: EnergyModel, hull: Hull | None, *, quantity: str = "e_above_hull"
) -> None:
    """Check, before a run, that the reward can be computed.

    Raises:
        EnergyError: there is no hull and one is needed, it is on a scale that the model's energies
            cannot be brought to, or there is no such quantity.
    """
    if quantity not in QUANTITIES:
        names = " and ".join(repr(name) for name in QUANTITIES)
        raise EnergyError(f"no quantity {quantity!r}: there are {names}")
    if quantity == "energy":
        return
    if hull is None:
        raise EnergyError(
            "the energy reward needs a hull: give a file of entries of known compounds "
            "(chemeleon2_jax.energy.hull.read_hull), or ask for minus the energy itself with "
            'quantity="energy"'
        )
    if not _needs_correction(model, hull):
        hull.check_scale(model.corrected)
