"""What a sampler is asked for: counts, sizes, conditions and atom types."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Composition

from chemeleon2_jax.inference.generator import draw_num_atoms
from chemeleon2_jax.inference.requests import (
    Hits,
    count_hits,
    encode_conditions,
    make_prompts,
    sum_hits,
)
from chemeleon2_jax.models.condition_kinds import (
    CategoricalCondition,
    ChemicalSystemCondition,
    CompositionCondition,
    FloatCondition,
)
from chemeleon2_jax.models.sizes import ConditionSizes

TABLE = np.array([0, 0, 5, 3, 9, 1])
FORMULA, GAP = CompositionCondition("composition"), FloatCondition("gap", 1.0, 2.0)
GROUP = CategoricalCondition("group", num_classes=4)


def model(*conditions, predicts=True):
    """As much of an LDM as the prompts see."""
    sizes = ConditionSizes(conditions, 8) if conditions else None
    vae = SimpleNamespace(sizes=SimpleNamespace(atom_type_predict=predicts))
    return SimpleNamespace(sizes=SimpleNamespace(conditions=sizes), vae=vae, size_table=TABLE)


FREE, CONDITIONAL = model(), model(FORMULA, GAP, GROUP)
CSP = model(FORMULA, GAP, predicts=False)


def sizes_of(parts, **options):
    return make_prompts(parts, **options).num_atoms.tolist()


# --- how many, and of which size ------------------------------------------------------------------


def test_sizes_are_drawn_given_or_repeated():
    assert sizes_of(FREE, num_samples=9, seed=3) == draw_num_atoms(TABLE, 9, 3).tolist()
    assert sizes_of(FREE, num_samples=5, num_atoms=[2, 7]) == [2, 7, 2, 7, 2]
    assert sizes_of(FREE, num_atoms=np.array([4, 1])) == [4, 1]


def test_as_many_as_there_are_values():
    assert len(sizes_of(CONDITIONAL, conditions={"gap": [0.5, 1.0, 2.0]})) == 3
    assert len(sizes_of(CONDITIONAL, conditions={"gap": [0.5, 1.0], "group": [3]})) == 2
    assert len(sizes_of(CONDITIONAL, conditions={"gap": np.linspace(0, 1, 4)})) == 4
    assert sizes_of(CONDITIONAL, conditions={"composition": "NaCl"}) == [2]


def test_formulas_say_how_many_atoms():
    formulas = ["BaTiO3", "Ba2Ti2O6", Composition("MgO")]
    assert sizes_of(CONDITIONAL, conditions={"composition": formulas}) == [5, 10, 2]
    assert sizes_of(CONDITIONAL, num_samples=3, conditions={"composition": "CsCl"}) == [2, 2, 2]
    asked = {"composition": "CsCl"}
    assert sizes_of(CONDITIONAL, num_atoms=[2, 4], conditions=asked) == [2, 4]
    assert sizes_of(CONDITIONAL, num_atoms=[4], conditions={"composition": "Cs0.5Cl0.5"}) == [4]


def test_where_no_formula_is_given_sizes_are_drawn():
    drawn = draw_num_atoms(TABLE, 3, 7).tolist()
    asked = {"composition": [None, "BaTiO3", None]}
    sizes = sizes_of(CONDITIONAL, num_samples=3, conditions=asked, seed=7)
    assert sizes == [drawn[0], 5, drawn[2]]


# --- conditions -----------------------------------------------------------------------------------


def test_one_value_is_for_all_and_what_is_missing_is_null():
    prompts = make_prompts(
        CONDITIONAL, num_samples=2, conditions={"gap": [3.0], "group": [1, None]}
    )
    assert list(prompts.conditions) == ["composition", "gap", "group"]
    assert np.isnan(prompts.conditions["composition"]).all()
    np.testing.assert_array_equal(prompts.conditions["gap"], [[1.0], [1.0]])
    np.testing.assert_array_equal(prompts.conditions["group"], GROUP.encode([1, None]))
    assert prompts.atom_types is None


@pytest.mark.parametrize("asked", [None, {}, {"gap": None}, {"gap": [None, None], "group": None}])
def test_nothing_asked_is_no_condition(asked):
    assert make_prompts(CONDITIONAL, num_samples=2, conditions=asked).conditions == {}
    assert encode_conditions(asked, CONDITIONAL.sizes.conditions, 2) == {}


def test_conditions_alone():
    encoded = encode_conditions({"composition": "MgO"}, CONDITIONAL.sizes.conditions, 3)
    expected = FORMULA.encode(["MgO"] * 3)
    np.testing.assert_array_equal(encoded["composition"], expected)
    assert np.isnan(encoded["gap"]).all()
    assert encode_conditions(None, None, 3) == {}


# --- atom types -----------------------------------------------------------------------------------


def test_given_atoms_are_in_the_order_of_the_formula():
    asked = {"composition": ["TiBaO3", "Cl2Mg", {"F": 1, "Li": 1}, "DHO"]}
    prompts = make_prompts(CSP, conditions=asked)
    assert [types.tolist() for types in prompts.atom_types] == [
        [22, 56, 8, 8, 8],
        [17, 17, 12],
        [9, 3],
        [1, 1, 8],
    ]
    assert prompts.num_atoms.tolist() == [5, 3, 2, 3]


def test_more_formula_units_than_one():
    asked = {"composition": "NaCl", "gap": 1.0}
    prompts = make_prompts(CSP, num_atoms=[2, 6], conditions=asked)
    assert [types.tolist() for types in prompts.atom_types] == [[11, 17], [11] * 3 + [17] * 3]


# --- what cannot be -------------------------------------------------------------------------------

SALT = {"composition": "NaCl"}


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        (FREE, {}, "give num_samples, num_atoms or both"),
        (FREE, {"num_samples": 0}, "num_samples must be at least 1, not 0"),
        (FREE, {"num_samples": 0, "num_atoms": [2]}, "num_samples must be at least 1"),
        (FREE, {"num_atoms": [2, 0]}, "num_atoms must be positive integers"),
        (FREE, {"num_samples": 1, "conditions": SALT}, "takes no conditions, but is given 'comp"),
        (CONDITIONAL, {"conditions": {"gap": 1.0}}, "give num_samples, num_atoms or both"),
        (CONDITIONAL, {"conditions": {"gap": []}}, "give num_samples, num_atoms or both"),
        (
            CONDITIONAL,
            {"num_samples": 1, "conditions": {"composittion": "NaCl"}},
            "no condition 'composittion'. Did you mean 'composition'.* takes composition, gap",
        ),
        (
            CONDITIONAL,
            {"num_samples": 1, "conditions": {"weight": 1.0}},
            "no condition 'weight'. It takes composition, gap, group",
        ),
        (
            CONDITIONAL,
            {"num_samples": 3, "conditions": {"gap": [1.0, 2.0]}},
            "condition 'gap' has 2 values for 3 crystals",
        ),
        (
            CONDITIONAL,
            {"num_samples": 3, "conditions": {"gap": []}},
            "condition 'gap' has 0 values for 3 crystals",
        ),
        (
            CONDITIONAL,
            {"num_samples": 2, "conditions": {"group": [1, 4]}},
            r"condition 'group', value 1 \(4\): classes go from 0 to 3",
        ),
        (
            CONDITIONAL,
            {"conditions": {"composition": ["NaCl", "Xx"]}},
            r"composition 1 \('Xx'\): Xx is no element",
        ),
        (CONDITIONAL, {"conditions": {"composition": "Na0.5Cl"}}, "Na0.5 Cl1 has 1.5 atoms"),
        (CONDITIONAL, {"conditions": {"composition": "Na0.5Cl0.5"}}, "crystal 0: 1 atoms cannot"),
        (
            CONDITIONAL,
            {"num_atoms": [2, 3], "conditions": SALT},
            "crystal 1: 3 atoms cannot be Na1 Cl1",
        ),
        (CSP, {"num_samples": 2}, 'csp.*give formulas, as in conditions={"composition"'),
        (CSP, {"num_samples": 2, "conditions": {"gap": 1.0}}, "csp.*give formulas"),
        (
            CSP,
            {"conditions": {"composition": ["NaCl", None]}},
            "crystal 1 has no composition, but the VAE .*csp",
        ),
        (
            model(GAP, predicts=False),
            {"num_samples": 1},
            "takes no composition: it cannot",
        ),
        (model(predicts=False), {"num_samples": 1}, "takes no composition: it cannot"),
    ],
)
def test_what_cannot_be_asked_for(parts, options, message):
    with pytest.raises(ValueError, match=message):
        make_prompts(parts, **options)


# --- what the crystals have -----------------------------------------------------------------------


def test_crystals_with_what_they_were_asked_for_are_counted():
    system = ChemicalSystemCondition("system")
    sizes = ConditionSizes((FORMULA, system, GAP), 8)
    salt, oxide = np.array([11, 17, 17, 11]), np.array([22, 8, 8])
    atoms = [salt, oxide, None, oxide]
    conditions = {"composition": ["NaCl", "TiO2", "NaCl", None], "system": "O-Ti", "gap": 1.0}
    assert count_hits(conditions, sizes, atoms) == {"composition": Hits(3, 2), "system": Hits(4, 2)}
    assert count_hits({"composition": "TiO"}, sizes, atoms) == {"composition": Hits(4, 0)}
    assert count_hits({"composition": "Na2Cl2"}, sizes, [None]) == {"composition": Hits(1, 0)}
    assert count_hits({"gap": 1.0, "composition": None}, sizes, atoms) == {}
    assert count_hits({}, None, atoms) == {}


def test_hits_of_parts_are_those_of_the_whole():
    sizes, salt = ConditionSizes((FORMULA,), 8), np.array([11, 17])
    conditions = {"composition": ["NaCl", "KCl", "NaCl", None]}
    atoms = [salt, salt, None, salt]
    parts = [
        count_hits(conditions, sizes, atoms[first:end], first=first, count=4)
        for first, end in ((0, 1), (1, 4), (4, 4))
    ]
    whole = {"composition": Hits(3, 1)}
    assert sum_hits(parts) == count_hits(conditions, sizes, atoms) == whole
