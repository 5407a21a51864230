"""Cells against pymatgen, and flat collections of crystals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice

from chemeleon2_jax.crystals.arrays import (
    Crystals,
    lattice_from_parameters,
    lattice_parameters,
    scale_lengths,
    unscale_lengths,
    wrap,
)
from tests.examples import random_crystals

lengths_st = st.tuples(*[st.floats(1.0, 60.0)] * 3)


@st.composite
def cell_angles(draw):
    """Possible angles in degrees of a cell that is not nearly flat."""
    alpha, beta = draw(st.floats(30.0, 150.0)), draw(st.floats(30.0, 150.0))
    low, high = abs(alpha - beta) + 5.0, min(alpha + beta, 360.0 - alpha - beta) - 5.0
    return alpha, beta, draw(st.floats(low, high))


@settings(max_examples=200, deadline=None)
@given(lengths=lengths_st, angles=cell_angles())
def test_lattice_is_that_of_pymatgen(lengths, angles):
    expected = Lattice.from_parameters(*lengths, *angles).matrix
    found = lattice_from_parameters(np.array(lengths), np.radians(angles))
    np.testing.assert_allclose(found, expected, atol=1e-10 * max(lengths))
    np.testing.assert_allclose(abs(np.linalg.det(found)), Lattice(expected).volume, rtol=1e-9)


@settings(max_examples=200, deadline=None)
@given(lengths=lengths_st, angles=cell_angles(), seed=st.integers(0, 100))
def test_parameters_are_those_of_pymatgen_in_any_orientation(lengths, angles, seed):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    lattice = Lattice.from_parameters(*lengths, *angles).matrix @ rotation
    found_lengths, found_angles = lattice_parameters(lattice)
    np.testing.assert_allclose(found_lengths, Lattice(lattice).lengths, rtol=1e-12)
    np.testing.assert_allclose(np.degrees(found_angles), Lattice(lattice).angles, atol=1e-7)
    np.testing.assert_allclose(found_lengths, lengths, rtol=1e-9)
    np.testing.assert_allclose(np.degrees(found_angles), angles, atol=1e-6)


def test_jax_and_numpy_give_the_same_cells():
    lattices = random_crystals((1,) * 20).lattices
    lengths, angles = lattice_parameters(lattices)
    jax_lengths, jax_angles = jax.jit(lattice_parameters)(jnp.asarray(lattices))
    assert isinstance(lengths, np.ndarray)
    np.testing.assert_allclose(jax_lengths, lengths, rtol=1e-6)
    np.testing.assert_allclose(jax_angles, angles, rtol=1e-5)
    back = jax.jit(lattice_from_parameters)(jax_lengths, jax_angles)
    np.testing.assert_allclose(back, lattices, atol=2e-5)


def test_impossible_angles_give_the_finite_flat_cell_of_pymatgen():
    lengths, angles = np.array([3.0, 4.0, 5.0]), np.array([50.0, 50.0, 130.0])
    found = lattice_from_parameters(lengths, np.radians(angles))
    np.testing.assert_allclose(found, Lattice.from_parameters(*lengths, *angles).matrix, atol=1e-9)
    assert np.linalg.det(found) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("module", [np, jnp])
def test_scaled_lengths(module):
    lengths = module.asarray([[4.0, 6.0, 8.0], [1.0, 2.0, 3.0]], dtype=module.float32)
    num_atoms = module.asarray([8, 0])
    scaled = scale_lengths(lengths, num_atoms)
    # An empty slot counts as one atom.
    np.testing.assert_allclose(scaled, [[2.0, 3.0, 4.0], [1.0, 2.0, 3.0]], rtol=1e-6)
    np.testing.assert_allclose(unscale_lengths(scaled, num_atoms), lengths, rtol=1e-6)


def test_a_plain_number_of_atoms_stays_in_numpy():
    scaled = scale_lengths(np.array([3.0, 6.0, 9.0]), 27)
    assert isinstance(scaled, np.ndarray)
    np.testing.assert_allclose(scaled, [1.0, 2.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize("module", [np, jnp])
def test_wrap_at_the_edges(module):
    values = module.asarray([-1e-9, 1.0, -0.25, 2.5, 0.0, -1.0, 0.999], dtype=module.float32)
    np.testing.assert_allclose(wrap(values), [0.0, 0.0, 0.75, 0.5, 0.0, 0.0, 0.999], rtol=1e-6)


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e4, 1e4, width=32))
def test_wrapped_coordinates_are_below_one(value):
    wrapped = wrap(np.array([value], np.float32))
    assert wrapped.dtype == np.float32
    assert 0.0 <= wrapped[0] < 1.0
    shift = float(wrapped[0]) - value
    assert abs(shift - round(shift)) < 1e-3


def test_from_list_and_crystal():
    triples = [
        ([26, 8], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], np.eye(3) * 4.0),
        ([1], [[0.1, 0.2, 0.3]], np.diag([1.0, 2.0, 3.0])),
    ]
    crystals = Crystals.from_list(triples, targets={"gap": [1.5, np.nan]})
    assert len(crystals) == 2
    assert crystals.num_atoms.tolist() == [2, 1]
    assert crystals.offsets.tolist() == [0, 2, 3]
    assert crystals.material_ids.tolist() == [b"0", b"1"]
    types = (crystals.atom_types, crystals.frac_coords, crystals.lattices, crystals.num_atoms)
    assert [a.dtype for a in types] == [np.int8, np.float32, np.float32, np.int32]
    for i, (atom_types, frac, lattice) in enumerate(triples):
        found = crystals.crystal(i)
        np.testing.assert_array_equal(found[0], atom_types)
        np.testing.assert_allclose(found[1], frac)
        np.testing.assert_allclose(found[2], lattice)
    named = Crystals.from_list(triples, material_ids=["mp-1", b"mp-149"])
    assert named.material_ids.tolist() == [b"mp-1", b"mp-149"]


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    picks=st.lists(st.integers(0, 7), max_size=12),
)
def test_take_gives_the_crystals_in_that_order(sizes, picks):
    crystals = random_crystals(sizes)
    picks = [p % len(sizes) for p in picks]
    taken = crystals.take(picks)
    assert len(taken) == len(picks)
    for i, pick in enumerate(picks):
        for ours, theirs in zip(taken.crystal(i), crystals.crystal(pick), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(taken.material_ids, crystals.material_ids[picks])
    np.testing.assert_array_equal(taken.targets["energy"], crystals.targets["energy"][picks])


def test_concatenate_undoes_take_and_keeps_common_targets():
    crystals = random_crystals()
    parts = [crystals.take(range(2)), crystals.take(range(2, 6))]
    parts[0].targets["gap"] = np.zeros(2, np.float32)
    joined = Crystals.concatenate(parts)
    assert list(joined.targets) == ["energy"]
    for name in ("num_atoms", "atom_types", "frac_coords", "lattices", "material_ids"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(crystals, name))
    np.testing.assert_array_equal(joined.targets["energy"], crystals.targets["energy"])


def test_no_crystals():
    nothing = Crystals.from_list([])
    assert len(nothing) == 0
    assert nothing.offsets.tolist() == [0]
    assert nothing.lattices.shape == (0, 3, 3)
    assert len(random_crystals().take([])) == 0
