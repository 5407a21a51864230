"""Places of crystals in rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemeleon2_jax.rows.layout import Layout, to_slots
from chemeleon2_jax.rows.packing import RowShape, assign, assign_padded, best_fit, num_rows

sizes_st = st.lists(st.integers(1, 32), min_size=1, max_size=40).map(np.array)


@settings(max_examples=200, deadline=None)
@given(sizes=sizes_st, tokens=st.integers(32, 80), slots=st.integers(2, 9))
def test_every_crystal_is_placed_once_and_none_overlap(sizes, tokens, slots):
    row, slot, start = best_fit(sizes, tokens, slots)
    assert (start >= 0).all()
    assert (start + sizes <= tokens).all()
    assert len(set(zip(row.tolist(), slot.tolist(), strict=True))) == len(sizes)
    assert slot.min() >= 0
    assert slot.max() < slots - 1  # the last slot is for the padding
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


def test_useful_share():
    assert assign([10, 6, 8], [RowShape(2, 16, 5)]).useful_share == pytest.approx(24 / 32)
    assert assign_padded([10, 6, 8], 10, rows=4).useful_share == pytest.approx(24 / 40)


def test_values_find_their_slots():
    sizes = np.array([3, 1, 7, 4, 2, 5])
    where = Layout.plan(sizes, len(sizes), row_tokens=16).assign(sizes)
    values = np.arange(1, 7, dtype=np.int32)
    slots = to_slots(values, where)
    assert (slots.dtype, slots.shape) == (np.int32, (where.shape.rows, where.shape.slots))
    np.testing.assert_array_equal(where.take_slots(slots), values)
    assert slots.sum() == values.sum()
