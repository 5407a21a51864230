"""Rewards made by name, with the defaults of their options."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.crystals.structures import arrays_from_structure, structures_to_crystals
from chemeleon2_jax.rewards.build import build_component, check_reward
from chemeleon2_jax.rewards.component import Context, Models
from chemeleon2_jax.rewards.custom import read_json
from chemeleon2_jax.rewards.registry import REWARDS
from chemeleon2_jax.workers import WorkerPool
from tests.tiny import caesium_chloride, make_crystals, perovskite, rocksalt

STRUCTURES = [
    rocksalt("Na", "Cl", 5.64),
    caesium_chloride("Cs", "Cl", 4.12),
    perovskite("Sr", "Ti", 3.905),
    rocksalt("Mg", "O", 4.21),
]
CRYSTALS = [*(arrays_from_structure(structure) for structure in STRUCTURES), None]


def options_of(name, **changes):
    options = dict(REWARDS[name].options())
    assert set(changes) <= set(options)
    return options | changes


class Sizes:
    """Features with known values."""

    def structure_features(self, crystals):
        return np.array([[np.nan] * 2 if c is None else [len(c[0]), c[2][0, 0]] for c in crystals])

    def composition_features(self, crystals):
        return np.array([[np.nan] if c is None else [np.mean(c[0])] for c in crystals])


@pytest.fixture(scope="module")
def context():
    """Models with known answers: a predictor of the number of atoms."""

    def open_predictor(path):
        def predict(crystals):
            sizes = np.array([np.nan if c is None else len(c[0]) for c in crystals])
            return {"size": sizes, "half": sizes / 2}

        return (("size",) if path == "one" else ("size", "half")), predict

    models = Models(Sizes(), open_predictor)
    with WorkerPool(1) as pool:
        yield Context(models, lambda: structures_to_crystals(make_crystals()), pool)


def scores_of(context, name, crystals=CRYSTALS, **changes):
    component = build_component(name, options_of(name, **changes), context)
    return component.score(component.prepare(crystals, context.pool), context.pool)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("atomic_density", {}, [len(s) / s.volume for s in STRUCTURES]),
        ("mass_density", {}, [s.density for s in STRUCTURES]),
        ("volume", {"target": 20.0}, [-abs(s.volume / len(s) - 20.0) for s in STRUCTURES]),
        ("structural_validity", {}, [1, 1, 1, 1]),
        ("composition_validity", {}, [1, 1, 1, 1]),
        ("allowed_elements", {"allowed": "Na,Cl,Mg,O"}, [1, 0, 0, 1]),
        ("allowed_elements", {"required": "O", "graded": True}, [0, 0, 1, 1]),
        ("number_of_elements", {"target": 3}, [-1, -1, 0, -1]),
        ("space_group", {"targets": "225"}, [1, 0, 0, 1]),
        ("symmetry", {}, [1, 1, 1, 1]),
        ("predictor", {"ckpt_path": "one"}, [2, 2, 5, 2]),
        ("predictor", {"ckpt_path": "two", "target_name": "half"}, [1, 1, 2.5, 1]),
        ("predictor", {"ckpt_path": "one", "target_value": "4"}, [-4, -4, -1, -4]),
        (
            "predictor",
            {"ckpt_path": "one", "target_value": "4", "clip_min": "3", "clip_max": "4.5"},
            [-1, -1, -0.25, -1],
        ),
        ("custom", {"function": "tests.rewards.user_rewards:number_of_sites"}, [2, 2, 5, 2]),
        (
            "custom",
            {
                "function": "tests.rewards.user_rewards:number_of_sites",
                "kwargs": '{"scale": 10}',
                "batch_size": 0,
            },
            [20, 20, 50, 20],
        ),
    ],
)
def test_values(context, name, changes, expected):
    scores = scores_of(context, name, **changes)
    np.testing.assert_allclose(scores.values[:4], expected, rtol=1e-5)
    assert scores.reasons[:4] == (None,) * 4
    assert scores.reasons[4] is not None


def test_creativity_and_diversity(context):
    new = arrays_from_structure(rocksalt("Ag", "Te", 5.9))
    known = arrays_from_structure(make_crystals()[0])
    scores = scores_of(context, "creativity", [new, known, new, None])
    assert scores.values[0] == 1.0
    assert scores.values[1] < 1.0
    assert scores.values[2] < 1.0
    for name in ("structure_diversity", "composition_diversity"):
        scores = scores_of(context, name)
        assert np.isfinite(scores.values[:4]).all()
        assert scores.values[:4].std() > 0


@pytest.fixture(scope="module")
def hull(tmp_path_factory):
    """A file of entries: the elements of STRUCTURES without caesium, at 0 eV/atom."""
    path = tmp_path_factory.mktemp("hull") / "entries.json"
    symbols = ("Na", "Cl", "Sr", "Ti", "O", "Mg")
    entries = [{"formula": symbol, "energy_per_atom": 0.0} for symbol in symbols]
    path.write_text(json.dumps({"corrected": False, "entries": entries}))
    return path


LJ = {"model": "ase:ase.calculators.lj:LennardJones", "model_kwargs": '{"sigma": 2.0, "rc": 6.0}'}


@pytest.mark.parametrize("steps", [0, 5])
def test_energy(context, hull, steps):
    pytest.importorskip("ase")
    scores = scores_of(context, "energy", **LJ, hull=str(hull), relax_steps=steps)
    assert scores.reasons[1] == "missing elements: Cs"
    known = scores.values[[0, 2, 3]]
    assert ((known >= -1) & (known <= 0)).all()


def test_energy_itself(context):
    pytest.importorskip("ase")
    scores = scores_of(context, "energy", **LJ, quantity="energy")
    relaxed = scores_of(context, "energy", **LJ, quantity="energy", relax_steps=50)
    assert np.isfinite(scores.values[:4]).all()
    assert (relaxed.values[:4] >= scores.values[:4] - 1e-6).all()
    assert (relaxed.values[:4] > scores.values[:4] + 1e-3).any()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("energy", LJ, "hull is empty"),
        ("energy", {"model": "nequix2", "quantity": "energy"}, "no energy model 'nequix2'"),
        ("energy", {**LJ, "hull": "nowhere.json"}, "nowhere.json"),
        ("energy", {**LJ, "hull": "x.json", "hull_corrected": "yes"}, "hull_corrected is 'yes'"),
        ("energy", {**LJ, "quantity": "heat"}, "no quantity 'heat'"),
        ("predictor", {"ckpt_path": "two"}, "choose one with target_name"),
        ("predictor", {"ckpt_path": "one", "target_name": "gap"}, "predicts size"),
        ("predictor", {"ckpt_path": "one", "clip_min": "3", "clip_max": "2"}, "above clip_max"),
        ("predictor", {"ckpt_path": "one", "target_value": "high"}, "target_value is 'high'"),
        ("allowed_elements", {"allowed": "Na,Xx"}, "'Xx'"),
        ("space_group", {"targets": "231"}, "231"),
        ("volume", {}, "target is 0.0"),
        ("custom", {"function": "tests.rewards.user_rewards:nothing"}, "nothing"),
        ("custom", {"function": "tests.rewards.user_rewards:columns", "batch_size": -1}, "-1"),
        ("energy", {**LJ, "quantity": "energy", "relax_steps": -1}, "relax_steps is -1"),
        ("energy", {"model": "chgnet", "quantity": "energy", "model_kwargs": "3"}, "model_kwargs"),
        ("atomic_density", {"target": -0.1}, "target is -0.1; it must be a positive number or 0"),
    ],
)
def test_options_that_cannot_be_used(context, name, changes, message):
    with pytest.raises(RewardError, match=message):
        build_component(name, options_of(name, **changes), context)


@pytest.mark.parametrize("name", [name for name, reward in REWARDS.items() if not reward.builds])
def test_functions_of_structures_check_their_options_before_a_run(name):
    with pytest.raises(RewardError, match=f"reward {name}: .*unexpected keyword argument 'colour'"):
        check_reward(name, options_of(name) | {"colour": 3})


def test_unknown_reward(context):
    with pytest.raises(RewardError, match="Did you mean 'creativity'"):
        build_component("creativty", {}, context)


def test_options_are_json():
    assert read_json("", "kwargs") == {}
    assert read_json('{"target": 3, "soft": true}', "kwargs") == {"target": 3, "soft": True}
    for text in ("target=3", "[3]", "3"):
        with pytest.raises(RewardError, match="JSON"):
            read_json(text, "kwargs")
