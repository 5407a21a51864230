"""Crystals that potentials see, and those that they must not see."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.energy import guard
from chemeleon2_jax.energy.guard import find_problem, prepare
from tests.energy.cells import fcc, rocksalt, shaken


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (None, "not built"),
        (
            (np.array([11, 17]), np.zeros((2, 3)), np.eye(3) * 5),
            "implausible: atoms 0 angstrom apart",
        ),
        (fcc(length=0.6), "implausible: atoms 0.424 angstrom apart"),
        (fcc("H", length=1.2), "implausible: 0.432 cubic angstrom an atom"),
        (fcc(length=60.0), "implausible: 5.4e+04 cubic angstrom an atom"),
        (fcc("Po"), "unknown element: Po"),
        (rocksalt("Ra", "Fr"), "unknown element: Fr, Ra"),
        ((np.array([11]), np.full((1, 3), np.nan), np.eye(3) * 5), "coordinates are not finite"),
        ((np.array([11]), np.zeros((1, 3)), np.diag([5, 5, 0])), "cell has no volume"),
        (
            Structure(Lattice.cubic(3), [{"Fe": 0.5}], [[0, 0, 0]]),
            "not a crystal: partial occupancy",
        ),
    ],
)
def test_reasons(structure, reason):
    known = frozenset(range(1, 84))
    assert find_problem(structure, known).startswith(reason)
    prepared, reasons = prepare([fcc(), structure], known)
    assert prepared[0] is not None
    assert (prepared[1], reasons[0]) == (None, None)


def test_a_large_cell_is_refused(monkeypatch):
    monkeypatch.setattr(guard, "MAX_NUM_ATOMS", 7)
    assert find_problem(rocksalt()) == "too large: 8 atoms, more than 7"
    assert find_problem(fcc()) is None


@pytest.mark.parametrize("transform", [np.eye(3), [[1, 0, 0], [7, 1, 0], [-3, 5, 1]], -np.eye(3)])
def test_the_cell_of_the_input_comes_back(transform):
    """Potentials see a skewed or left-handed cell reduced; the result is in the original cell."""
    plain = shaken(rocksalt())
    lattice = np.array(transform) @ plain.lattice.matrix
    frac_coords = np.linalg.solve(np.array(transform).T, plain.frac_coords.T).T
    (crystal,), _ = prepare([(np.array(plain.atomic_numbers), frac_coords, lattice)])
    assert np.linalg.det(crystal.lattice) > 0
    shortest = np.linalg.norm(crystal.lattice, axis=1)
    np.testing.assert_allclose(shortest, 5.6)
    back = crystal.to_structure(crystal.positions, crystal.lattice)
    np.testing.assert_allclose(back.lattice.matrix, lattice, atol=1e-9)
    off = back.frac_coords - frac_coords
    np.testing.assert_allclose(off, np.round(off), atol=1e-9)


def test_a_deformation_goes_with_the_cell():
    skew = np.array([[1, 0, 0], [4, 1, 0], [0, 0, 1]])
    plain = rocksalt()
    lattice = skew @ plain.lattice.matrix
    skewed = (np.array(plain.atomic_numbers), plain.frac_coords @ np.linalg.inv(skew), lattice)
    (crystal,), _ = prepare([skewed])
    grown = crystal.to_structure(crystal.positions * 1.1, crystal.lattice * 1.1)
    np.testing.assert_allclose(grown.lattice.matrix, lattice * 1.1)
    assert grown.get_space_group_info()[0] == "Fm-3m"
