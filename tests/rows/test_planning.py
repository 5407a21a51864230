"""The shapes of a run's rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemeleon2_jax.rows.filling import pair_edges
from chemeleon2_jax.rows.packing import assign
from chemeleon2_jax.rows.planning import MAX_SHAPES, plan_shapes

sizes_st = st.lists(st.integers(1, 32), min_size=1, max_size=40).map(np.array)


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
    """Also one of the largest crystal alone; on usual batches they waste little."""
    sizes = np.random.default_rng(0).integers(1, 21, 300)
    shapes = plan_shapes(sizes, 64, copies=copies)
    assert len(shapes) <= 5
    assert assign(np.full(64, sizes.max()), shapes).shape == max(shapes)
    rng = np.random.default_rng(1)
    batches = [np.repeat(rng.choice(sizes, 64 // copies), copies) for _ in range(50)]
    placed = [assign(batch, shapes) for batch in batches]
    assert np.mean([where.useful_share for where in placed]) > 0.75


def test_row_tokens_are_64_unless_crystals_are_larger_or_given():
    small, large = np.full(100, 8), np.full(100, 100)
    assert plan_shapes(small, 16)[0].tokens == 64
    assert plan_shapes(large, 16)[0].tokens % 64 == 0
    assert plan_shapes(large, 16)[0].tokens >= 128
    assert plan_shapes(small, 16, row_tokens=24)[0].tokens == 24
