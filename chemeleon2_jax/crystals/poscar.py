"""Crystals of POSCAR files, the format of VASP."""

from __future__ import annotations

import warnings

import numpy as np
from pymatgen.io.vasp.inputs import Poscar

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.limits import check_cell, check_num_atoms

_COUNT_LINES = slice(5, 8)  # the line of counts is the sixth, or follows those of elements


def read_poscar(text: str) -> CrystalArrays:
    """Return atom_types (n,), frac_coords (n, 3), lattice (3, 3) of a POSCAR, as they stand.

    Raises:
        ValueError: no POSCAR, one without elements, or one beyond the limits of crystals.
    """
    for line in text.splitlines()[_COUNT_LINES]:
        words = line.partition("!")[0].partition("#")[0].split()
        if words and all(word.isdecimal() and len(word) < 10 for word in words):
            check_num_atoms(sum(map(int, words)))  # pymatgen makes a list of so many symbols
            break
    else:
        raise ValueError("unparsable POSCAR: no line of numbers of atoms")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            poscar = Poscar.from_str(text, read_velocities=False)
    except Exception as error:  # pymatgen lets through whatever a malformed file trips
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"unparsable POSCAR: {detail}") from error
    if not poscar.true_names:
        raise ValueError("unparsable POSCAR: it does not name its elements")
    structure = poscar.structure
    check_num_atoms(len(structure))
    lattice = np.array(structure.lattice.matrix)
    check_cell(lattice)
    return np.array(structure.atomic_numbers), np.array(structure.frac_coords), lattice
