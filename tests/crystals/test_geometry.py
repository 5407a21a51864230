"""Distances against brute force, reduced lattices, and random coordinates."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals import geometry
from chemeleon2_jax.crystals.geometry import (
    as_arrays,
    measure,
    randomise_coordinates,
)
from chemeleon2_jax.crystals.reduction import reduce_lattice

ROCK_SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
MAX_ALL_PAIRS = geometry._MAX_ALL_PAIRS
SKEWED = np.array([[4.0, 0.0, 0.0], [11.5, 3.0, 0.0], [-7.0, 8.2, 3.5]])


def brute_force(frac_coords, lattice, reach=12):
    """Smallest distance over all images within `reach` cells."""
    images = np.array(list(product(range(-reach, reach + 1), repeat=3)))
    best = np.linalg.norm(images[images.any(1)] @ lattice, axis=1).min()
    for i, a in enumerate(frac_coords):
        for b in frac_coords[:i]:
            best = min(best, np.linalg.norm((a - b + images) @ lattice, axis=1).min())
    return best


def test_known_crystal():
    measured = measure(ROCK_SALT)
    assert measured.error is None
    assert measured.min_distance == pytest.approx(2.82)
    assert measured.min_covalent_ratio == pytest.approx(2.82 / (1.66 + 1.02))
    assert measured.volume_per_atom == pytest.approx(5.64**3 / 8)


def test_one_atom_sees_its_own_images():
    measured = measure(([26], [[0.3, 0.3, 0.3]], np.diag([2.0, 3.0, 4.0])))
    assert measured.min_distance == pytest.approx(2.0)
    assert measured.min_covalent_ratio == pytest.approx(2.0 / (2 * 1.42))


@pytest.mark.parametrize(
    "lattice", [SKEWED, np.diag([0.7, 6.0, 9.0]), [[5, 0, 0], [4.9, 0.8, 0], [9.7, 0.9, 1.2]]]
)
@pytest.mark.parametrize("num_atoms", [1, 2, 6])
def test_thin_and_skewed_cells_miss_no_image(lattice, num_atoms):
    lattice = np.asarray(lattice, float)
    frac_coords = np.random.default_rng(num_atoms).random((num_atoms, 3)) * 3 - 1
    measured = measure((np.full(num_atoms, 8), frac_coords, lattice))
    assert measured.min_distance == pytest.approx(brute_force(frac_coords, lattice), abs=1e-6)
    assert measured.min_covalent_ratio == pytest.approx(measured.min_distance / (2 * 0.66))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.3, 20.0), min_size=3, max_size=3),
    st.lists(st.integers(-6, 6), min_size=3, max_size=3),
    st.integers(0, 10_000),
)
def test_reduced_lattice_is_the_same_lattice(lengths, shears, seed):
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    shear = np.array([[1, 0, 0], [shears[0], 1, 0], [shears[1], shears[2], 1]], float)
    lattice = shear @ np.diag(lengths) @ rotation
    reduced = reduce_lattice(lattice)
    change = reduced @ np.linalg.inv(lattice)
    np.testing.assert_allclose(change, np.round(change), atol=1e-6)
    assert abs(np.linalg.det(change)) == pytest.approx(1.0)
    # The cell was rectangular before the shear, so the reduction has to find its edges again.
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), sorted(lengths), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(1.0, 20.0), min_size=3, max_size=3),
    st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3),
    st.integers(1, 40),
    st.sampled_from([0.02, 1.0]),
    st.integers(0, 10_000),
)
def test_the_search_tree_finds_what_all_pairs_give(lengths, shears, num_atoms, spread, seed):
    rng = np.random.default_rng(seed)
    shear = np.array([[1, 0, 0], [shears[0], 1, 0], [shears[1], shears[2], 1]], float)
    crystal = (
        rng.choice([1, 8, 55], num_atoms),
        spread * rng.random((num_atoms, 3)),
        shear @ np.diag(lengths),
    )
    try:
        pairs, nearest = (_measured(crystal, max_all_pairs) for max_all_pairs in (1000, 0))
    finally:
        geometry._MAX_ALL_PAIRS = MAX_ALL_PAIRS
    assert nearest.min_distance == pytest.approx(pairs.min_distance, abs=1e-6)
    assert nearest.min_covalent_ratio == pytest.approx(pairs.min_covalent_ratio, abs=1e-6)
    assert nearest.error is pairs.error is None


def _measured(crystal, max_all_pairs):
    geometry._MAX_ALL_PAIRS = max_all_pairs
    return measure(crystal)


def test_thousands_of_atoms():
    edge = 16
    sites = np.array(list(product(range(edge), repeat=3))) / edge  # rock salt, 4096 atoms
    types = np.where(np.rint(sites.sum(1) * edge) % 2, 17, 11)
    crystal = measure((types, sites, 2.82 * edge * np.eye(3)))
    assert crystal.min_distance == pytest.approx(2.82)
    assert crystal.min_covalent_ratio == pytest.approx(2.82 / (1.66 + 1.02))
    at_one_place = measure((types, np.zeros_like(sites), 2.82 * edge * np.eye(3)))
    assert at_one_place.min_distance == 0.0


def test_coincident_atoms():
    assert measure(([6, 6], [[0.1, 0, 0], [1.1, 0, -1]], np.eye(3) * 4)).min_distance == 0.0


def test_random_coordinates():
    crystals = [ROCK_SALT, None, as_arrays(ROCK_SALT)]
    first, nothing, third = randomise_coordinates(crystals, 0)
    assert nothing is None
    np.testing.assert_array_equal(first[0], ROCK_SALT.atomic_numbers)
    np.testing.assert_array_equal(first[2], ROCK_SALT.lattice.matrix)
    assert ((first[1] >= 0) & (first[1] < 1)).all()
    assert not np.array_equal(first[1], third[1])
    np.testing.assert_array_equal(randomise_coordinates(crystals, 0)[2][1], third[1])
    np.testing.assert_array_equal(randomise_coordinates([None, None, ROCK_SALT])[2][1], third[1])
    assert not np.array_equal(randomise_coordinates(crystals, 1)[0][1], first[1])
