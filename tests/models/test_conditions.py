"""The embedding of conditions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.models.condition_kinds import (
    CategoricalCondition,
    ChemicalSystemCondition,
    CompositionCondition,
    FloatCondition,
    TextCondition,
)
from chemeleon2_jax.models.conditions import Conditions
from chemeleon2_jax.models.sizes import ConditionSizes
from tests.examples import random_model, relative

ALL = (
    FloatCondition("gap", 0.8, 1.6),
    FloatCondition("raw"),
    CompositionCondition("formula"),
    ChemicalSystemCondition("system"),
    CategoricalCondition("group", num_classes=231),
    TextCondition("text"),
)
SIZES = ConditionSizes(ALL, 6)
GOOD = {"gap": 1.0, "raw": 2, "formula": "NaCl", "system": "Na-Cl", "group": 3, "text": "salt"}


def small():
    return random_model(lambda: Conditions(SIZES, rngs=nnx.Rngs(0)))


def encoded(*crystals):
    """Encode dicts of values that are not null: (1, S, width) of each condition."""
    return {
        c.name: jnp.asarray(c.encode([values.get(c.name) for values in crystals]))[None]
        for c in ALL
    }


def silu(x):
    return x / (1 + np.exp(-x))


def test_embedding_is_the_formula():
    graphdef, params = small()
    module = nnx.merge(graphdef, params)
    values = encoded(GOOD, {"gap": 3.0}, {})
    found = module(values)
    assert found.shape == (1, 3, 6)

    def linear(layer, x):
        return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

    parts = []
    for name in GOOD:
        encoder = module.encoders[name]
        x = np.asarray(values[name][0])
        x = np.where(np.isnan(x), np.asarray(encoder.null_embed[...]), x)
        parts.append(linear(encoder.fc2, silu(linear(encoder.fc1, x))))
    expected = linear(module.fc2, silu(linear(module.fc1, np.concatenate(parts, -1))))
    assert relative(found[0], expected) < 1e-5
    assert relative(module.null(), found[0, 2]) < 1e-6


def test_gradients_are_finite_where_values_are_null():
    graphdef, params = small()
    values = encoded(GOOD, {}, {"formula": "MgO"})

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(values))))(params)

    for path, leaf in nnx.to_flat_state(gradient(params)):
        assert np.isfinite(leaf[...]).all(), path
        assert np.abs(leaf[...]).max() > 0, path


def test_null_inputs_are_learned_only_where_they_are_used():
    graphdef, params = small()
    gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(encoded(GOOD))))(params)
    for encoder in gradient["encoders"].values():
        assert np.abs(encoder["null_embed"][...]).max() == 0


@pytest.mark.parametrize("names", [(), ("gap",), (*GOOD, "smell")])
def test_wrong_names(names):
    module = nnx.merge(*small())
    values = {name: jnp.zeros((1, 1, 1)) for name in names}
    with pytest.raises(ValueError, match="takes the conditions gap, raw, formula"):
        module(values)
