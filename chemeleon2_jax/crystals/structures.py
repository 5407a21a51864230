"""Conversion between pymatgen's Structures and arrays, and CIFs to Structures.

Imports numpy, gemmi and pymatgen alone, so that worker processes start fast.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
from pymatgen.core import DummySpecies, Element, Lattice, Structure

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER, CrystalArrays, Crystals, wrap
from chemeleon2_jax.crystals.cif.reader import first_crystal
from chemeleon2_jax.crystals.cif.sites import FULL_OCCUPANCY
from chemeleon2_jax.crystals.limits import check_cell, check_num_atoms

_ELEMENTS = [Element.from_Z(z) for z in range(1, MAX_ATOMIC_NUMBER + 1)]


def structure_from_arrays(
    atom_types: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray
) -> Structure:
    """Build a Structure, its fractional coordinates wrapped to [0, 1).

    Args:
        atom_types: (n,) atomic numbers, 1..99.
        frac_coords: (n, 3).
        lattice: (3, 3), rows are cell vectors in angstrom.

    Raises:
        ValueError: no crystal can be built: numbers that are not finite, an atomic number out of
            range, or a number of atoms or a cell beyond the limits (`crystals.limits`).
    """
    check_arrays(atom_types, frac_coords, lattice)
    frac, matrix = np.asarray(frac_coords, np.float64), np.asarray(lattice, np.float64)
    return _build(np.asarray(atom_types), wrap(frac), matrix)


def check_arrays(atom_types: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray) -> None:
    """Check that a crystal can be built of arrays, see `structure_from_arrays`.

    Raises:
        ValueError: it cannot; its text is the reason.
    """
    types = np.asarray(atom_types)
    frac = np.asarray(frac_coords, np.float64)
    matrix = np.asarray(lattice, np.float64)
    if types.ndim != 1 or frac.shape != (len(types), 3) or matrix.shape != (3, 3):
        raise ValueError(
            f"shapes {types.shape}, {frac.shape}, {matrix.shape} are not (n,), (n, 3), (3, 3)"
        )
    check_num_atoms(len(types))
    outside = np.flatnonzero(~((types >= 1) & (types <= MAX_ATOMIC_NUMBER)))
    if len(outside):
        raise ValueError(
            f"atom {outside[0]} has atomic number {types[outside[0]]}, not 1..{MAX_ATOMIC_NUMBER}"
        )
    if not np.isfinite(frac).all():
        raise ValueError("fractional coordinates are not finite")
    check_cell(matrix)


def arrays_from_structure(structure: Structure) -> CrystalArrays:
    """Return atomic numbers (n,) int8, fractional coordinates (n, 3), lattice (3, 3), unchanged.

    Raises:
        ValueError: partial occupancy, a species that is no element up to Z = 99, or a number of
            atoms beyond the limit (`crystals.limits`).
    """
    check_num_atoms(len(structure))
    types = np.empty(len(structure), np.int8)
    for index, site in enumerate(structure):
        species, occupancy = next(iter(site.species.items()))
        if len(site.species) > 1 or abs(occupancy - 1.0) > FULL_OCCUPANCY:
            raise ValueError(f"partial occupancy: {site.species_string} at site {index}")
        if isinstance(species, DummySpecies):
            raise ValueError(f"not an element: {species} at site {index}")
        if species.Z > MAX_ATOMIC_NUMBER:
            raise ValueError(f"element above Z = {MAX_ATOMIC_NUMBER}: {species} (Z = {species.Z})")
        types[index] = species.Z
    return types, structure.frac_coords, structure.lattice.matrix


def reduce_structure(structure: Structure) -> Structure:
    """Return the Niggli-reduced cell in standard orientation (c along z, a in the xz plane).

    The lattice is rebuilt from its six parameters; fractional coordinates are those of the
    reduction.

    Raises:
        ValueError: pymatgen cannot reduce the cell.
    """
    reduced = structure.get_reduced_structure()
    reduced.lattice = Lattice.from_parameters(*reduced.lattice.parameters)
    return reduced


def _reduce(structure: Structure) -> Structure:
    try:
        return reduce_structure(structure)
    except (ArithmeticError, np.linalg.LinAlgError) as error:
        raise ValueError(f"irreducible cell: {error}") from error


def structure_from_cif(text: str | bytes) -> Structure:
    """Return the first structure of a CIF, in the cell of the file.

    Warns of what the file declares that disagrees with the structure: its formula, number of
    formula units, multiplicities of sites.

    Raises:
        ValueError: the CIF gives no crystal; "kind: detail".
    """
    crystal = first_crystal(text)
    for doubt in crystal.doubts:
        warnings.warn(f"{crystal.block}: {doubt}", stacklevel=2)
    types, frac, lattice = crystal.found
    return _build(types, frac, lattice)


def _build(types: np.ndarray, frac: np.ndarray, matrix: np.ndarray) -> Structure:
    return Structure(Lattice(matrix), [_ELEMENTS[int(z) - 1] for z in types], frac)


def structures_to_crystals(
    structures: Iterable[Structure], *, standardize: bool = False
) -> Crystals:
    """Return Structures as flat arrays.

    Args:
        structures: ordered.
        standardize: whether to take their cells as `reduce_structure` returns them; else they are
            as they are.

    Raises:
        ValueError: a structure is disordered, has a species that is no element up to Z = 99,
            numbers that are not finite, or is beyond the limits; names its position.
    """
    arrays = []
    for index, structure in enumerate(structures):
        try:
            types, frac, lattice = arrays_from_structure(structure)
            # Numbers that are not finite would reach other crystals of a batch.
            if not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
                raise ValueError("a coordinate or the cell is not finite")
            check_cell(lattice)
            if standardize:
                types, frac, lattice = arrays_from_structure(_reduce(structure))
            arrays.append((types, frac, lattice))
        except ValueError as error:
            raise ValueError(f"structure {index}: {error}") from error
    return Crystals.from_list(arrays)


def crystals_to_structures(crystals: Crystals) -> list[Structure]:
    """Return every crystal as a Structure, fractional coordinates wrapped to [0, 1).

    Raises:
        ValueError: a crystal cannot be built; names the first.
    """
    structures = []
    for index in range(len(crystals)):
        try:
            structures.append(structure_from_arrays(*crystals.crystal(index)))
        except ValueError as error:
            raise ValueError(f"crystal {index}: {error}") from error
    return structures
