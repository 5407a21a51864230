"""Kinds of conditions: values from text and crystals, their encoding, and JSON."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Element

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.crystals.formulas import read_composition
from chemeleon2_jax.models.condition_kinds import (
    KINDS,
    CategoricalCondition,
    ChemicalSystemCondition,
    CompositionCondition,
    FloatCondition,
    TextCondition,
    read_condition,
)
from chemeleon2_jax.models.sizes import ConditionSizes

GAP = FloatCondition("gap", 0.8, 1.6)
RAW = FloatCondition("raw")
FORMULA = CompositionCondition("formula")
SYSTEM = ChemicalSystemCondition("system")
GROUP = CategoricalCondition("group", num_classes=231)
TEXT = TextCondition("text")
ALL = (GAP, RAW, FORMULA, SYSTEM, GROUP, TEXT)
SIZES = ConditionSizes(ALL, 6)
GOOD = {"gap": 1.0, "raw": 2, "formula": "NaCl", "system": "Na-Cl", "group": 3, "text": "salt"}


def only(width, **values):
    """Zeros (width,) except for some indices: Z11=0.5."""
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
        (FloatCondition("mean", mean=3.0), 7.0, [7.0]),
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
def test_values_are_encoded(condition, value, expected):
    encoded = condition.encode([None, value])
    assert (encoded.shape, encoded.dtype) == ((2, condition.width), np.float32)
    assert np.isnan(encoded[0]).all()
    np.testing.assert_allclose(encoded[1], expected, rtol=1e-6)


@pytest.mark.parametrize("condition", ALL)
def test_no_values_are_no_rows(condition):
    assert condition.encode([]).shape == (0, condition.width)


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
def test_wrong_values(condition, value, reason):
    with pytest.raises(ValueError, match="condition ") as caught:
        condition.encode([GOOD[condition.name], value])
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
    row = FORMULA.encode([text])[0]
    assert row.sum() == pytest.approx(1.0, abs=1e-5)
    assert set(np.flatnonzero(row)) == {element.Z for element in composition.elements}


@given(st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True))
@settings(max_examples=30, deadline=None)
def test_every_element_has_its_place(numbers):
    symbols = [Element.from_Z(z).symbol for z in numbers]
    row = SYSTEM.encode(["-".join(symbols)])[0]
    assert sorted(np.flatnonzero(row)) == sorted(numbers)
    fractions = FORMULA.encode(["".join(f"{s}2" for s in symbols)])[0]
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
def test_values_from_text(condition, text, value):
    read = condition.read(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("condition", "text", "wanted"),
    [(GAP, "wide", "a number"), (GROUP, "1.5", "an integer"), (GROUP, "", "an integer")],
)
def test_text_that_is_no_value(condition, text, wanted):
    with pytest.raises(ValueError, match=f"takes {wanted}, not {text!r}"):
        condition.read(text)


def test_crystals_are_encoded_like_values():
    """Training and requests describe the same crystal by the same input."""
    triples = [([11, 17, 17], np.eye(3) * 0.4, np.eye(3) * 5), ([55], np.zeros(3), np.eye(3) * 4)]
    targets = {"gap": np.array([1.5, 0.5]), "raw": np.array([7.0, 8.0]), "group": [3.0, 0.0]}
    crystals = Crystals.from_list(triples, targets=targets)
    values = {
        "gap": [1.5, 0.5],
        "raw": [7, 8],
        "formula": ["NaCl2", "Cs"],
        "system": ["Na-Cl", "Cs"],
        "group": [3, 0],
    }
    conditions = tuple(condition for condition in ALL if condition.source != "none")
    inputs = ConditionSizes(conditions, 6).encode_crystals(crystals)
    assert inputs.keys() == values.keys()
    for condition in conditions:
        expected = condition.encode(values[condition.name])
        assert inputs[condition.name].dtype == np.float32
        np.testing.assert_allclose(inputs[condition.name], expected, rtol=1e-6)
        text = condition.describe(crystals, 0)
        np.testing.assert_allclose(
            condition.encode([condition.read(text)]), expected[:1], rtol=1e-6
        )


# --- sizes ----------------------------------------------------------------------------------------


def test_sizes_survive_json():
    again = ConditionSizes.from_dict(json.loads(json.dumps(SIZES.to_dict())))
    assert again == SIZES
    assert hash(again) == hash(SIZES)
    assert again.names == tuple(GOOD)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: read_condition({"name": "a", "kind": "smell"}),
            "'a' is of kind 'smell'; choose one",
        ),
        (
            lambda: read_condition({"name": "a", "kind": "float", "top": 1.0}),
            "'a' has the option 'top', which no kind has",
        ),
        (lambda: CategoricalCondition("a"), "'a' is categorical, but has no num_classes"),
        (lambda: FloatCondition("a", 0.0, 0.0), "'a' has std 0.0; it must be positive"),
        (lambda: FloatCondition("a", 0.0, np.nan), "'a' has std nan"),
        (lambda: ConditionSizes((), 4), "conditions must be one or more"),
        (lambda: ConditionSizes((GAP, GAP), 4), "with different names"),
    ],
)
def test_wrong_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_all_kinds_are_tested_here():
    assert {condition.kind for condition in ALL} == set(KINDS)


def test_a_checkpoint_holds_the_options_of_all_kinds():
    """As checkpoints of the first version do."""
    options = {"mean": None, "std": None, "num_classes": 0}
    for condition, name, kind, own in (
        (GAP, "gap", "float", {"mean": 0.8, "std": 1.6}),
        (FORMULA, "formula", "composition", {}),
        (GROUP, "group", "categorical", {"num_classes": 231}),
    ):
        expected = {"name": name, "kind": kind, **options, **own}
        assert condition.to_dict().items() >= expected.items()


def test_a_shared_option_has_one_default():
    """A checkpoint holds one block of options for all kinds."""
    defaults = {}
    for kind in KINDS.values():
        for field in fields(kind):
            assert defaults.setdefault(field.name, field.default) == field.default, field.name
