"""Rotations, translations and noise: invariants and distributions, in any batch."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.crystals.arrays import lattice_parameters
from chemeleon2_jax.data.augment import Augmentation, Noise, augment, corrupt, rotation_matrix
from tests.examples import in_layout, packed, random_crystals

BOTH = Augmentation()
OF_BATCH = Augmentation(per_crystal=False)

augmented = jax.jit(augment, static_argnums=2)
corrupted = jax.jit(corrupt, static_argnums=2)


@pytest.fixture(scope="module")
def many():
    """80 crystals of 6 atoms in packed rows."""
    return packed(random_crystals((6,) * 80))


def metric_tensors(lattices):
    return np.einsum("gij,gkj->gik", lattices, lattices)


def rotations(before, after):
    """The rotations R with after = before R^T, (G, 3, 3)."""
    return np.swapaxes(np.linalg.solve(before.astype(float), after.astype(float)), 1, 2)


@pytest.mark.parametrize("options", [BOTH, OF_BATCH])
def test_a_crystal_stays_the_same_crystal(options, many):
    batch = many
    rows = augmented(jax.random.key(0), batch.rows, options)
    before, after = (batch.where.take_slots(r.lattices) for r in (batch.rows, rows))
    assert np.abs(after - before).max() > 0.5
    np.testing.assert_allclose(metric_tensors(after), metric_tensors(before), atol=1e-4)
    rotation = rotations(before, after)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-5)

    old, new = (batch.where.split_atoms(r.frac_coords) for r in (batch.rows, rows))
    for x, y in zip(old, new, strict=True):
        assert (y >= 0).all()
        assert (y < 1).all()
        shift = (y - x - (y - x)[:1] + 0.5) % 1.0 - 0.5  # the same for all atoms, up to whole cells
        np.testing.assert_allclose(shift, 0.0, atol=1e-5)
        assert np.abs((y - x + 0.5) % 1.0 - 0.5).max() > 1e-3
    for name in ("atom_types", "is_atom", "slot", "position", "num_atoms", "crystal_id"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(batch.rows, name))


def test_rotating_and_translating_are_switches(many):
    key, frac = jax.random.key(0), many.rows.frac_coords
    unchanged = augmented(key, many.rows, Augmentation(rotate=False, translate=False))
    jax.tree.map(np.testing.assert_array_equal, unchanged, many.rows)
    rotated = augmented(key, many.rows, Augmentation(translate=False))
    np.testing.assert_array_equal(rotated.frac_coords, frac)
    assert np.abs(rotated.lattices - many.rows.lattices).max() > 0.5
    moved = augmented(key, many.rows, Augmentation(rotate=False))
    np.testing.assert_array_equal(moved.lattices, many.rows.lattices)
    assert np.abs(moved.frac_coords - frac)[many.rows.is_atom].max() > 0.3


def test_rotations_are_uniform_and_translations_too(many):
    """The moments of the Haar measure, which quaternions from U[0, 1] do not have."""
    cells, shifts = [], []
    for seed in range(30):
        rows = augmented(jax.random.key(seed), many.rows, BOTH)
        cells.append(many.where.take_slots(rows.lattices))
        shift = (rows.frac_coords - many.rows.frac_coords) % 1.0
        shifts.append(np.array([s[0] for s in many.where.split_atoms(shift)]))
    before = many.where.take_slots(many.rows.lattices)
    drawn = np.concatenate([rotations(before, after) for after in cells])
    assert len(drawn) == 2400
    np.testing.assert_allclose(np.linalg.det(drawn), 1.0, atol=1e-5)
    # A uniform rotation's entries have mean 0 and variance 1/3; 5 standard errors.
    np.testing.assert_allclose(drawn.mean(0), 0.0, atol=5 / np.sqrt(3 * 2400))
    second = np.einsum("nij,nkl->ijkl", drawn, drawn) / len(drawn)
    exact = np.einsum("ik,jl->ijkl", np.eye(3), np.eye(3)) / 3
    np.testing.assert_allclose(second, exact, atol=0.04)
    # P(angle < pi/2) = 1/2 - 1/pi under the Haar measure.
    traces = np.trace(drawn, axis1=1, axis2=2)
    assert (traces > 1.0).mean() == pytest.approx(0.5 - 1 / np.pi, abs=0.04)
    uniform = np.sort(np.concatenate(shifts).ravel())
    levels = (np.arange(len(uniform)) + 0.5) / len(uniform)
    assert np.abs(uniform - levels).max() < 0.03  # Kolmogorov-Smirnov, 7200 numbers


@pytest.mark.parametrize("layout", ["padded", "alone"])
def test_augmentation_is_independent_of_the_batch(layout):
    crystals = random_crystals()
    key, noise = jax.random.key(5), Noise(0.3, 0.2)

    def run(layout):
        out = []
        for batch in in_layout(crystals, layout):
            rows = corrupted(key, augmented(key, batch.rows, BOTH), noise)
            atoms = [batch.where.split_atoms(v) for v in (rows.atom_types, rows.frac_coords)]
            out += list(zip(*atoms, batch.where.take_slots(rows.lattices), strict=True))
        return out

    for crystal, expected in zip(run(layout), run("packed"), strict=True):
        for array, expected_array in zip(crystal, expected, strict=True):
            np.testing.assert_allclose(array, expected_array, atol=1e-6)


def test_as_in_the_original_a_batch_has_one_rotation_and_one_translation(many):
    before = many.where.take_slots(many.rows.lattices)
    steps = []
    for seed in range(40):
        rows = augmented(jax.random.key(seed), many.rows, OF_BATCH)
        after = many.where.take_slots(rows.lattices)
        rotation = rotations(before, after)
        one = np.broadcast_to(rotation[0], rotation.shape)
        np.testing.assert_allclose(rotation, one, atol=1e-4)
        # The translation is drawn in angstrom, for the rotated cells: the same for all, up to
        # whole cells.
        shift = (rows.frac_coords - many.rows.frac_coords) % 1.0
        first = np.array([s[0] for s in many.where.split_atoms(shift)])
        steps.append((first, after))
    lengths, _ = lattice_parameters(before)
    mean, std = lengths.mean(0), lengths.std(0, ddof=1)
    for first, after in steps[:5]:
        options = _cartesian_candidates(first[0], after[0])
        assert any(_is_shift(step, first, after) for step in options)
        assert not _is_shift(options[0] + 0.7, first, after)
    # half of N(mean, std) of the cell lengths: about 2.75 +- 0.7 angstrom here
    drawn = np.array(
        [next(s for s in _cartesian_candidates(f[0], a[0]) if _is_shift(s, f, a)) for f, a in steps]
    )
    np.testing.assert_allclose(drawn.mean(0), mean / 2, atol=4 * std.max() / 2 / np.sqrt(40))
    np.testing.assert_allclose(drawn.std(0), std / 2, rtol=0.5)


def _cartesian_candidates(frac, lattice):
    """The shift of one crystal and its periodic images, angstrom."""
    images = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return (frac + images) @ lattice


def _is_shift(step, fracs, lattices):
    """Whether a Cartesian step is the fractional shift of every crystal, modulo whole cells."""
    predicted = np.einsum("j,gjk->gk", step, np.linalg.inv(lattices))
    return np.abs((predicted - fracs + 0.5) % 1.0 - 0.5).max() < 1e-3


def test_rotation_matrix_of_a_known_quaternion():
    half = np.pi / 8  # 45 degrees about z, not normalised
    rotation = rotation_matrix(3.0 * jnp.array([np.cos(half), 0.0, 0.0, np.sin(half)]))
    c = np.sqrt(0.5)
    np.testing.assert_allclose(rotation, [[c, -c, 0], [c, c, 0], [0, 0, 1]], atol=1e-6)


def test_noise_masks_and_moves_shares_of_the_atoms(many):
    ratio, scale = 0.2, 0.15
    # A skewed cell, in which angstrom and fractions of the cell are far apart.
    cell = np.array([[3.0, 0.0, 0.0], [2.5, 3.0, 0.0], [0.0, -3.0, 9.0]], np.float32)
    skewed = replace(many.rows, lattices=jnp.broadcast_to(cell, many.rows.lattices.shape))
    types, old = many.atoms(skewed.atom_types), many.atoms(skewed.frac_coords)
    masked, moved, steps = [], [], []
    for seed in range(5):
        rows = corrupted(jax.random.key(seed), skewed, Noise(ratio, scale))
        new = many.atoms(rows.atom_types)
        masked.append(new == 0)
        np.testing.assert_array_equal(new[~masked[-1]], types[~masked[-1]])
        frac = many.atoms(rows.frac_coords)
        assert (frac >= 0).all()
        assert (frac < 1).all()
        step = (frac - old + 0.5) % 1.0 - 0.5
        moved.append(np.abs(step).max(-1) > 0)
        steps.append(step[moved[-1]] @ cell)
        np.testing.assert_array_equal(rows.lattices, skewed.lattices)
    assert np.mean(masked) == pytest.approx(ratio, abs=0.035)  # 2400 atoms, 4 standard errors
    assert np.mean(moved) == pytest.approx(ratio, abs=0.035)
    assert not (np.array(masked) & np.array(moved)).any()
    assert (masked[0] != masked[1]).any()
    cartesian = np.concatenate(steps)
    assert len(cartesian) > 400
    covariance = np.cov(cartesian.T) / scale**2
    np.testing.assert_allclose(covariance, np.eye(3), atol=0.25)
    assert abs(cartesian.mean()) < 4 * scale / np.sqrt(cartesian.size)


def test_noise_off_is_the_identity(many):
    assert corrupt(jax.random.key(0), many.rows, Noise(0.0, 5.0)) is many.rows


def test_empty_slots_stay_finite(many):
    noisy = corrupted(jax.random.key(0), many.rows, Noise(0.2, 0.15))
    assert not many.rows.is_crystal.all(1).any()
    for rows in (noisy, *(augmented(jax.random.key(1), many.rows, o) for o in (BOTH, OF_BATCH))):
        for leaf in jax.tree.leaves(rows):
            assert np.isfinite(np.asarray(leaf, np.float32)).all()
        assert (np.abs(np.linalg.det(rows.lattices)) > 0.5).all()
