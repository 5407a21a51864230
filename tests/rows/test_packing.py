"""Where crystals go, what is in a row, and that random numbers do not see it."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemeleon2_jax.rows import rows as rows_module
from chemeleon2_jax.rows.packing import (
    MAX_SHAPES,
    NO_CRYSTAL,
    RowShape,
    assign,
    assign_padded,
    best_fit,
    build_rows,
    empty_crystals,
    num_rows,
    pair_edges,
    plan_shapes,
)
from tests.examples import LAYOUTS, SIZES, in_layout, packed, random_crystals, relative

sizes_st = st.lists(st.integers(1, 32), min_size=1, max_size=40).map(np.array)


# --- planning -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(sizes=sizes_st, tokens=st.integers(32, 80), slots=st.integers(2, 9))
def test_every_crystal_is_placed_once_and_none_overlap(sizes, tokens, slots):
    row, slot, start = best_fit(sizes, tokens, slots)
    assert (start >= 0).all()
    assert (start + sizes <= tokens).all()
    assert len(set(zip(row.tolist(), slot.tolist(), strict=True))) == len(sizes)
    assert slot.min() >= 0
    assert slot.max() < slots - 1  # the last slot is the padding's
    occupied = Counter(
        (int(r), int(s) + k) for r, s, n in zip(row, start, sizes, strict=True) for k in range(n)
    )
    assert max(occupied.values()) == 1
    assert sum(occupied.values()) == sizes.sum()
    assert set(row.tolist()) == set(range(num_rows(sizes, tokens, slots)))


def test_best_fit_takes_the_fullest_row_that_has_room():
    row, slot, start = best_fit(np.array([2, 6, 5, 3, 4]), 10, 4)
    # 6 and then 5 open rows; 4 fills the first, 3 and 2 the second.
    assert row.tolist() == [1, 0, 1, 1, 0]
    assert slot.tolist() == [2, 0, 0, 1, 1]
    assert start.tolist() == [8, 0, 0, 5, 6]


@settings(max_examples=60, deadline=None)
@given(
    sizes=sizes_st,
    batch_size=st.integers(1, 24),
    num_devices=st.sampled_from([1, 2, 8]),
    edges=st.booleans(),
    data=st.data(),
)
def test_planned_shapes_hold_every_batch(sizes, batch_size, num_devices, edges, data):
    shapes = plan_shapes(sizes, batch_size, num_devices=num_devices, edges=edges)
    assert 1 <= len(shapes) <= MAX_SHAPES
    assert len({(s.tokens, s.slots) for s in shapes}) == 1
    assert all(s.rows % num_devices == 0 for s in shapes)
    assert all((s.edges > 0) == edges and s.edges % num_devices == 0 for s in shapes)
    count = min(batch_size, len(sizes))
    ordered = np.sort(sizes)
    shuffled = data.draw(st.permutations(sizes.tolist()))
    for batch in (ordered[-count:], ordered[:count], np.array(shuffled[:count])):
        where = assign(batch, shapes)
        assert where.shape in shapes
        assert where.row.max() < where.shape.rows
        if edges:
            assert pair_edges(where)["is_edge"].sum() == (batch**2).sum()


def test_shapes_depend_on_the_multiset_of_sizes_alone():
    sizes = np.random.default_rng(0).integers(1, 21, 500)
    shapes = plan_shapes(sizes, 64, edges=True)
    assert plan_shapes(np.random.default_rng(1).permutation(sizes), 64, edges=True) == shapes
    assert plan_shapes(list(sizes), 64, edges=True) == shapes


@pytest.mark.parametrize("max_shapes", [1, 2, 3])
def test_fewer_shapes_hold_every_batch_too(max_shapes):
    sizes = np.random.default_rng(0).integers(1, 21, 500)
    shapes = plan_shapes(sizes, 64, max_shapes=max_shapes)
    assert len(shapes) == max_shapes
    assert shapes[-1].rows == plan_shapes(sizes, 64)[-1].rows
    assert assign(np.sort(sizes)[-64:], shapes).shape == shapes[-1]


@pytest.mark.parametrize("copies", [4, 16])
def test_planned_shapes_hold_every_batch_of_groups(copies):
    """Also where all groups are of the largest crystal; on what is usual they waste little."""
    sizes = np.random.default_rng(0).integers(1, 21, 300)
    shapes = plan_shapes(sizes, 64, copies=copies)
    assert len(shapes) <= 5
    assert assign(np.full(64, sizes.max()), shapes).shape == max(shapes)
    rng = np.random.default_rng(1)
    batches = [np.repeat(rng.choice(sizes, 64 // copies), copies) for _ in range(50)]
    placed = [assign(batch, shapes) for batch in batches]
    assert np.mean([where.useful_share for where in placed]) > 0.75


def test_row_tokens_are_64_unless_crystals_are_larger_or_told():
    small, large = np.full(100, 8), np.full(100, 100)
    assert plan_shapes(small, 16)[0].tokens == 64
    assert plan_shapes(large, 16)[0].tokens % 64 == 0
    assert plan_shapes(large, 16)[0].tokens >= 128
    assert plan_shapes(small, 16, row_tokens=24)[0].tokens == 24


def test_assign_takes_the_smallest_shape_that_fits():
    shapes = [RowShape(4, 16, 5), RowShape(1, 16, 5), RowShape(2, 16, 5)]
    assert assign([16], shapes).shape.rows == 1
    assert assign([16, 1], shapes).shape.rows == 2
    assert assign([16, 16, 1], shapes).shape.rows == 4
    with_edges = [RowShape(1, 16, 5, 100), RowShape(2, 16, 5, 300)]
    assert assign([10], with_edges).shape.edges == 100
    assert assign([11], with_edges).shape.edges == 300
    assert assign([], shapes).shape.rows == 1


def test_assign_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"crystal of 17 atoms .* 16 tokens.*row_tokens"):
        assign([3, 17], [RowShape(4, 16, 5)])
    with pytest.raises(ValueError, match=r"3 crystals need 3 rows; the largest shape is .*rows=2"):
        assign([16, 16, 16], [RowShape(1, 16, 5), RowShape(2, 16, 5)])


# --- filling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_hold_the_crystals(layout):
    crystals = random_crystals()
    features = np.random.default_rng(0).normal(size=(crystals.num_atoms.sum(), 4))
    asked = np.arange(len(crystals) * 3.0).reshape(-1, 3)
    asked[1] = np.nan
    for batch in in_layout(crystals, layout):
        chosen = crystals.take(batch.indices)
        atoms = crystals.atom_indices(batch.indices)
        rows = build_rows(
            chosen,
            batch.where,
            crystal_ids=batch.indices + 100,
            atom_features={"mace": features[atoms]},
            conditions={"asked": asked[batch.indices]},
        )
        np.testing.assert_array_equal(batch.atoms(rows.atom_types), chosen.atom_types)
        np.testing.assert_array_equal(batch.atoms(rows.frac_coords), chosen.frac_coords)
        np.testing.assert_allclose(batch.atoms(rows.features["mace"]), features[atoms], rtol=1e-6)
        np.testing.assert_array_equal(batch.where.take_slots(rows.lattices), chosen.lattices)
        np.testing.assert_array_equal(batch.where.take_slots(rows.num_atoms), chosen.num_atoms)
        np.testing.assert_array_equal(batch.where.take_slots(rows.crystal_id), batch.indices + 100)
        np.testing.assert_array_equal(
            batch.where.take_slots(rows.targets["energy"]), chosen.targets["energy"]
        )
        found = rows.conditions["asked"]
        np.testing.assert_array_equal(batch.where.take_slots(found), asked[batch.indices])
        assert (found[~rows.is_crystal] == 0).all()
        assert rows.is_atom.sum() == chosen.num_atoms.sum()
        assert rows.is_crystal.sum() == len(chosen)
        for part, size in zip(
            batch.where.split_atoms(rows.position), chosen.num_atoms, strict=True
        ):
            assert part.tolist() == list(range(size))
        owner = np.take_along_axis(rows.crystal_id, rows.slot, axis=1)
        np.testing.assert_array_equal(
            batch.atoms(owner), np.repeat(batch.indices + 100, chosen.num_atoms)
        )


def test_padding_of_packed_rows_is_a_dummy_crystal():
    batch = packed(random_crystals())
    rows = jax.tree.map(np.asarray, batch.rows)
    padding = ~rows.is_atom
    assert padding[-1].all()  # the last row is empty
    assert (rows.slot[padding] == batch.where.shape.slots - 1).all()
    assert not rows.is_crystal[:, -1].any()
    assert (rows.atom_types[padding] == 0).all()
    assert (rows.position[padding] == 0).all()
    empty = ~rows.is_crystal
    assert (rows.lattices[empty] == np.eye(3)).all()
    assert (rows.num_atoms[empty] == 0).all()
    assert (rows.crystal_id[empty] == NO_CRYSTAL).all()


def test_padding_of_padded_rows_belongs_to_the_crystal():
    crystals = random_crystals()
    rows = build_rows(crystals, assign_padded(crystals.num_atoms, 9, rows=8))
    assert rows.is_crystal.tolist() == [[True]] * 6 + [[False]] * 2
    assert (rows.slot == 0).all()
    for r, size in enumerate(SIZES):
        assert rows.is_atom[r].tolist() == [True] * size + [False] * (9 - size)
        assert rows.position[r].tolist() == [min(k, size - 1) for k in range(9)]
    assert (rows.position[6:] == 0).all()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_parts_of_hosts_join_to_the_whole(layout):
    crystals = random_crystals(SIZES * 2)
    pairs = int((crystals.num_atoms**2).sum())
    if layout == "packed":
        where = assign(crystals.num_atoms, [RowShape(6, 16, 5, pairs + 30 - pairs % 6)])
    else:
        where = assign_padded(crystals.num_atoms, 9, rows=12, edges=pairs + 24 - pairs % 12)
    features = {"mace": np.arange(crystals.num_atoms.sum() * 2.0).reshape(-1, 2)}
    given = {
        "atom_features": features,
        "conditions": {"asked": np.arange(len(crystals) * 3.0).reshape(-1, 3)},
    }
    whole = build_rows(crystals, where, **given)
    half = where.shape.rows // 2
    ranges = [(0, half), (half, where.shape.rows)]
    parts = [build_rows(crystals, where, row_range=r, **given) for r in ranges]
    leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in (whole, *parts)]
    assert len(leaves[0]) == 15
    for (path, expected), (_, first), (_, second) in zip(*leaves, strict=True):
        assert len(first) == len(second) == len(expected) // 2, path
        np.testing.assert_array_equal(np.concatenate([first, second]), expected)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), spare=st.integers(0, 20))
def test_pair_edges_are_all_ordered_pairs(sizes, spare):
    where = assign(sizes, [RowShape(8, 8, 4, int(np.square(sizes).sum()) + spare)])
    edges = pair_edges(where)
    rows = build_rows(empty_crystals(sizes), where)
    flat = np.arange(8 * 8).reshape(8, 8)
    expected = {
        (int(flat[r, i]), int(flat[r, j]))
        for r in range(8)
        for i in range(8)
        for j in range(8)
        if rows.is_atom[r, i] and rows.is_atom[r, j] and rows.slot[r, i] == rows.slot[r, j]
    }
    real = edges["is_edge"]
    pairs = list(zip(edges["senders"][real], edges["receivers"][real], strict=True))
    assert len(pairs) == len(set(pairs))
    assert {(int(i), int(j)) for i, j in pairs} == expected
    assert len(real) == where.shape.edges
    assert (edges["senders"][~real] == 0).all()
    assert (edges["receivers"][~real] == 0).all()


def test_useful_share():
    assert assign([10, 6, 8], [RowShape(2, 16, 5)]).useful_share == pytest.approx(24 / 32)
    assert assign_padded([10, 6, 8], 10, rows=4).useful_share == pytest.approx(24 / 40)


# --- helpers for models ---------------------------------------------------------------------------


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
        assert np.isfinite(weights).all()  # also where a query sees nothing


def test_weighted_mean():
    values, weights = (
        jnp.array([[1.0, 5.0], [3.0, 100.0]]),
        jnp.array([[True, True], [True, False]]),
    )
    assert float(rows_module.weighted_mean(values, weights)) == pytest.approx(3.0)
    assert float(rows_module.weighted_mean(values, jnp.zeros_like(weights))) == 0.0


# --- random numbers -------------------------------------------------------------------------------


def test_random_numbers_do_not_see_the_layout():
    crystals = random_crystals()
    draw = jax.jit(lambda key, rows: rows_module.atom_normal(key, rows, 5))

    def numbers(layout: str, seed: int) -> np.ndarray:
        key = jax.random.key(seed)
        return np.concatenate([b.atoms(draw(key, b.rows)) for b in in_layout(crystals, layout)])

    first = numbers("packed", 0)
    for layout in ("padded", "alone"):
        np.testing.assert_array_equal(numbers(layout, 0), first)
    assert relative(numbers("packed", 1), first) > 0.5
    # Every atom of every crystal has its own.
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
