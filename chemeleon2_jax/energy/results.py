"""What an energy model says of many crystals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from chemeleon2_jax.common.scores import Scores


@dataclass(frozen=True)
class Energies(Scores):
    """Energies in eV/atom.

    Attributes:
        corrected: on the scale of Materials Project's corrected energies (MP2020), or on that of
            its uncorrected PBE(+U).
    """

    corrected: bool


@dataclass(frozen=True)
class Relaxed:
    """Crystals after relaxation of positions and cell.

    Attributes:
        structures: for each crystal, the relaxed structure with atoms in the order given, or None
            where there is no energy.
        energies: of the relaxed structures, in eV/atom; also of those that did not converge.
        converged: (G,) bool; forces fell below the limit within the steps.
        steps: (G,) int, steps taken; 0 where there is no energy.
    """

    structures: tuple[Structure | None, ...]
    energies: Energies
    converged: np.ndarray
    steps: np.ndarray
