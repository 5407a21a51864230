"""Distances, volumes and densities of crystals, and random coordinates as a baseline.

Distances are periodic and exact, also for thin and skewed cells: the cell is Minkowski-reduced
first, and then the closest image of a wrapped difference is among the 27 neighbouring cells
(Nguyen and Stehlé, ACM Trans. Algorithms 5, 46, 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER, CrystalArrays
from chemeleon2_jax.crystals.structures import arrays_from_structure

MIN_DISTANCE = 0.5
"""Angstrom; closer atoms make a crystal invalid."""

_DALTON = 1.66053906892  # 1e-24 g (CODATA 2022), so g/cm3 for one in a cubic angstrom


_IMAGES = np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))  # (27, 3)


_PAIRS_AT_ONCE = 50_000  # bounds the memory of large cells to 11 MB


@dataclass(frozen=True)
class Geometry:
    """Measured geometry of one crystal, for the validity checks.

    Attributes:
        min_distance: angstrom, between any two atoms, an atom and its own images included.
        min_covalent_ratio: smallest ratio of a distance to the sum of the two covalent radii.
        volume_per_atom: cubic angstrom.
        error: reason why nothing could be measured, with zeros for numbers; else None.
    """

    min_distance: float = 0.0
    min_covalent_ratio: float = 0.0
    volume_per_atom: float = 0.0
    error: str | None = None


def randomise_coordinates(structures: Sequence[Any], seed: int = 0) -> list[CrystalArrays | None]:
    """Return the same cells and species with uniformly drawn fractional coordinates.

    Each crystal depends on the seed and its index alone. None stays None.
    """
    randomised: list[CrystalArrays | None] = []
    for index, structure in enumerate(structures):
        if structure is None:
            randomised.append(None)
            continue
        atom_types, frac_coords, lattice = as_arrays(structure)
        rng = np.random.default_rng([seed, index])
        randomised.append((atom_types, rng.random(frac_coords.shape), lattice))
    return randomised


def as_arrays(structure: Structure | CrystalArrays) -> CrystalArrays:
    """Return (atom_types (n,), frac_coords (n, 3), lattice (3, 3)) of a structure or such a triple.

    Raises:
        ValueError: a structure with a site that is not one element.
    """
    if isinstance(structure, Structure):
        structure = arrays_from_structure(structure)
    types, frac_coords, lattice = structure
    return (
        np.asarray(types, np.int64).reshape(-1),
        np.asarray(frac_coords, np.float64).reshape(-1, 3),
        np.asarray(lattice, np.float64).reshape(3, 3),
    )


def measure(structure: Any) -> Geometry:
    """Measure a crystal: a structure, a triple, or None. Failures are in `error`, never raised."""
    if structure is None:
        return Geometry(error="not built")
    try:
        atom_types, frac_coords, lattice = as_arrays(structure)
    except (TypeError, ValueError) as error:
        return Geometry(error=f"not a crystal: {error}")
    problem = _find_problem(atom_types, frac_coords, lattice)
    if problem is not None:
        return Geometry(error=problem)
    volume_per_atom = abs(float(np.linalg.det(lattice))) / len(atom_types)
    reduced = reduce_lattice(lattice)
    radii = _covalent_radii()[atom_types]
    own_image = float(np.linalg.norm(reduced, axis=1).min())
    min_distance, min_ratio = own_image, own_image / float(2.0 * radii.max())
    coordinates = frac_coords @ lattice @ np.linalg.inv(reduced)
    first, second = np.triu_indices(len(atom_types), 1)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        i, j = first[start : start + _PAIRS_AT_ONCE], second[start : start + _PAIRS_AT_ONCE]
        distances = _closest_image(coordinates[j] - coordinates[i], reduced)
        min_distance = min(min_distance, float(distances.min()))
        min_ratio = min(min_ratio, float((distances / (radii[i] + radii[j])).min()))
    return Geometry(min_distance, min_ratio, volume_per_atom)


def mass_density(atom_types: np.ndarray, volume_per_atom: float) -> float:
    """Return the mass density in g/cm3 of atoms (n,) with that volume each, in cubic angstrom."""
    mean_mass = float(_atomic_masses()[atom_types].mean())  # daltons
    return mean_mass * _DALTON / volume_per_atom


def _find_problem(
    atom_types: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray
) -> str | None:
    if len(atom_types) == 0:
        return "no atoms"
    if len(atom_types) != len(frac_coords):
        return f"{len(atom_types)} atom types for {len(frac_coords)} positions"
    if not np.isfinite(lattice).all():
        return "lattice is not finite"
    if not np.isfinite(frac_coords).all():
        return "coordinates are not finite"
    if not ((atom_types > 0) & (atom_types <= MAX_ATOMIC_NUMBER)).all():
        return f"atomic numbers from {atom_types.min()} to {atom_types.max()}"
    lengths = np.linalg.norm(lattice, axis=1)
    # Below this the reduction and the inverse are rounding errors.
    if abs(np.linalg.det(lattice)) <= 1e-9 * np.prod(lengths):
        return "cell has no volume"
    return None


def _closest_image(differences: np.ndarray, reduced: np.ndarray) -> np.ndarray:
    """Return the distances (P,) in angstrom for differences (P, 3) in units of a reduced cell."""
    vectors = (differences - np.round(differences)) @ reduced
    images = _IMAGES @ reduced  # (27, 3)
    squares = (vectors**2).sum(1)[:, None] + (images**2).sum(1) + 2.0 * vectors @ images.T
    return np.sqrt(np.maximum(squares.min(1), 0.0))


def reduce_lattice(lattice: np.ndarray) -> np.ndarray:
    """Return a Minkowski-reduced basis (3, 3) of a lattice, shortest vector first.

    Nguyen and Stehlé's greedy algorithm in three dimensions.
    """
    basis = np.array(lattice, np.float64)
    while True:
        basis = basis[np.argsort((basis**2).sum(1), kind="stable")]
        a, b = _reduce_pair(basis[0], basis[1])
        c = _subtract_closest(basis[2], a, b)
        basis = np.stack([a, b, c])
        # The margin keeps rounding errors from swapping equal lengths forever.
        if c @ c >= b @ b * (1.0 - 1e-10):
            return basis


def _reduce_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss reduction: the two shortest vectors of a plane's lattice."""
    while True:
        b = b - np.round((a @ b) / (a @ a)) * a
        if b @ b >= a @ a * (1.0 - 1e-10):
            return a, b
        a, b = b, a


def _subtract_closest(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Subtract from c the vector of the lattice of (a, b), Gauss-reduced, that is closest to it."""
    plane = np.stack([a, b])
    around = np.round(np.linalg.solve(plane @ plane.T, plane @ c)) + _IMAGES[::3, :2]
    candidates = c - around @ plane  # (9, 3)
    return candidates[np.argmin((candidates**2).sum(1))]


@cache
def _atomic_masses() -> np.ndarray:
    """Atomic masses (100,) in daltons by atomic number; index 0 is not an element."""
    known = (float(Element.from_Z(z).atomic_mass) for z in range(1, MAX_ATOMIC_NUMBER + 1))
    return np.array([0.0, *known])


@cache
def _covalent_radii() -> np.ndarray:
    """Cordero's covalent radii (100,) in angstrom by atomic number; index 0 is not an element."""
    # The table ends at curium; heavier elements have no measured radius.
    radii = np.full(MAX_ATOMIC_NUMBER + 1, CovalentRadius.radius["Cm"])
    for symbol, radius in CovalentRadius.radius.items():
        radii[Element(symbol).Z] = radius
    return radii
