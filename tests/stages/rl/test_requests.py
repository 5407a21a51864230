"""Prompts of a rollout: groups, mini-batches, chunks, rows."""

from __future__ import annotations

import numpy as np
import pytest

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.loader import Loader
from chemeleon2_jax.models.condition_kinds import CompositionCondition
from chemeleon2_jax.pretrained.loading import ldm_of, open_model
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.stages.rl.requests import (
    FromCrystals,
    FromModel,
    PromptBatches,
    Span,
    cut,
)
from tests.examples import random_crystals
from tests.tiny import conditional

SIZES = [3, 1, 7, 4, 2, 5, 9, 6]


@pytest.fixture(scope="module")
def crystals() -> Crystals:
    return random_crystals(SIZES)


def batches_of(crystals, *, prompts=4, group=3, mini_batches=2, chunk=0, gives_types=False):
    layout = Layout.plan(crystals.num_atoms, prompts)
    source = FromCrystals(
        Loader(crystals, prompts, layout, 0),
        lambda c: {"size": c.num_atoms[:, None].astype(np.float32)},
        gives_types,
    )
    chunks = cut(prompts * group, mini_batches, chunk)
    longest = max(span.stop - span.start for span in chunks)
    plan = Layout.plan(source.possible_sizes(), longest, copies=group)
    return PromptBatches(source, group, chunks, plan)


def test_cut_into_mini_batches_and_chunks():
    assert cut(6, 2) == (Span(0, 3, 0), Span(3, 6, 1))
    assert cut(10, 2, 3) == (Span(0, 3, 0), Span(3, 5, 0), Span(5, 8, 1), Span(8, 10, 1))
    assert cut(4, 1, 100) == (Span(0, 4, 0),)


@pytest.mark.parametrize(("count", "pieces"), [(5, 2), (1, 2), (4, 0)])
def test_unequal_mini_batches(count, pieces):
    with pytest.raises(ValueError, match="equal size"):
        cut(count, pieces)


def test_a_group_has_one_prompt(crystals):
    batches = batches_of(crystals, gives_types=True)
    for step in range(4):
        prompts = batches.prompts(step)
        indices = batches.source.loader.indices(step)
        assert prompts.num_atoms.tolist() == [SIZES[i] for i in indices for _ in range(3)]
        np.testing.assert_array_equal(prompts.conditions["size"][:, 0], prompts.num_atoms)
        for number, types in enumerate(prompts.atom_types):
            np.testing.assert_array_equal(types, crystals.crystal(indices[number // 3])[0])


def test_rows_hold_each_crystal_once_with_its_prompt(crystals):
    batches = batches_of(crystals, chunk=4, gives_types=True)
    batch = batches.batch(1)
    prompts = batches.prompts(1)
    assert batch.num_crystals == 12
    assert len(batch.arrays) == 4
    seen = []
    for rows, span, assignment in zip(
        batch.arrays, batches.chunks, batches.assignments(prompts.num_atoms), strict=True
    ):
        ids = assignment.take_slots(rows.crystal_id)
        assert ids.tolist() == list(range(span.start, span.stop))
        np.testing.assert_array_equal(assignment.take_slots(rows.num_atoms), prompts.num_atoms[ids])
        np.testing.assert_array_equal(
            assignment.take_slots(rows.conditions["size"]), prompts.conditions["size"][ids]
        )
        for index, types in zip(ids, assignment.split_atoms(rows.atom_types), strict=True):
            np.testing.assert_array_equal(types, prompts.atom_types[index])
        assert rows.is_crystal.sum() == len(ids)
        seen += ids.tolist()
    assert seen == list(range(12))


def test_few_shapes_also_where_all_prompts_are_large(crystals):
    batches = batches_of(crystals, prompts=2, group=16, mini_batches=1)
    shapes = {tuple(a.atom_types.shape for a in batches.batch(s).arrays) for s in range(12)}
    assert 1 < len(shapes) <= 5
    worst = batches.assignments(np.full(32, 9))
    assert worst[0].shape in batches.layout.shapes


def test_batches_are_a_function_of_the_step(crystals):
    one, other = batches_of(crystals), batches_of(crystals)
    for step in (3, 0, 3):
        for rows, again in zip(one.batch(step).arrays, other.batch(step).arrays, strict=True):
            np.testing.assert_array_equal(rows.num_atoms, again.num_atoms)
    assert one.steps_per_epoch == 2


def test_sizes_of_the_model_without_data(tiny_ldm):
    ldm = ldm_of(open_model(tiny_ldm.path))
    source = FromModel(ldm, {}, 6, seed=1)
    first = source(0)
    assert len(first.num_atoms) == 6
    assert set(source.possible_sizes().tolist()) == set(np.flatnonzero(ldm.size_table))
    np.testing.assert_array_equal(first.num_atoms, source(0).num_atoms)
    drawn = np.concatenate([source(step).num_atoms for step in range(20)])
    expected = ldm.size_table / ldm.size_table.sum()
    for size in np.flatnonzero(ldm.size_table):
        assert (drawn == size).mean() == pytest.approx(expected[size], abs=0.15)
    assert source.steps_per_epoch == ldm.size_table.sum() // 6


def test_one_condition_for_all(tiny_ldm):
    ldm = conditional(ldm_of(open_model(tiny_ldm.path)), CompositionCondition("formula"))
    prompts = FromModel(ldm, {"formula": "Sr1Ti1O3"}, 3, seed=0)(5)
    assert prompts.num_atoms.tolist() == [5, 5, 5]
    assert prompts.conditions["formula"][0][[8, 22, 38]] == pytest.approx([0.6, 0.2, 0.2])
    with pytest.raises(ValueError, match="no condition 'colour'"):
        FromModel(ldm, {"colour": "red"}, 3, seed=0)(0)
