"""Crystals of POSCAR files, the format of VASP."""

from __future__ import annotations

import warnings

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.limits import MAX_ATOMS, check_num_atoms
from chemeleon2_jax.crystals.structures import arrays_from_structure, check_arrays

_NUM_HEADER_LINES = 40  # elements and their counts may take several lines


def read_poscar(text: str) -> CrystalArrays:
    """Return atom_types (n,), frac_coords (n, 3), lattice (3, 3) of a POSCAR, as they stand.

    Raises:
        ValueError: no POSCAR, one without elements, or one beyond the limits of crystals.
    """
    from pymatgen.io.vasp.inputs import Poscar  # it imports ASE where that is installed

    for line in text.splitlines()[:_NUM_HEADER_LINES]:
        _check_counts(line)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            poscar = Poscar.from_str(text, read_velocities=False)
    except Exception as error:  # pymatgen lets through whatever a malformed file trips
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"unparsable POSCAR: {detail}") from error
    if not poscar.true_names:
        raise ValueError("unparsable POSCAR: it does not name its elements")
    arrays = arrays_from_structure(poscar.structure)
    check_arrays(*arrays)
    return arrays


def _check_counts(line: str) -> None:
    """Check a line of whole numbers, which may be those of atoms: pymatgen makes a list of as many
    symbols.
    """
    try:
        counts = [int(word) for word in line.partition("!")[0].partition("#")[0].split()]
    except ValueError:
        return
    if counts and sum(map(abs, counts)) > MAX_ATOMS:
        check_num_atoms(sum(map(abs, counts)))
