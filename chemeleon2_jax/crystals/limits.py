"""Limits on crystals, whatever they come from, and on how many are generated.

They are checked before memory is taken: a lattice sum, a list of neighbours or an attention matrix
of what is beyond them would take minutes, or more memory than there is. Every error is one
sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chemeleon2_jax.crystals.arrays import lattice_parameters
from chemeleon2_jax.crystals.reduction import reduce_lattice

MAX_ATOMS = 5000
"""Atoms in a crystal: attention over its atoms takes memory with their square, a gigabyte here."""

MAX_SAMPLES = 1_000_000
"""Crystals generated in one call."""

MAX_TOTAL_ATOMS = 10_000_000
"""Their atoms: as pymatgen Structures they take a kilobyte each."""

MAX_EDGE = 1e3
"""Angstrom; longer cell vectors are errors of whatever made them."""

MIN_EDGE = 0.1
"""Angstrom; shortest vector of a lattice. No two atoms are that close, nor are images of one."""

MAX_ELONGATION = 150.0
"""Longest over shortest edge of the reduced cell. A sphere around the longest edge of a needle has
4 pi / 3 times its square lattice points, which matching and neighbour lists go through."""

MIN_FLATNESS = 1e-3
"""Smallest volume over the product of the lengths; below it the three angles leave no cell."""


def check_num_atoms(num_atoms: int) -> None:
    """Check the number of atoms of a crystal.

    Raises:
        ValueError: no atom, or more than `MAX_ATOMS`.
    """
    if num_atoms < 1:
        raise ValueError("no atom")
    if num_atoms > MAX_ATOMS:
        raise ValueError(
            f"{num_atoms} atoms in a crystal are too many: the limit is {MAX_ATOMS} atoms"
        )


def check_num_samples(num_samples: int) -> None:
    """Check a number of crystals to generate in one call.

    Raises:
        ValueError: less than one, or more than `MAX_SAMPLES`.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    if num_samples > MAX_SAMPLES:
        raise ValueError(
            f"{num_samples} crystals at once are too many: the limit is {MAX_SAMPLES}; generate "
            "them in parts, each with another seed"
        )


def check_sizes(num_atoms: Sequence[int] | np.ndarray) -> None:
    """Check the numbers of atoms (G,) of all crystals to generate in one call.

    Raises:
        ValueError: too many crystals, too many atoms in one of them or in all.
    """
    check_num_samples(len(num_atoms))
    for size in (min(num_atoms), max(num_atoms)):
        check_num_atoms(int(size))
    total = int(np.sum(num_atoms, dtype=np.int64))
    if total > MAX_TOTAL_ATOMS:
        raise ValueError(
            f"{len(num_atoms)} crystals of {total} atoms together are too many: the limit is "
            f"{MAX_TOTAL_ATOMS} atoms; generate them in parts, each with another seed"
        )


def check_cell(lattice: np.ndarray) -> None:
    """Check a cell.

    Args:
        lattice: (3, 3), rows are cell vectors in angstrom.

    Raises:
        ValueError: it is not finite, flat, too long, too thin or too elongated.
    """
    if not np.isfinite(lattice).all():
        raise ValueError("the lattice is not finite")
    matrix = np.asarray(lattice, np.float64)
    lengths = np.linalg.norm(matrix, axis=1)
    if not (lengths > 0).all():
        raise ValueError(f"a cell length is not positive: {_numbers(lengths)} angstrom")
    if (lengths > MAX_EDGE).any():
        raise ValueError(f"a cell length is beyond {MAX_EDGE:g} angstrom: {_numbers(lengths)}")
    # Scaled first: the volume of a tiny cell must not underflow.
    unit = matrix / lengths[:, None]
    crossed = np.cross(unit[[1, 2, 0]], unit[[2, 0, 1]])  # (3, 3), normal to each face
    flatness = abs(float(unit[0] @ crossed[0]))
    if flatness < MIN_FLATNESS:
        angles = np.degrees(lattice_parameters(matrix)[1])
        raise ValueError(f"impossible angles: {_numbers(angles)} degrees leave no volume")
    # No lattice vector is shorter than the thinnest side: most cells need no reduction.
    thickness = (flatness / np.linalg.norm(crossed, axis=1) * lengths).min()
    if thickness < MIN_EDGE or lengths.max() > MAX_ELONGATION * thickness:
        _check_reduced(matrix)


def _check_reduced(matrix: np.ndarray) -> None:
    lengths = np.linalg.norm(reduce_lattice(matrix), axis=1)  # ascending
    cell = " x ".join(f"{length:.3g}" for length in lengths)
    if lengths[0] < MIN_EDGE:
        raise ValueError(
            f"a cell of {cell} angstrom is too thin: the limit is an edge of {MIN_EDGE:g} angstrom"
        )
    if lengths[2] > MAX_ELONGATION * lengths[0]:
        raise ValueError(
            f"a cell of {cell} angstrom is too elongated: the limit is {MAX_ELONGATION:g} times "
            "its shortest edge"
        )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
