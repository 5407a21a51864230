"""A user's function in workers: a failure costs one crystal and has a reason."""

from __future__ import annotations

import os

import numpy as np
import pytest

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.crystals.structures import arrays_from_structure
from chemeleon2_jax.rewards.component import NOT_JUDGED
from chemeleon2_jax.rewards.functions import FunctionOfStructures, load_function
from chemeleon2_jax.workers import WorkerPool
from tests.tiny import caesium_chloride, perovskite, rocksalt

MODULE = "tests.rewards.user_rewards"
CRYSTALS = [
    arrays_from_structure(structure)
    for structure in (
        rocksalt("Na", "Cl", 5.64),
        caesium_chloride("Cs", "Cl", 4.12),
        perovskite("Sr", "Ti", 3.905),
        rocksalt("Mg", "O", 4.21),
    )
]


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2) as pool:
        yield pool


def scores_of(pool, name, crystals=CRYSTALS, **changes):
    component = FunctionOfStructures(f"{MODULE}:{name}", **changes)
    return component.score(component.prepare(crystals, pool), pool)


def test_values_in_order_with_options(pool):
    assert scores_of(pool, "number_of_sites").values.tolist() == [2, 2, 5, 2]
    scaled = scores_of(pool, "number_of_sites", options={"scale": 0.5})
    assert scaled.values.tolist() == [1, 1, 2.5, 1]
    assert scores_of(pool, "counter").values.tolist() == [2, 2, 5, 2]


def test_it_runs_in_worker_processes(pool, tmp_path):
    scores_of(pool, "notes_its_process", options={"folder": str(tmp_path)})
    ids = {int(path.name) for path in tmp_path.iterdir()}
    assert ids
    assert os.getpid() not in ids


@pytest.mark.parametrize("batch_size", [1, 3, 0])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fails_for_caesium", "RuntimeError: no caesium, please"),
        ("nan_for_caesium", "not finite: nan"),
        ("dies_for_caesium", "worker died (exit status 3)"),
    ],
)
def test_a_failure_costs_one_crystal(pool, name, reason, batch_size):
    scores = scores_of(pool, name, batch_size=batch_size)
    assert scores.reasons == (None, reason, None, None)
    assert np.isnan(scores.values[1])
    assert np.isfinite(scores.values[[0, 2, 3]]).all()


def test_a_timeout_costs_one_crystal(pool):
    scores = scores_of(pool, "sleeps_for_caesium", timeout_s=0.5)
    assert scores.reasons == (None, "timeout after 0.5 s", None, None)
    assert scores.values[[0, 2, 3]].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("too_few", "ValueError: it returned 0 values for 1 structures"),
        ("not_numbers", "ValueError: it returned ['good'], not one number a structure"),
        ("columns", "ValueError: it returned shape (1, 1), not one number a structure"),
    ],
)
def test_wrong_answers(pool, name, reason):
    assert scores_of(pool, name).reasons == (reason,) * 4


def test_all_at_once(pool):
    shares = scores_of(pool, "share_of_its_list", batch_size=0).values
    np.testing.assert_allclose(shares, np.array([2, 2, 5, 2]) / 11)
    pairs = scores_of(pool, "share_of_its_list", batch_size=2).values
    np.testing.assert_allclose(pairs, [1 / 2, 1 / 2, 5 / 7, 2 / 7])


def test_a_call_for_a_rollout_of_several_chunks(pool):
    component = FunctionOfStructures(f"{MODULE}:share_of_its_list", batch_size=0)
    prepared = [
        *component.prepare(CRYSTALS[:1], pool),
        *component.prepare([*CRYSTALS[1:], None], pool),
    ]
    scores = component.score(prepared, pool)
    np.testing.assert_allclose(scores.values[:4], np.array([2, 2, 5, 2]) / 11)
    assert scores.reasons[4] == NOT_JUDGED


def test_absent_crystals_are_not_judged(pool):
    scores = scores_of(pool, "number_of_sites", [None, *CRYSTALS, None])
    assert scores.reasons == (NOT_JUDGED, None, None, None, None, NOT_JUDGED)
    assert scores.values[1:5].tolist() == [2, 2, 5, 2]
    assert scores_of(pool, "number_of_sites", [None]).reasons == (NOT_JUDGED,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_colon", "write module:function"),
        ("no_such_module_at_all:reward", "ModuleNotFoundError"),
        (f"{MODULE}:no_such_function", "no_such_function"),
        (f"{MODULE}:not_callable", "is no function"),
        (f"{MODULE}:Counter", "is a class"),
    ],
)
def test_not_a_function(name, message):
    with pytest.raises(RewardError, match=message):
        load_function(name)
