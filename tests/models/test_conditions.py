"""Conditions: their values as arrays, and what the network makes of them."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Element

from chemeleon2_jax.inference.condition_encoding import encode_values, read_composition, read_value
from chemeleon2_jax.models.conditions import Conditions
from chemeleon2_jax.models.sizes import KINDS, Condition, ConditionSizes
from tests.examples import random_model, relative

GAP = Condition("gap", "float", 0.8, 1.6)
RAW = Condition("raw", "float")
FORMULA = Condition("formula", "composition")
SYSTEM = Condition("system", "chemical_system")
GROUP = Condition("group", "categorical", num_classes=231)
TEXT = Condition("text", "text")
ALL = (GAP, RAW, FORMULA, SYSTEM, GROUP, TEXT)
SIZES = ConditionSizes(ALL, 6)
GOOD = {"gap": 1.0, "raw": 2, "formula": "NaCl", "system": "Na-Cl", "group": 3, "text": "salt"}


def only(width, **values):
    """A row of zeros but for some: Z11=0.5."""
    row = np.zeros(width)
    for name, value in values.items():
        row[int(name[1:])] = value
    return row


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        (GAP, 2.4, [1.0]),
        (GAP, np.float32(0.0), [-0.5]),
        (RAW, 7, [7.0]),
        (Condition("mean", "float", mean=3.0), 7.0, [7.0]),
        (FORMULA, "Ba1Cr1F6", only(100, Z56=1 / 8, Z24=1 / 8, Z9=6 / 8)),
        (FORMULA, "Ba2Cr2F12", only(100, Z56=1 / 8, Z24=1 / 8, Z9=6 / 8)),
        (FORMULA, "Ca(OH)2", only(100, Z20=0.2, Z8=0.4, Z1=0.4)),
        (FORMULA, Composition("Fe2O3"), only(100, Z26=0.4, Z8=0.6)),
        (FORMULA, {"Es": 3}, only(100, Z99=1.0)),
        (FORMULA, "D2H2O2", only(100, Z1=4 / 6, Z8=2 / 6)),
        (SYSTEM, "Ba-Cr-F", only(100, Z56=1, Z24=1, Z9=1)),
        (SYSTEM, "Co - Co-Pt", only(100, Z27=1, Z78=1)),
        (GROUP, 166, only(231, Z166=1)),
        (GROUP, np.int64(0), only(231, Z0=1)),
        (TEXT, "anything", np.zeros(100)),
    ],
)
def test_values(condition, value, expected):
    found = encode_values(condition, [None, value])
    assert (found.shape, found.dtype) == ((2, condition.width), np.float32)
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], expected, rtol=1e-6)


@pytest.mark.parametrize("condition", ALL)
def test_no_values_are_no_rows(condition):
    assert encode_values(condition, []).shape == (0, condition.width)


@pytest.mark.parametrize(
    ("condition", "value", "reason"),
    [
        (GAP, "1.5", "not a number"),
        (GAP, True, "not a number"),
        (GAP, [1.0], "not a number"),
        (GAP, np.nan, "not finite; None is the null condition"),
        (GAP, -np.inf, "not finite"),
        (FORMULA, "", "not a formula ("),
        (FORMULA, "Na0", "not a formula of positive numbers of atoms"),
        (FORMULA, "NaXx", "Xx is no element up to Z = 99"),
        (FORMULA, "nonsense!", "not a formula"),
        (FORMULA, "Fm2O3", "Fm is no element up to Z = 99"),
        (FORMULA, {"Na": -1.0}, "not a formula"),
        (FORMULA, {"Na": np.nan}, "not a formula of positive numbers of atoms"),
        (FORMULA, {"X": 1}, "X is no element up to Z = 99"),
        (FORMULA, 11, 'not a composition; give a formula such as "Ba1Cr1F6"'),
        (FORMULA, ["Na", "Cl"], "not a composition"),
        (SYSTEM, "Ba-Xx", "'Xx' is no element"),
        (SYSTEM, "BaCrF6", "'BaCrF6' is no element"),
        (SYSTEM, "", "'' is no element"),
        (SYSTEM, "Ba-", "'' is no element"),
        (SYSTEM, "Fm-O", "Fm is beyond Z = 99"),
        (SYSTEM, ["Ba"], "not a text"),
        (GROUP, 231, "classes go from 0 to 230"),
        (GROUP, -1, "classes go from 0 to 230"),
        (GROUP, 3.0, "not an integer"),
        (GROUP, "3", "not an integer"),
        (GROUP, True, "not an integer"),
        (TEXT, 3, "not a text"),
    ],
)
def test_values_that_cannot_be(condition, value, reason):
    with pytest.raises(ValueError, match="condition ") as caught:
        encode_values(condition, [GOOD[condition.name], value])
    start = f"condition {condition.name!r}, value 1 ({value!r}): "
    assert str(caught.value).startswith(start)
    assert reason in str(caught.value)


@given(st.text(st.characters(codec="utf-8"), max_size=12) | st.from_regex(r"([A-Z][a-z]?\d?){1,4}"))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_composition_or_a_value_error(text):
    try:
        composition = read_composition(text)
    except ValueError:
        return
    row = encode_values(FORMULA, [text])[0]
    assert row.sum() == pytest.approx(1.0, abs=1e-5)
    assert set(np.flatnonzero(row)) == {element.Z for element in composition.elements}


@given(st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True))
@settings(max_examples=30, deadline=None)
def test_every_element_has_its_place(numbers):
    symbols = [Element.from_Z(z).symbol for z in numbers]
    row = encode_values(SYSTEM, ["-".join(symbols)])[0]
    assert sorted(np.flatnonzero(row)) == sorted(numbers)
    fractions = encode_values(FORMULA, ["".join(f"{s}2" for s in symbols)])[0]
    np.testing.assert_allclose(fractions, row / len(numbers), rtol=1e-6)


@pytest.mark.parametrize(
    ("condition", "text", "value"),
    [
        (GAP, "1.5", 1.5),
        (GAP, " none ", None),
        (GROUP, "166", 166),
        (GROUP, "None", None),
        (FORMULA, "InF", "InF"),
        (FORMULA, "NaN", "NaN"),
        (SYSTEM, "In-F ", "In-F"),
        (TEXT, "1", "1"),
    ],
)
def test_text_stands_for_a_value(condition, text, value):
    found = read_value(condition, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("condition", "text", "wanted"),
    [(GAP, "wide", "a number"), (GROUP, "1.5", "an integer"), (GROUP, "", "an integer")],
)
def test_text_that_stands_for_none(condition, text, wanted):
    with pytest.raises(ValueError, match=f"takes {wanted}, not {text!r}"):
        read_value(condition, text)


# --- sizes ----------------------------------------------------------------------------------------


def test_sizes_survive_json():
    again = ConditionSizes.from_dict(json.loads(json.dumps(SIZES.to_dict())))
    assert again == SIZES
    assert hash(again) == hash(SIZES)
    assert again.names == tuple(GOOD)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Condition("a", "smell"), "'a' is of kind 'smell'; choose one of"),
        (lambda: Condition("a", "categorical"), "'a' is categorical, but has no num_classes"),
        (lambda: Condition("a", "float", 0.0, 0.0), "'a' has std 0.0; it must be positive"),
        (lambda: Condition("a", "float", 0.0, np.nan), "'a' has std nan"),
        (lambda: ConditionSizes((), 4), "conditions must be one or more"),
        (lambda: ConditionSizes((GAP, GAP), 4), "with different names"),
    ],
)
def test_sizes_that_cannot_be(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_all_kinds_are_tried_here():
    assert {condition.kind for condition in ALL} == set(KINDS)


# --- the network ----------------------------------------------------------------------------------


def small():
    return random_model(lambda: Conditions(SIZES, rngs=nnx.Rngs(0)))


def encoded(*wanted):
    """(1, S, width) of each condition; `wanted` are dicts with what is not null."""
    return {
        c.name: jnp.asarray(encode_values(c, [values.get(c.name) for values in wanted]))[None]
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
def test_other_names_are_an_error(names):
    module = nnx.merge(*small())
    values = {name: jnp.zeros((1, 1, 1)) for name in names}
    with pytest.raises(ValueError, match="takes the conditions gap, raw, formula"):
        module(values)
