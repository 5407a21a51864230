"""Results of an energy model for many crystals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from chemeleon2_jax.common.scores import Scores


@dataclass(frozen=True)
class Energies(Scores):
    """Energies in eV/atom.

    Attributes:
        corrected: scale: Materials Project's corrected energies (MP2020) if true, its uncorrected
            PBE(+U) if false.
    """

    corrected: bool


@dataclass(frozen=True)
class Relaxed:
    """Crystals after relaxation of positions and cell.

    Attributes:
        structures: (G,) relaxed structures with atoms in the order of the input; None for a crystal
            without energy.
        energies: (G,) of the relaxed structures in eV/atom, converged or not.
        converged: (G,) bool; forces fell below the limit within the steps.
        steps: (G,) int, steps taken; 0 for a crystal without energy.
    """

    structures: tuple[Structure | None, ...]
    energies: Energies
    converged: np.ndarray
    steps: np.ndarray

    def __repr__(self) -> str:
        values = self.energies.values
        known = int(np.isfinite(values).sum())
        lowest = f", lowest {np.nanmin(values):.4g} eV/atom" if known else ""
        return (
            f"Relaxed({len(values)} crystals, {known} with energy, {int(self.converged.sum())} "
            f"converged{lowest})"
        )
