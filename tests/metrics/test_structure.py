"""Distances against brute force, the two checks, and the null of random coordinates."""

import csv
import gzip
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals.geometry import (
    Geometry,
    as_arrays,
    measure,
    randomise_coordinates,
    reduce_lattice,
)
from chemeleon2_jax.crystals.structures import structure_from_cif
from chemeleon2_jax.metrics.structure import covalent_check, validity_check

ROCK_SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
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
    geometry = measure(ROCK_SALT)
    assert geometry.error is None
    assert geometry.min_distance == pytest.approx(2.82)
    assert geometry.min_covalent_ratio == pytest.approx(2.82 / (1.66 + 1.02))
    assert geometry.volume_per_atom == pytest.approx(5.64**3 / 8)


def test_one_atom_sees_its_own_images():
    geometry = measure(([26], [[0.3, 0.3, 0.3]], np.diag([2.0, 3.0, 4.0])))
    assert geometry.min_distance == pytest.approx(2.0)
    assert geometry.min_covalent_ratio == pytest.approx(2.0 / (2 * 1.42))


@pytest.mark.parametrize(
    "lattice", [SKEWED, np.diag([0.7, 6.0, 9.0]), [[5, 0, 0], [4.9, 0.8, 0], [9.7, 0.9, 1.2]]]
)
@pytest.mark.parametrize("num_atoms", [1, 2, 6])
def test_thin_and_skewed_cells_miss_no_image(lattice, num_atoms):
    lattice = np.asarray(lattice, float)
    frac_coords = np.random.default_rng(num_atoms).random((num_atoms, 3)) * 3 - 1
    geometry = measure((np.full(num_atoms, 8), frac_coords, lattice))
    assert geometry.min_distance == pytest.approx(brute_force(frac_coords, lattice), abs=1e-6)
    assert geometry.min_covalent_ratio == pytest.approx(geometry.min_distance / (2 * 0.66))


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


def test_many_atoms_are_measured_in_parts(monkeypatch):
    crystal = (np.full(40, 6), np.random.default_rng(0).random((40, 3)), SKEWED * 3)
    whole = measure(crystal)
    monkeypatch.setattr("chemeleon2_jax.crystals.geometry._PAIRS_AT_ONCE", 7)
    assert measure(crystal) == whole


def test_checks_and_reasons():
    overlapping = ([6, 8], [[0, 0, 0], [0.999, 0, 0]], np.eye(3) * 4)
    close = ([6, 8], [[0, 0, 0], [0.2, 0, 0]], np.eye(3) * 4)
    dense = (np.full(20, 1), np.random.default_rng(0).random((20, 3)), np.eye(3))
    crystals = [ROCK_SALT, overlapping, close, dense, None]
    check = validity_check(crystals)
    np.testing.assert_array_equal(check.passed, [True, False, True, False, False])
    assert check.share == pytest.approx(0.4)
    assert check.reasons == (
        None,
        "atoms 0.004 angstrom apart",
        None,
        "volume 0.05 cubic angstrom an atom",
        "not built",
    )
    check = covalent_check([measure(crystal) for crystal in crystals])  # measured once for both
    np.testing.assert_array_equal(check.passed, [True, False, False, False, False])
    assert check.reasons[2] == "atoms 0.576 of the sum of covalent radii apart"
    assert check.reasons[4] == "not built"


def test_coincident_atoms():
    assert measure(([6, 6], [[0.1, 0, 0], [1.1, 0, -1]], np.eye(3) * 4)).min_distance == 0.0


@pytest.mark.parametrize(
    ("crystal", "error"),
    [
        (([6], [[0, 0, np.nan]], np.eye(3)), "coordinates are not finite"),
        (([6], [[0, 0, 0]], np.full((3, 3), np.inf)), "lattice is not finite"),
        (([6], [[0, 0, 0]], np.ones((3, 3))), "cell has no volume"),
        (([6], [[0, 0, 0]], np.zeros((3, 3))), "cell has no volume"),
        (([], [], np.eye(3)), "no atoms"),
        (([6, 6], [[0, 0, 0]], np.eye(3)), "2 atom types for 1 positions"),
        (([0], [[0, 0, 0]], np.eye(3)), "atomic numbers from 0 to 0"),
        (([100], [[0, 0, 0]], np.eye(3)), "atomic numbers from 100 to 100"),
        (([6], [[0, 0]], np.eye(3)), "not a crystal: "),
        (
            Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]),
            "not a crystal: partial occupancy",
        ),
    ],
)
def test_what_cannot_be_measured(crystal, error):
    geometry = measure(crystal)
    assert geometry.error.startswith(error)
    assert geometry == Geometry(error=geometry.error)
    assert (
        validity_check([crystal]).reasons == covalent_check([crystal]).reasons == (geometry.error,)
    )


def test_all_elements_have_a_radius():
    crystals = [([z], [[0, 0, 0]], np.eye(3) * 6) for z in range(1, 100)]
    assert covalent_check(crystals).share == 1.0


def test_no_crystals():
    assert validity_check([]).share == 0.0
    assert covalent_check([]).reasons == ()


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


@pytest.mark.parametrize("name", ["mp-20-bt", "perov-5"])
def test_real_crystals_pass_and_random_coordinates_do_not(shared_dir, name):
    path = shared_dir / "data" / name / "test.csv.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with gzip.open(path, "rt") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(200), strict=False)]
    crystals = [structure_from_cif(row["cif"]) for row in rows]
    assert validity_check(crystals).share == 1.0
    assert covalent_check(crystals).share >= 0.99
    randomised = randomise_coordinates(crystals, 0)
    assert validity_check(randomised).share > 0.7  # which is why there is a second check
    assert covalent_check(randomised).share < 0.15
