"""Limits of crystals: the same whatever they come from, told before memory is taken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.crystals import limits
from chemeleon2_jax.crystals.geometry import measure
from chemeleon2_jax.crystals.structures import (
    structure_from_arrays,
    structures_to_crystals,
)
from chemeleon2_jax.metrics.report import evaluate
from chemeleon2_jax.metrics.uniqueness import find_unique

BAD_CELLS = {
    "is beyond 1000 angstrom: 1, 1, 5000": np.diag([1.0, 1.0, 5000.0]),
    "is beyond 1000 angstrom: 4, 4, 1e+05": np.diag([4.0, 4.0, 1e5]),
    "1 x 1 x 900 angstrom is too elongated: the limit is 150 times": np.diag([900.0, 1.0, 1.0]),
    "0.01 x 3 x 3 angstrom is too thin": np.diag([3.0, 3.0, 0.01]),
    "not finite": np.diag([3.0, np.nan, 3.0]),
}
GOOD_CELLS = [
    np.diag([3.0, 3.0, 400.0]),  # a polytype
    np.diag([2.5, 2.5, 100.0]),  # a layer in vacuum
    np.diag([900.0, 900.0, 900.0]),
    np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [900.0, 0.0, 3.0]]),  # skewed, but compact
]


@pytest.mark.parametrize(("reason", "lattice"), BAD_CELLS.items())
def test_every_way_in_refuses_a_bad_cell(reason, lattice):
    triple = np.array([6]), np.zeros((1, 3)), lattice
    structure = Structure(Lattice(lattice), ["C"], [[0, 0, 0]])
    for read in (
        lambda: structure_from_arrays(*triple),
        lambda: structures_to_crystals([structure]),
    ):
        with pytest.raises(ValueError, match=reason.replace("+", r"\+")):
            read()
    assert reason in evaluate([triple], metrics=["valid"], num_workers=0).table["reason"][0]
    assert reason in (find_unique([triple]).errors[0] or "")


@pytest.mark.parametrize("lattice", GOOD_CELLS)
def test_long_and_skewed_cells_of_real_crystals_are_accepted(lattice):
    limits.check_cell(lattice)
    assert measure(([6], [[0, 0, 0]], lattice)).error is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.5, 900.0), min_size=3, max_size=3),
    st.lists(st.integers(-3, 3), min_size=3, max_size=3),
)
def test_the_choice_of_the_cell_does_not_matter(edges, shears):
    lattice = np.diag(edges)
    sheared = np.array([[1, 0, 0], [shears[0], 1, 0], [shears[1], shears[2], 1]]) @ lattice
    if max(np.linalg.norm(sheared, axis=1)) > limits.MAX_EDGE:
        return  # limits the given vectors, not the reduced ones
    flatness = abs(np.linalg.det(sheared)) / np.prod(np.linalg.norm(sheared, axis=1))
    if flatness < limits.MIN_FLATNESS:
        return
    is_good = max(edges) <= limits.MAX_ELONGATION * min(edges)
    if abs(max(edges) / min(edges) - limits.MAX_ELONGATION) > 1e-6:
        assert _is_accepted(lattice) == _is_accepted(sheared) == is_good


def _is_accepted(lattice):
    try:
        limits.check_cell(lattice)
    except ValueError:
        return False
    return True


def test_too_many_atoms():
    num_atoms = limits.MAX_ATOMS + 1
    triple = np.full(num_atoms, 6), np.zeros((num_atoms, 3)), 100.0 * np.eye(3)
    with pytest.raises(ValueError, match="5001 atoms in a crystal are too many"):
        structure_from_arrays(*triple)
    (reason,) = evaluate([triple], metrics=["valid"], num_workers=0).table["reason"]
    assert reason == "5001 atoms in a crystal are too many: the limit is 5000 atoms"


def test_requests():
    limits.check_sizes([1, limits.MAX_ATOMS])
    limits.check_num_samples(limits.MAX_SAMPLES)
    for sizes, reason in (
        ([], "at least 1"),
        ([3, 0], "no atom"),
        ([3, 10**12], "1000000000000 atoms in a crystal"),
        (np.full(3000, 4000), "3000 crystals of 12000000 atoms together"),
    ):
        with pytest.raises(ValueError, match=reason):
            limits.check_sizes(sizes)
    with pytest.raises(ValueError, match="1000000000 crystals at once"):
        limits.check_num_samples(10**9)
