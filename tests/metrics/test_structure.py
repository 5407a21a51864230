"""The checks of distances and volumes, on real crystals and on random coordinates."""

import csv
import gzip

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals.geometry import Geometry, measure, randomise_coordinates
from chemeleon2_jax.crystals.structures import structure_from_cif
from chemeleon2_jax.metrics.structure import covalent_check, validity_check

ROCK_SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)


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
