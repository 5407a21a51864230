"""Crystals for the tests of energies."""

import numpy as np
from pymatgen.core import Lattice, Structure

FCC_ARGON = 5.3
"""Angstrom, near the minimum of the calculator in `calculators`."""


def fcc(element="Ar", length=FCC_ARGON):
    """The primitive cell."""
    lattice = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * length / 2
    return Structure(lattice, [element], [[0, 0, 0]])


def rocksalt(first="Na", second="Cl", length=5.6):
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(length), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def shaken(structure, seed=0, size=0.1):
    """The structure with its atoms moved by about `size` angstrom each way."""
    rng = np.random.default_rng(seed)
    moved = structure.copy()
    for index in range(len(moved)):
        moved.translate_sites([index], rng.normal(size=3) * size, frac_coords=False)
    return moved
