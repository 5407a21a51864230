"""Spreading, pooling and masks within rows, and random numbers that do not depend on packing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.rows import rows as rows_module
from tests.examples import in_layout, packed, random_crystals, relative


def test_gathering_and_pooling_against_loops():
    batch = packed(random_crystals())
    rows = batch.rows
    rng = np.random.default_rng(0)
    num_rows_, tokens = rows.position.shape
    slots = rows.is_crystal.shape[1]
    per_slot = rng.normal(size=(num_rows_, slots, 3)).astype(np.float32)
    per_token = rng.normal(size=(num_rows_, tokens, 3)).astype(np.float32)
    gathered = np.zeros((num_rows_, tokens, 3))
    pooled = np.zeros((num_rows_, slots, 3))
    for r in range(num_rows_):
        for t in range(tokens):
            slot = int(rows.slot[r, t])
            gathered[r, t] = per_slot[r, slot]
            pooled[r, slot] += per_token[r, t] * float(rows.is_atom[r, t])
    membership = rows_module.slot_matrix(rows)
    np.testing.assert_array_equal(rows_module.gather_slots(membership, per_slot), gathered)
    half = jnp.asarray(per_slot, jnp.bfloat16)
    np.testing.assert_array_equal(
        rows_module.gather_slots(membership, half)[0, 0], half[0, int(rows.slot[0, 0])]
    )
    found = rows_module.pool_tokens(membership, per_token, rows.is_atom.astype(jnp.float32))
    np.testing.assert_allclose(found, pooled, atol=1e-5)
    means = rows_module.mean_over_crystal(rows, membership, per_token)
    counts = np.maximum(np.asarray(rows.num_atoms), 1)[..., None]
    np.testing.assert_allclose(means, pooled / counts, atol=1e-5)
    assert (np.asarray(means)[~np.asarray(rows.is_crystal)] == 0).all()


def test_attention_sees_the_atoms_of_its_crystal():
    for batch in (packed(random_crystals()), *in_layout(random_crystals(), "padded")):
        rows = jax.tree.map(np.asarray, batch.rows)
        bias = np.asarray(rows_module.attention_bias(batch.rows))
        same = rows.slot[:, :, None] == rows.slot[:, None, :]
        seen = same & np.broadcast_to(rows.is_atom[:, None, :], same.shape)
        assert (bias[seen] == 0).all()
        assert (bias[~seen] <= -1e9).all()
        weights = jax.nn.softmax(bias + np.float32(5.0), axis=-1)
        assert np.isfinite(weights).all()  # also for queries without keys


def test_weighted_mean():
    values, weights = (
        jnp.array([[1.0, 5.0], [3.0, 100.0]]),
        jnp.array([[True, True], [True, False]]),
    )
    assert float(rows_module.weighted_mean(values, weights)) == pytest.approx(3.0)
    assert float(rows_module.weighted_mean(values, jnp.zeros_like(weights))) == 0.0


def test_random_numbers_do_not_depend_on_the_layout():
    crystals = random_crystals()
    draw = jax.jit(lambda key, rows: rows_module.atom_normal(key, rows, 5))

    def numbers(layout: str, seed: int) -> np.ndarray:
        key = jax.random.key(seed)
        return np.concatenate([b.atoms(draw(key, b.rows)) for b in in_layout(crystals, layout)])

    first = numbers("packed", 0)
    for layout in ("padded", "alone"):
        np.testing.assert_array_equal(numbers(layout, 0), first)
    assert relative(numbers("packed", 1), first) > 0.5
    # Every number is different.
    assert len(np.unique(first)) == first.size


def test_keys_of_crystals_and_atoms():
    rows = packed(random_crystals()).rows
    key = jax.random.key(3)
    crystal_keys, atom_keys = rows_module.crystal_keys(key, rows), rows_module.atom_keys(key, rows)
    for r, t in ((0, 0), (0, 9), (1, 5)):
        slot = int(rows.slot[r, t])
        of_crystal = jax.random.fold_in(key, int(rows.crystal_id[r, slot]))
        assert crystal_keys[r, slot] == of_crystal
        assert atom_keys[r, t] == jax.random.fold_in(of_crystal, int(rows.position[r, t]))


def test_normal_numbers_are_normal():
    rows = packed(random_crystals((8,) * 60)).rows
    numbers = rows_module.atom_normal(jax.random.key(0), rows, 8)[rows.is_atom]
    assert numbers.shape == (480, 8)
    assert float(numbers.mean()) == pytest.approx(0.0, abs=0.06)
    assert float(numbers.std()) == pytest.approx(1.0, abs=0.05)
    neighbours = jnp.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]
    assert abs(float(neighbours)) < 0.06
