"""Discrepancies and distances against values worked out by hand and against their definitions."""

from itertools import product

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from chemeleon2_jax.metrics import distribution
from chemeleon2_jax.metrics.distribution import (
    amd_distances,
    average_minimum_distances,
    frechet_distance,
    leave_one_out_mmd,
    squared_mmd,
)

SKEWED = np.array([[4.0, 0.0, 0.0], [11.5, 3.0, 0.0], [-7.0, 8.2, 3.5]])


def random_features(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def mmd_by_definition(samples, reference):
    """All three kernels in full."""

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1.0) ** 3

    def mean_of_others(matrix):
        return matrix[~np.eye(len(matrix), dtype=bool)].mean()

    within, beyond = kernel(samples, samples), kernel(reference, reference)
    return mean_of_others(within) + mean_of_others(beyond) - 2 * kernel(samples, reference).mean()


def test_mmd_by_hand():
    # k(1, -1) = 0 among the samples, k(0, 0) = 1 in the reference, k(x, 0) = 1 across.
    assert squared_mmd(np.array([[1.0], [-1.0]]), np.zeros((2, 1))) == pytest.approx(-1.0)


def test_leaving_out_by_hand():
    # Pairs (1, -1), (1, 0), (-1, 0) have kernels 0, 1, 1, so 2/3 on average; what is across is
    # constant. Without the last there is 0 left, without one of the others 1.
    found = leave_one_out_mmd(np.array([[1.0], [-1.0], [0.0]]), np.zeros((1, 1)))
    np.testing.assert_allclose(found, [1 / 3, 1 / 3, -2 / 3])


@pytest.mark.parametrize("at_once", [4_000_000, 7])
def test_mmd_by_definition(monkeypatch, at_once):
    monkeypatch.setattr(distribution, "_KERNEL_VALUES_AT_ONCE", at_once)
    samples, reference = random_features((9, 4), (13, 4))
    everything = mmd_by_definition(samples, reference)
    assert squared_mmd(samples, reference) == pytest.approx(everything, rel=1e-12)
    without = [mmd_by_definition(np.delete(samples, i, 0), reference) for i in range(9)]
    found = leave_one_out_mmd(samples, reference)
    np.testing.assert_allclose(found, np.array(without) - everything, rtol=1e-10)


def test_the_reference_is_not_compared_with_itself():
    # That kernel would take 320 GB.
    samples, reference = random_features((5, 2), (200_000, 2))
    found = leave_one_out_mmd(samples, reference)
    few = leave_one_out_mmd(samples, reference[::100])
    np.testing.assert_allclose(found, few, atol=0.3)


@pytest.mark.parametrize("function", [squared_mmd, leave_one_out_mmd, frechet_distance])
def test_features_that_cannot_be_compared(function):
    good = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"features of the samples .* \(1, 2\)"):
        function(good[:1], good)
    with pytest.raises(ValueError, match=r"features of the reference .* \(0, 2\)"):
        function(good, good[:0])
    with pytest.raises(ValueError, match=r"samples have the shape \(2,\)"):
        function(good[0], good)
    with pytest.raises(ValueError, match="samples are 2 wide, those of the reference 1"):
        function(good, good[:, :1])
    with pytest.raises(ValueError, match="reference are not finite, first in row 2"):
        function(good, np.where(np.arange(4)[:, None] == 2, np.nan, good))


def test_frechet_distance_by_hand():
    # One dimension: (1 - 3)**2 + (sqrt 2 - sqrt 8)**2.
    found = frechet_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]]))
    assert found == pytest.approx(4.0 + 2.0)
    # Without spread only the means count; without either there is none.
    points = np.tile([[1.0, 2.0]], (5, 1))
    assert frechet_distance(points, points + np.array([3.0, 4.0])) == pytest.approx(25.0)
    assert frechet_distance(points, points) == 0.0


def test_frechet_distance_by_definition():
    samples, reference = random_features((30, 4), (50, 4))
    reference = reference @ random_features((4, 4), seed=1)[0]
    first, second = (np.cov(values.T) for values in (samples, reference))
    gap = samples.mean(0) - reference.mean(0)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = gap @ gap + np.trace(first + second - 2.0 * root)
    assert frechet_distance(samples, reference) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(reference, samples) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_fewer_crystals_than_features():
    samples = random_features((5, 40))[0]
    assert frechet_distance(samples, samples) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(samples, samples + 1.0) == pytest.approx(40.0)


def test_cubic_shells():
    distances = average_minimum_distances(([84], [[0.2, 0.3, 0.4]], np.diag([3.0] * 3)), k=26)
    shells = [1.0] * 6 + [np.sqrt(2)] * 12 + [np.sqrt(3)] * 8
    np.testing.assert_allclose(distances, 3.0 * np.array(shells), rtol=1e-12)


def neighbours_by_listing(structure, k, reach):
    """Distances over all images within `reach` cells."""
    _, frac, lattice = structure
    images = np.array(list(product(range(-reach, reach + 1), repeat=3)))
    rows = []
    for atom in frac:
        differences = (frac[None] - atom + images[:, None]).reshape(-1, 3)
        distances = np.sort(np.linalg.norm(differences @ lattice, axis=1))
        rows.append(distances[1 : k + 1])
    return np.mean(rows, 0)


@pytest.mark.parametrize(
    ("lattice", "reach"),
    [(SKEWED, 14), (np.diag([0.7, 6.0, 9.0]), 12), (np.diag([0.5, 0.6, 30.0]), 8)],
)
@pytest.mark.parametrize("num_atoms", [1, 3])
def test_thin_and_skewed_cells_miss_no_neighbour(lattice, reach, num_atoms):
    rng = np.random.default_rng(num_atoms)
    structure = (np.ones(num_atoms, int), rng.random((num_atoms, 3)) * 2 - 0.5, lattice)
    expected = neighbours_by_listing(structure, 20, reach)
    np.testing.assert_allclose(average_minimum_distances(structure, 20), expected, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), num_atoms=st.integers(1, 5), spread=st.sampled_from([1e-3, 1]))
def test_the_choice_of_the_cell_does_not_matter(seed, num_atoms, spread):
    rng = np.random.default_rng(seed)
    lattice = np.diag(rng.uniform(2, 8, 3)) + rng.uniform(-1, 1, (3, 3))
    frac = rng.random((num_atoms, 3)) * spread
    structure = Structure(Lattice(lattice), ["Fe"] * num_atoms, frac)
    first = average_minimum_distances(structure, 30)
    assert (np.diff(first) >= 0).all()
    larger = structure.make_supercell([[2, 1, 0], [0, 1, 0], [0, 1, 1]], in_place=False)
    larger.translate_sites(range(len(larger)), rng.random(3))
    np.testing.assert_allclose(average_minimum_distances(larger, 30), first, atol=1e-7)


def test_degenerate_cells_are_measured_or_refused():
    frac = np.zeros((20, 3))  # atoms on top of each other
    for lattice in (np.diag([1e-3, 1e4, 1e4]), np.diag([1e-3, 2e-3, 1e4]), np.eye(3)):
        distances = average_minimum_distances((np.ones(20), frac, lattice))
        np.testing.assert_array_equal(distances[:19], 0.0)
        assert distances[19] == pytest.approx(np.diag(lattice).min())
    with pytest.raises(ValueError, match="no volume"):
        average_minimum_distances(([1], [[0, 0, 0]], np.ones((3, 3))))
    with pytest.raises(ValueError, match="not finite"):
        average_minimum_distances(([1], [[0, np.nan, 0]], np.eye(3)))
    with pytest.raises(ValueError, match="no atom"):
        average_minimum_distances(([], np.zeros((0, 3)), np.eye(3)))
    with pytest.raises(ValueError, match="at least one neighbour"):
        average_minimum_distances(([1], [[0, 0, 0]], np.eye(3)), k=0)


def test_largest_difference():
    first, second = np.array([[0.0, 1.0], [2.0, 2.0]]), np.array([[0.5, 4.0]])
    np.testing.assert_array_equal(amd_distances(first, second), [[3.0], [2.0]])
