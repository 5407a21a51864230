"""Which crystals a potential sees, and in which cell.

Neighbour lists of collapsed, exploded or very skewed cells can take all memory, so that one broken
crystal would cost all others. Such crystals get a reason instead. Potentials see the others in
their Minkowski-reduced cell, which has the shortest neighbour lists; energies do not depend on the
choice of cell, and relaxed crystals come back in the cell of the input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymatgen.core import Element, Structure

from chemeleon2_jax.crystals.arrays import wrap
from chemeleon2_jax.crystals.geometry import MIN_DISTANCE, as_arrays, measure
from chemeleon2_jax.crystals.reduction import reduce_lattice
from chemeleon2_jax.crystals.structures import structure_from_arrays

MIN_VOLUME_PER_ATOM = 1.0
"""Cubic angstrom; diamond has 5.7, and solid hydrogen at 500 GPa about 1.3."""

MAX_VOLUME_PER_ATOM = 1000.0
"""Cubic angstrom; solid helium has 35, and the emptiest crystals some 200."""

MAX_NUM_ATOMS = 2000
"""Largest number of atoms in a cell."""


@dataclass(frozen=True)
class Prepared:
    """A crystal in the cell that a potential sees.

    Attributes:
        atom_types: (n,) atomic numbers.
        positions: (n, 3) angstrom.
        lattice: (3, 3) angstrom, right-handed and Minkowski-reduced.
        transform: (3, 3) integers; lattice = transform @ lattice of the input.
    """

    atom_types: np.ndarray
    positions: np.ndarray
    lattice: np.ndarray
    transform: np.ndarray

    def to_structure(self, positions: np.ndarray, lattice: np.ndarray) -> Structure:
        """Return a structure in the cell of the input, from one in the cell of the potential.

        Args:
            positions: (n, 3) angstrom.
            lattice: (3, 3) angstrom.

        Raises:
            ValueError: it is no crystal.
        """
        input_lattice = np.linalg.solve(self.transform, lattice)
        frac_coords = np.linalg.solve(input_lattice.T, positions.T).T
        return structure_from_arrays(self.atom_types, frac_coords, input_lattice)


def prepare(
    structures: Iterable[Any], elements: Collection[int] | None = None
) -> tuple[list[Prepared | None], list[str | None]]:
    """Return crystals as a potential sees them, and the reasons of those that it must not see.

    Args:
        structures: (G,) structures, (atom_types, frac_coords, lattice) triples, or None (not
            built).
        elements: atomic numbers that the potential knows; None for all.

    Returns:
        prepared (G,), None for a crystal with a reason; reasons (G,), None for the others.
    """
    prepared: list[Prepared | None] = []
    reasons: list[str | None] = []
    for structure in structures:
        reason = find_problem(structure, elements)
        reasons.append(reason)
        prepared.append(None if reason else _prepare(structure))
    return prepared, reasons


def find_problem(structure: Any, elements: Collection[int] | None = None) -> str | None:
    """Return why a potential must not see a crystal, or None."""
    geometry = measure(structure)
    if geometry.error is not None:
        return geometry.error
    atom_types = as_arrays(structure)[0]
    unknown = sorted({z for z in atom_types.tolist() if elements is not None and z not in elements})
    if unknown:
        return f"unknown element: {', '.join(Element.from_Z(z).symbol for z in unknown)}"
    if len(atom_types) > MAX_NUM_ATOMS:
        return f"too large: {len(atom_types)} atoms, more than {MAX_NUM_ATOMS}"
    if geometry.min_distance < MIN_DISTANCE:
        return f"implausible: atoms {geometry.min_distance:.3g} angstrom apart"
    return volume_problem(geometry.volume_per_atom)


def volume_problem(volume_per_atom: float) -> str | None:
    """Return why a volume in cubic angstrom per atom is implausible, or None."""
    if MIN_VOLUME_PER_ATOM <= volume_per_atom <= MAX_VOLUME_PER_ATOM:
        return None
    return f"implausible: {volume_per_atom:.3g} cubic angstrom an atom"


def _prepare(structure: Any) -> Prepared:
    atom_types, frac_coords, lattice = as_arrays(structure)
    reduced = reduce_lattice(lattice)
    if np.linalg.det(reduced) < 0:
        reduced = -reduced
    transform = np.round(np.linalg.solve(lattice.T, reduced.T).T)
    frac_coords = wrap(np.linalg.solve(transform.T, frac_coords.T).T)
    reduced = transform @ lattice  # without the rounding errors of the reduction
    return Prepared(atom_types, frac_coords @ reduced, reduced, transform)
