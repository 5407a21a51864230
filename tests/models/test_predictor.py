"""The predictor: its formula, packing, dropout, and units."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.models import predictor
from chemeleon2_jax.models.predictor import DROPOUT, Predictor, standardise, to_units
from chemeleon2_jax.models.sizes import PredictorSizes, Target
from chemeleon2_jax.models.vae import Posterior
from chemeleon2_jax.rows.rows import atom_normal, crystal_keys
from tests.examples import (
    SIZES,
    assert_layouts_agree,
    packed,
    random_crystals,
    random_model,
    relative,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

TARGETS = (Target("gap", 0.8, 1.6), Target("density"))
SMALL = PredictorSizes(4, 12, TARGETS)
VARIANTS = [
    SMALL,
    replace(SMALL, reduce="sum"),
    replace(SMALL, use_encoder_features=False, latent_dim=8),
]


def build(sizes, *, dtype=jnp.float32):
    return random_model(lambda: Predictor(sizes, rngs=nnx.Rngs(0), dtype=dtype))


def posterior_of(rows, sizes=SMALL):
    """A posterior of random numbers that depend on the atom alone."""
    mean = atom_normal(jax.random.key(0), rows, sizes.latent_dim)
    features = atom_normal(jax.random.key(1), rows, sizes.encoder_dim)
    return Posterior(mean, jnp.zeros_like(mean), features)


def apply(graphdef, params, rows, sizes=SMALL):
    return nnx.merge(graphdef, params)(posterior_of(rows, sizes), rows)


def apply_with_dropout(graphdef, params, rows, key):
    x = predictor.pool_features(posterior_of(rows), rows, SMALL).reshape(-1, SMALL.width)
    keys = crystal_keys(key, rows).reshape(-1)
    found = nnx.merge(graphdef, params).head(x, dropout_keys=keys)
    return found.reshape(*rows.is_crystal.shape, -1)


def norm(x, layer):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


@pytest.mark.parametrize("sizes", VARIANTS)
def test_prediction_is_the_formula(sizes):
    graphdef, params = build(sizes)
    model = nnx.merge(graphdef, params)
    batch = packed(random_crystals())
    found = batch.where.take_slots(apply(graphdef, params, batch.rows, sizes=sizes))
    posterior = posterior_of(batch.rows, sizes)
    atoms = posterior.mean
    if sizes.use_encoder_features:
        atoms = jnp.concatenate([atoms, posterior.features], -1)
    reduce = {"mean": np.mean, "sum": np.sum}[sizes.reduce]
    x = np.stack([reduce(values, 0) for values in batch.where.split_atoms(atoms)])
    assert x.shape == (len(SIZES), sizes.width)

    def linear(layer, x):
        return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

    for layer, layer_norm in ((model.fc1, model.norm1), (model.fc2, model.norm2)):
        x = norm(linear(layer, x), layer_norm)
        x = x / (1 + np.exp(-x))
    assert relative(found, linear(model.fc3, x)) < 1e-5


def test_widths():
    _, params = build(replace(SMALL, latent_dim=8, encoder_dim=64))
    shapes = {
        ".".join(path): leaf.shape
        for path, leaf in nnx.to_flat_state(params)
        if "norm" not in path[0]
    }
    assert shapes == {
        "fc1.kernel": (72, 18),
        "fc1.bias": (18,),
        "fc2.kernel": (18, 36),
        "fc2.bias": (36,),
        "fc3.kernel": (36, 2),
        "fc3.bias": (2,),
    }


@pytest.mark.parametrize("dropout", [False, True])
def test_packing_changes_no_output_and_no_gradient(dropout):
    graphdef, params = build(SMALL)

    def total(params, rows, draws):
        del draws
        found = (
            apply_with_dropout(graphdef, params, rows, jax.random.key(5))
            if dropout
            else apply(graphdef, params, rows)
        )
        value = jnp.sum(jnp.sin(found) * rows.is_crystal[..., None])
        return value, ({}, {"found": found})

    assert_layouts_agree(total, params, random_crystals(), draw=lambda rows: None)


def test_dropout_depends_on_its_key():
    graphdef, params = build(SMALL)
    batch = packed(random_crystals())
    run = jax.jit(lambda key: apply_with_dropout(graphdef, params, batch.rows, key))
    first, again, other = (
        batch.where.take_slots(run(jax.random.key(number))) for number in (1, 1, 2)
    )
    np.testing.assert_array_equal(again, first)
    assert (np.abs(other - first).max(-1) > 1e-4).any()
    plain = batch.where.take_slots(apply(graphdef, params, batch.rows))
    assert (np.abs(first - plain).max(-1) > 1e-4).any()


def test_a_tenth_is_dropped_and_the_mean_kept():
    batch = packed(random_crystals([2] * 60))
    x = jnp.ones((batch.rows.is_crystal.size, 500))
    keys = crystal_keys(jax.random.key(0), batch.rows).reshape(-1)
    dropped = np.asarray(predictor._drop(x, keys))
    dropped = dropped.reshape(*batch.rows.is_crystal.shape, -1)[np.asarray(batch.rows.is_crystal)]
    assert set(np.unique(dropped).tolist()) == {0.0, np.float32(1 / (1 - DROPOUT))}
    share = (dropped == 0).mean()
    assert abs(share - DROPOUT) < 4 * np.sqrt(0.09 / dropped.size)
    assert len({row.tobytes() for row in dropped}) == len(dropped)  # a mask per crystal


def test_bfloat16_is_close_and_comes_out_in_float32():
    batch = packed(random_crystals())
    exact = apply(*build(SMALL), batch.rows)
    rough = apply(*build(SMALL, dtype=jnp.bfloat16), batch.rows)
    assert rough.dtype == jnp.float32
    assert 1e-5 < relative(rough, exact) < 5e-2
    assert np.isfinite(exact).all()  # empty slots, too


def test_units():
    values = np.array([[0.5, 0.5], [-1.0, 2.0]])
    found = to_units(values, SMALL)
    np.testing.assert_allclose(found[:, 0], values[:, 0] * (1.6 + 1e-5) + 0.8, rtol=1e-12)
    np.testing.assert_array_equal(found[:, 1], values[:, 1])
    np.testing.assert_allclose(standardise(found, SMALL), values, rtol=1e-12)
    # A constant target stays finite.
    constant = replace(SMALL, targets=(Target("constant", 2.0, 0.0),))
    assert standardise(np.array([[2.0]]), constant).tolist() == [[0.0]]


def test_sizes_survive_json():
    again = PredictorSizes.from_dict(json.loads(json.dumps(SMALL.to_dict())))
    assert again == SMALL
    assert hash(again) == hash(SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": "max"}, "reduce is 'max'; choose one of"),
        ({"targets": ()}, "targets must be one or more"),
        ({"targets": (Target("gap"), Target("gap"))}, "with different names"),
    ],
)
def test_wrong_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **options)
