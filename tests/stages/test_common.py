"""Shared steps of the stages: data in rows, evaluation, sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.common.errors import ConfigError, DatasetError
from chemeleon2_jax.stages import build
from chemeleon2_jax.stages.common import (
    augmentation,
    compute_dtype,
    evaluator,
    sum_terms,
)
from chemeleon2_jax.stages.data import load_data
from chemeleon2_jax.training.parallel import make_mesh
from tests.tiny import ldm_config, make_crystals, vae_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def atoms_of(batches):
    """(crystal, atomic number) of all atoms in batches of rows, sorted."""
    atoms = []
    for rows in batches:
        owner = np.take_along_axis(np.asarray(rows.crystal_id), np.asarray(rows.slot), axis=1)
        real = np.asarray(rows.is_atom)
        atoms += zip(owner[real], np.asarray(rows.atom_types)[real], strict=True)
    return sorted(atoms)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_all_crystals_come_in_order_in_rows_of_one_shape(tiny_data, layout):
    data = load_data(vae_config(tiny_data, packing={"layout": layout}), edges=True)
    assert (len(data.train), len(data.val)) == (len(make_crystals()), 7)
    for crystals, batches in (
        (data.train, [rows for rows, _, _ in data.train_batches()]),
        (data.val, [rows for rows, _, _ in data.val_batches()]),
    ):
        assert len(batches) == -(-len(crystals) // 12)
        assert len({jax.tree.map(jnp.shape, rows).atom_types for rows in batches}) == 1
        owner = np.repeat(np.arange(len(crystals)), crystals.num_atoms)
        assert atoms_of(batches) == sorted(zip(owner, crystals.atom_types, strict=True))
    assert data.layout.padded == (layout == "padded")
    if layout == "padded":
        assert batches[0].atom_types.shape == (7, 8)  # 8 atoms are the largest crystal's
    else:
        assert batches[0].atom_types.shape[1] == 64
    assert set(batches[0].edges) == {"senders", "receivers", "is_edge"}


def test_indices_of_validation_are_those_of_the_crystals(tiny_data):
    data = load_data(vae_config(tiny_data, data={"batch_size": 4}), edges=False)
    seen = []
    for rows, assignment, indices in data.val_batches():
        sizes = [len(types) for types in assignment.split_atoms(rows.atom_types)]
        assert sizes == data.val.num_atoms[indices].tolist()
        seen += indices.tolist()
        assert not rows.edges
    assert seen == list(range(7))


def test_size_table_counts_the_training_set(tiny_data):
    data = load_data(vae_config(tiny_data), edges=False)
    assert data.size_table == (0, 0, 20, 0, 0, 12, 0, 0, 9)


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ({"packing": {"row_tokens": 4}}, ConfigError, "row_tokens is 4, but the largest .* 8"),
        ({"packing": {"layout": "loose"}}, ConfigError, "packing.layout is 'loose'"),
        ({"data": {"target_condition": "energy"}}, DatasetError, "no column 'energy'"),
        ({"data": {"data_dir": "nowhere"}}, DatasetError, "nowhere is not a folder"),
        ({"data": {"max_atoms": 1}}, DatasetError, "no good row"),
    ],
)
def test_data_that_cannot_be_used(tiny_data, blocks, error, message):
    with pytest.raises(error, match=message):
        load_data(vae_config(tiny_data, **blocks), edges=False)


def test_row_tokens_and_max_atoms(tiny_data):
    config = vae_config(tiny_data, packing={"row_tokens": 20}, data={"max_atoms": 5})
    data = load_data(config, edges=False)
    assert data.train.num_atoms.max() == 5
    assert {shape.tokens for shape in data.layout.shapes} == {20}


def test_precision():
    config = vae_config("unused", trainer={"precision": "bf16"})
    assert compute_dtype(config) == jnp.bfloat16
    config.trainer.precision = "fp16"
    with pytest.raises(ConfigError, match=r"trainer\.precision is 'fp16'; it is f32 or bf16"):
        compute_dtype(config)


def test_augmentation_options():
    block = {"augmentation.rotate": False, "augmentation.per_crystal": False}
    options = augmentation(vae_config("unused", vae_module=block).vae_module.augmentation)
    assert (options.rotate, options.translate, options.per_crystal) == (False, True, False)


def test_terms_add_up_in_float64():
    # 2**24 + 1 is no float32: added one by one the ones would vanish.
    large = {
        "loss": (jnp.float32(2**24), jnp.float32(3)),
        "other": (jnp.float32(-1), jnp.float32(1)),
    }
    one = {"loss": (jnp.float32(1), jnp.float32(1))}
    assert sum_terms([large, one, one]) == {"loss": (2.0**24 + 2, 5.0), "other": (-1.0, 1.0)}
    assert sum_terms([]) == {}


def test_evaluator_gives_whole_arrays():
    double = evaluator(lambda x: {"twice": 2 * x}, make_mesh(1))
    twice = double(jnp.arange(4.0))["twice"]
    assert twice.is_fully_replicated
    np.testing.assert_array_equal(twice, [0, 2, 4, 6])


def test_unknown_stage(tiny_data):
    config = ldm_config(tiny_data, "unused")
    config.task_name = "train_all"
    with pytest.raises(ConfigError, match="task_name is 'train_all'"):
        build(config)
