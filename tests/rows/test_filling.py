"""The arrays of rows, and the edges."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemeleon2_jax.rows.filling import NO_CRYSTAL, build_rows, empty_crystals, pair_edges
from chemeleon2_jax.rows.packing import RowShape, assign, assign_padded
from tests.examples import LAYOUTS, SIZES, in_layout, packed, random_crystals


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
