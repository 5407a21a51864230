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
from scipy.spatial import KDTree

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER, CrystalArrays
from chemeleon2_jax.crystals.reduction import reduce_lattice
from chemeleon2_jax.crystals.structures import arrays_from_structure

MIN_DISTANCE = 0.5
"""Angstrom; closer atoms make a crystal invalid."""

_DALTON = 1.66053906892  # 1e-24 g (CODATA 2022), so g/cm3 for one in a cubic angstrom


_IMAGES = np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))  # (27, 3)

_MAX_ALL_PAIRS = 60
"""Atoms up to which all pairs are measured; beyond, a search tree is faster."""

_DENSEST_PACKING = 2.0 ** (1.0 / 6.0)
"""Distance of spheres in the densest packing, over the cube root of the volume of each."""


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
    problem = find_problem(atom_types, frac_coords, lattice)
    if problem is not None:
        return Geometry(error=problem)
    volume_per_atom = abs(float(np.linalg.det(lattice))) / len(atom_types)
    reduced = reduce_lattice(lattice)
    radii = _covalent_radii()[atom_types]
    own_image = float(np.linalg.norm(reduced, axis=1).min())
    coordinates = frac_coords @ lattice @ np.linalg.inv(reduced)
    measure_pairs = _measure_all_pairs if len(atom_types) <= _MAX_ALL_PAIRS else _measure_nearest
    distance, ratio = measure_pairs(coordinates, reduced, radii)
    return Geometry(
        min(own_image, distance), min(own_image / float(2.0 * radii.max()), ratio), volume_per_atom
    )


def mass_density(atom_types: np.ndarray, volume_per_atom: float) -> float:
    """Return the mass density in g/cm3 of atoms (n,) with that volume each, in cubic angstrom."""
    mean_mass = float(_atomic_masses()[atom_types].mean())  # daltons
    return mean_mass * _DALTON / volume_per_atom


def find_problem(
    atom_types: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray
) -> str | None:
    """Return why arrays (n,), (n, 3), (3, 3) are no crystal, or None."""
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


def _measure_all_pairs(
    frac_coords: np.ndarray, reduced: np.ndarray, radii: np.ndarray
) -> tuple[float, float]:
    """Return the smallest distance of two atoms of a reduced cell in angstrom, and the smallest
    ratio to the sum of their radii (n,); images of one atom do not count.
    """
    first, second = np.triu_indices(len(radii), 1)
    if not len(first):
        return np.inf, np.inf
    distances = _closest_image(frac_coords[second] - frac_coords[first], reduced)
    ratios = distances / (radii[first] + radii[second])
    return float(distances.min()), float(ratios.min())


def _measure_nearest(
    frac_coords: np.ndarray, reduced: np.ndarray, radii: np.ndarray
) -> tuple[float, float]:
    """Return what `_measure_all_pairs` does, where it is smaller than for images of one atom.

    A search tree for each radius gives the neighbour with the smallest ratio among its atoms. Atoms
    of a periodic crystal are not all farther apart than spheres in the densest packing, which
    bounds the pair with the smallest distance, and the one with the smallest ratio.
    """
    frac_coords = frac_coords % 1.0
    packed = _DENSEST_PACKING * (abs(np.linalg.det(reduced)) / len(radii)) ** (1.0 / 3.0)
    own_image = np.linalg.norm(reduced, axis=1).min()
    reach = min(own_image, packed * radii.max() / radii.min()) * (1.0 + 1e-9)  # angstrom
    min_distance = min_ratio = np.inf
    positions = frac_coords @ reduced
    for radius in np.unique(radii):
        is_one, is_other = radii == radius, radii != radius
        tree = KDTree(_with_images(frac_coords[is_one], reduced, reach) @ reduced)
        # Of atoms in the tree the nearest is the atom itself.
        for atoms, neighbour in ((is_one, 2), (is_other, 1)):
            distances, _ = tree.query(positions[atoms], [neighbour], distance_upper_bound=reach)
            ratios = distances[:, 0] / (radii[atoms] + radius)
            min_distance = min(min_distance, float(distances.min(initial=np.inf)))
            min_ratio = min(min_ratio, float(ratios.min(initial=np.inf)))
    return min_distance, min_ratio


def _with_images(frac_coords: np.ndarray, lattice: np.ndarray, reach: float) -> np.ndarray:
    """Return points (n, 3) in [0, 1) and their images up to `reach` angstrom outside of the cell,
    in units of the lattice.
    """
    margins = reach * np.linalg.norm(np.linalg.inv(lattice), axis=0)  # over the cell's thickness
    points = frac_coords
    for axis, margin in enumerate(margins):
        last = int(np.ceil(margin))
        shifts = np.arange(-last, last + 1)[:, None, None] * np.eye(3)[axis]
        points = (points + shifts).reshape(-1, 3)
        inside = (points[:, axis] >= -margin) & (points[:, axis] <= 1.0 + margin)
        points = points[inside]
    return points


def _closest_image(differences: np.ndarray, reduced: np.ndarray) -> np.ndarray:
    """Return the distances (P,) in angstrom for differences (P, 3) in units of a reduced cell."""
    vectors = (differences - np.round(differences)) @ reduced
    images = _IMAGES @ reduced  # (27, 3)
    squares = (vectors**2).sum(1)[:, None] + (images**2).sum(1) + 2.0 * vectors @ images.T
    return np.sqrt(np.maximum(squares.min(1), 0.0))


@cache
def _atomic_masses() -> np.ndarray:
    """Atomic masses (100,) in daltons by atomic number; index 0 is not an element."""
    known = (float(Element.from_Z(z).atomic_mass) for z in range(1, MAX_ATOMIC_NUMBER + 1))
    return np.array([0.0, *known])


def covalent_radius(number: int) -> float:
    """Return Cordero's covalent radius of an element in angstrom, by atomic number 1..99."""
    return float(_covalent_radii()[number])


@cache
def _covalent_radii() -> np.ndarray:
    """Cordero's covalent radii (100,) in angstrom by atomic number; index 0 is not an element."""
    # The table ends at curium; heavier elements have no measured radius.
    radii = np.full(MAX_ATOMIC_NUMBER + 1, CovalentRadius.radius["Cm"])
    for symbol, radius in CovalentRadius.radius.items():
        radii[Element(symbol).Z] = radius
    return radii
