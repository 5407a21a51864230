"""The order of the crystals, the share of a process, and how full the rows are on real sizes."""

from __future__ import annotations

import csv
import gzip
import re

import jax
import numpy as np
import pytest

from chemeleon2_jax.common import hosts
from chemeleon2_jax.data.loader import Loader, fill_rows, in_order
from chemeleon2_jax.rows.filling import empty_crystals
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.rows.packing import RowShape
from chemeleon2_jax.rows.planning import MAX_SHAPES
from tests.examples import random_crystals

SIZES = tuple(int(n) for n in np.random.default_rng(0).integers(1, 21, 103))


@pytest.fixture(scope="module")
def crystals():
    return random_crystals(SIZES)


@pytest.fixture(scope="module")
def layout(crystals):
    return Layout.plan(crystals.num_atoms, 20, row_tokens=32)


def crystals_of(rows):
    """Indices of the crystals in some rows."""
    return rows.crystal_id[rows.is_crystal]


def assert_same(rows, expected):
    jax.tree.map(np.testing.assert_array_equal, rows, expected)


def test_an_epoch_is_a_permutation_less_the_last_partial_batch(crystals, layout):
    loader = Loader(crystals, 20, layout, seed=3)
    assert loader.crystals_per_step == 20
    assert loader.steps_per_epoch == 5
    epochs = []
    for epoch in range(2):
        steps = range(5 * epoch, 5 * epoch + 5)
        indices = np.concatenate([loader.indices(step) for step in steps])
        crystal_ids = np.concatenate([crystals_of(loader.batch(step).arrays) for step in steps])
        assert sorted(crystal_ids) == sorted(indices)
        assert len(set(indices.tolist())) == 100
        epochs.append(indices.tolist())
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_a_batch_depends_on_seed_and_step_alone(crystals, layout):
    loader = Loader(crystals, 20, layout, seed=3)
    batches = [loader.batch(step) for step in range(8)]
    fresh = Loader(crystals, 20, layout, seed=3)
    for step in (7, 2):
        assert_same(fresh.batch(step).arrays, batches[step].arrays)
    other = Loader(crystals, 20, layout, seed=4).indices(0)
    assert other.tolist() != loader.indices(0).tolist()


def test_a_batch_holds_its_crystals(crystals, layout):
    features = np.arange(crystals.num_atoms.sum() * 2, dtype=np.float32).reshape(-1, 2)
    loader = Loader(crystals, 20, layout, atom_features={"mace": features})
    batch = loader.batch(1)
    rows = batch.arrays
    assert batch.num_crystals == 20
    assert batch.useful_tokens == pytest.approx(rows.is_atom.mean())
    assert set(crystals_of(rows)) == set(loader.indices(1))
    for r, s in zip(*np.nonzero(rows.is_crystal), strict=True):
        index = rows.crystal_id[r, s]
        types, frac, lattice = crystals.crystal(index)
        tokens = rows.is_atom[r] & (rows.slot[r] == s)
        np.testing.assert_array_equal(rows.atom_types[r, tokens], types)
        np.testing.assert_array_equal(rows.frac_coords[r, tokens], frac)
        np.testing.assert_array_equal(rows.lattices[r, s], lattice)
        assert rows.targets["energy"][r, s] == crystals.targets["energy"][index]
        atoms = slice(crystals.offsets[index], crystals.offsets[index + 1])
        np.testing.assert_array_equal(rows.features["mace"][r, tokens], features[atoms])


def test_fewer_crystals_than_a_batch():
    crystals = random_crystals((3, 4, 5))
    loader = Loader(crystals, 256, Layout.plan(crystals.num_atoms, 256))
    assert loader.crystals_per_step == 3
    assert loader.steps_per_epoch == 1
    assert sorted(crystals_of(loader.batch(9).arrays)) == [0, 1, 2]


def test_processes_share_the_rows_of_the_same_batch(crystals, monkeypatch):
    layout = Layout.plan(crystals.num_atoms, 20, num_devices=4, row_tokens=32, edges=True)
    loader = Loader(crystals, 20, layout)
    whole = [loader.batch(step) for step in range(3)]
    assert all(batch.arrays.is_atom.shape[0] % 4 == 0 for batch in whole)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    by_process = []
    for process in range(2):
        monkeypatch.setattr(hosts, "index", lambda process=process: process)
        assert hosts.share(12) == (6 * process, 6 * process + 6)
        by_process.append([loader.batch(step) for step in range(3)])
    for expected, first, second in zip(whole, *by_process, strict=True):
        assert first.useful_tokens == second.useful_tokens == expected.useful_tokens
        assert first.num_crystals == expected.num_crystals
        joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), first.arrays, second.arrays)
        assert_same(joined, expected.arrays)


def test_in_order_is_all_crystals_in_one_shape(crystals, layout):
    starts = range(0, len(crystals), 20)
    batches = [crystals.num_atoms[i : i + 20] for i in starts]
    one = Layout.for_batches(batches, like=layout, num_devices=4)
    assert len(one.shapes) == 1
    assert one.shapes[0].rows % 4 == 0
    # Rows of another length would be another program for nothing.
    assert one.shapes[0][1:3] == layout.shapes[0][1:3]
    seen = []
    condition = np.arange(len(crystals) * 2.0).reshape(-1, 2)
    for rows, where, indices in in_order(crystals, one, 20, conditions={"pair": condition}):
        assert where.shape == one.shapes[0]
        np.testing.assert_array_equal(where.take_slots(rows.crystal_id), indices)
        by_slot = where.take_slots(rows.conditions["pair"])
        np.testing.assert_array_equal(by_slot, condition[indices])
        seen += indices.tolist()
    assert seen == list(range(len(crystals)))


def test_for_batches_makes_longer_rows_where_a_crystal_needs_them(layout):
    batches = [np.array([3, 4]), np.array([70, 5, 5])]
    one = Layout.for_batches(batches, like=layout)
    assert one.shapes[0].tokens == 128
    for sizes in batches:
        assert one.assign(sizes).shape == one.shapes[0]
    with_edges = Layout((RowShape(2, 32, 5, 256),))
    assert Layout.for_batches(batches, like=with_edges).shapes[0].edges == 70**2 + 2 * 5**2


def test_padded_layout(crystals):
    layout = Layout.plan(crystals.num_atoms, 20, num_devices=8, padded_tokens=20, edges=True)
    assert layout.padded
    assert [s[:3] for s in layout.shapes] == [(24, 20, 1)]
    worst = np.sort(crystals.num_atoms.astype(int))[-20:]
    assert layout.shapes[0].edges >= (worst**2).sum()
    rows, where = fill_rows(crystals, np.arange(20, 40), layout)
    assert where.padded
    assert rows.is_atom.sum(1).tolist() == [*SIZES[20:40], 0, 0, 0, 0]
    like = Layout.for_batches([crystals.num_atoms[:7]], like=layout, num_devices=2)
    assert like.padded
    assert like.shapes[0][:3] == (8, 20, 1)
    with pytest.raises(ValueError, match="20 atoms does not fit into rows padded to 19"):
        Layout.plan(crystals.num_atoms, 20, padded_tokens=19)


def sizes_of_cifs(path):
    """Numbers of atoms, by the formulas of the cells: much faster than parsing the structures."""
    csv.field_size_limit(10**7)
    with gzip.open(path, "rt", newline="") as file:
        cifs = [row["cif"] for row in csv.DictReader(file)]
    formulas = [re.search(r"_chemical_formula_sum\s+'?([^'\n]+)", cif).group(1) for cif in cifs]
    counts = [re.findall(r"[A-Z][a-z]?(\d*)", formula) for formula in formulas]
    return np.array([sum(int(n or 1) for n in numbers) for numbers in counts])


@pytest.mark.parametrize(("name", "largest"), [("mp-20-bt", 20), ("mpts-52", 52)])
def test_rows_are_full_on_real_sizes(shared_dir, name, largest):
    sizes = sizes_of_cifs(shared_dir / "data" / name / "train.csv.gz")
    assert sizes.max() == largest
    layout = Layout.plan(sizes, 256)
    assert len(layout.shapes) <= MAX_SHAPES
    loader = Loader(empty_crystals(sizes), 256, layout)
    batches = [loader.batch(step) for step in range(4 * loader.steps_per_epoch)]
    assert {batch.arrays.is_atom.shape for batch in batches} <= {s[:2] for s in layout.shapes}
    atoms = sum(batch.arrays.is_atom.sum() for batch in batches)
    tokens = sum(batch.arrays.is_atom.size for batch in batches)
    assert atoms / tokens >= 0.95
    assert np.mean([batch.useful_tokens for batch in batches]) >= 0.95
