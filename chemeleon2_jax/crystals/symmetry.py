"""Space groups of crystals, by moyo."""

from __future__ import annotations

import logging

import moyopy
import numpy as np
from pymatgen.core import Structure

from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.geometry import MIN_DISTANCE, as_arrays, measure
from chemeleon2_jax.crystals.reduction import reduce_lattice

# moyo logs notes on odd cells, such as an atom that was moved far. It reads the level of its logger
# once, so the level is set before its first use.
logging.getLogger("moyo").setLevel(logging.ERROR)


def find_space_group(structure: Structure | CrystalArrays, *, symprec: float) -> int:
    """Return the number, 1..230, of a crystal's space group.

    Args:
        structure: the crystal, in any cell.
        symprec: tolerance in angstrom. It is lowered to a / 10 and a^2 / 2c where those are less,
            of the shortest vector a and the longest vector c of the reduced cell.

    Raises:
        ValueError: it cannot be measured, has atoms closer than 0.5 angstrom (which often look
            highly symmetric), or the search fails.
    """
    geometry = measure(structure)
    if geometry.error is not None:
        raise ValueError(geometry.error)
    if geometry.min_distance <= MIN_DISTANCE:
        raise ValueError(f"too close: atoms {geometry.min_distance:.3g} angstrom apart")
    atom_types, frac_coords, lattice = as_arrays(structure)
    # With a tolerance that confuses c + 2a with c, moyo can search for ever, in a loop that no
    # signal interrupts.
    reduced = reduce_lattice(lattice)
    lengths = np.linalg.norm(reduced, axis=1)
    shortest, longest = float(lengths.min()), float(lengths.max())
    tolerance = min(symprec, shortest / 10.0, shortest**2 / (2.0 * longest))
    coordinates = frac_coords @ lattice @ np.linalg.inv(reduced)
    cell = moyopy.Cell(reduced.tolist(), coordinates.tolist(), atom_types.tolist())
    try:
        return moyopy.MoyoDataset(cell, symprec=tolerance).number
    except BaseException as error:  # a panic in Rust is no Exception: it would end a worker
        if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"no space group found: {error}") from error


def space_group_label(structure: Structure | CrystalArrays, *, symprec: float) -> str:
    """Return symbol and number of a crystal's space group, as in "Fm-3m (225)".

    Raises:
        ValueError: see :func:`find_space_group`.
    """
    number = find_space_group(structure, symprec=symprec)
    return f"{moyopy.SpaceGroupType(number).hm_short.replace(' ', '')} ({number})"
