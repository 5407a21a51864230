"""The contract of energy models: what each one offers, and the limits that they share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any, Protocol

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.results import Energies, Relaxed

STEPS = 500
"""Most steps of a relaxation."""


FMAX = 0.05
"""eV/angstrom; a relaxation is done where no atom has a larger force (nor, scaled, the cell)."""


MPTRJ_ELEMENTS = frozenset(range(1, 95)) - frozenset(range(84, 89))
"""Atomic numbers in MPtrj, which CHGNet, MACE-MP and Nequix-MP were trained on (89 elements)."""


class EnergyModel(Protocol):
    """Energies and relaxation of crystals.

    Structures are pymatgen structures, (atom_types, frac_coords, lattice) triples or None (not
    built). A crystal that is not fit for the model, has an element that it does not know, diverges
    or takes too long costs itself only: it gets NaN and a reason.

    Attributes:
        name: what it is called in reports.
        corrected: whether its energies are on the scale of Materials Project's corrected energies
            (MP2020), or of its uncorrected PBE(+U).
        elements: atomic numbers that it knows; None where it does not say.
    """

    name: str
    corrected: bool
    elements: frozenset[int] | None

    def energies(self, structures: Iterable[Any]) -> Energies:
        """Return the energies of structures as they are, in eV/atom."""
        ...

    def relax(
        self, structures: Iterable[Any], *, steps: int = STEPS, fmax: float = FMAX
    ) -> Relaxed:
        """Relax positions and cells.

        Args:
            structures: what to start from.
            steps: most steps; 0 evaluates the energy alone.
            fmax: eV/angstrom, largest force of what counts as converged.
        """
        ...


def require(package: str, hint: str) -> None:
    """Check that a package is there, without importing it.

    Raises:
        EnergyError: it is not, with the hint.
    """
    if importlib.util.find_spec(package) is None:
        raise EnergyError(f"the package {package} is not installed; {hint}")
