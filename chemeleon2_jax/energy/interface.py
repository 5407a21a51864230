"""The contract of energy models, and the limits that they share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any, Protocol

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy.results import Energies, Relaxed

STEPS = 500
"""Maximum number of steps of a relaxation."""

FMAX = 0.05
"""Largest force of a converged relaxation in eV/angstrom, on atoms and (scaled) on the cell."""


class EnergyModel(Protocol):
    """Energies and relaxation of crystals.

    Structures are pymatgen structures, (atom_types, frac_coords, lattice) triples or None (not
    built). A crystal outside the model's valid range, with an unknown element, that diverges or
    takes too long gets NaN and a reason, and costs no other crystal anything.

    Attributes:
        name: of the model, for reports.
        corrected: scale of its energies: Materials Project's corrected energies (MP2020) if true,
            its uncorrected PBE(+U) if false.
        elements: atomic numbers that it knows; None if unknown.
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
            structures: starting points.
            steps: maximum number of steps; 0 evaluates the energy alone.
            fmax: largest force of a converged crystal, eV/angstrom.
        """
        ...


def require(package: str, hint: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        EnergyError: it is not installed; ends with the hint.
    """
    if importlib.util.find_spec(package) is None:
        raise EnergyError(f"the package {package} is not installed; {hint}")
