"""Several rewards as one number: floors, normalisation, weights, refused crystals."""

from __future__ import annotations

import numpy as np
import pytest

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.crystals.structures import arrays_from_structure
from chemeleon2_jax.rewards.combine import Weighted
from chemeleon2_jax.rewards.component import NOT_JUDGED, PerChunk
from chemeleon2_jax.rewards.evaluation import RewardFunction
from chemeleon2_jax.rewards.functions import FunctionOfStructures
from chemeleon2_jax.workers import WorkerPool
from tests.tiny import caesium_chloride, perovskite, rocksalt

GOOD = [
    arrays_from_structure(structure)
    for structure in (
        rocksalt("Na", "Cl", 5.64),
        caesium_chloride("Cs", "Cl", 4.12),
        perovskite("Sr", "Ti", 3.905),
    )
]
COLLAPSED = arrays_from_structure(rocksalt("Na", "Cl", 0.9))  # 0.45 angstrom
CROWDED = arrays_from_structure(rocksalt("Na", "Cl", 2.4))  # 1.2 angstrom
BROKEN = (np.array([11, 17]), np.full((2, 3), np.nan), 4.0 * np.eye(3))


def sizes(crystals, pool):
    """Number of atoms; nothing for caesium."""
    values, reasons = [], []
    for crystal in crystals:
        bad = NOT_JUDGED if crystal is None else "no caesium" if 55 in crystal[0] else None
        values.append(None if bad else float(len(crystal[0])))
        reasons.append(bad)
    return Scores.of(values, reasons)


def cell_lengths(crystals, pool):
    values = [None if c is None else float(np.linalg.norm(c[2][0])) for c in crystals]
    return Scores.of(values, [NOT_JUDGED if v is None else None for v in values])


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1) as pool:
        yield pool


def function(pool, components, **changes):
    return RewardFunction(components, pool=pool, **changes)


def test_weights_and_floors(pool):
    components = {
        "sizes": Weighted(PerChunk(sizes), weight=2.0, floor=-1.0),
        "lengths": Weighted(PerChunk(cell_lengths), weight=0.5, normalisation="norm"),
    }
    rewards = function(pool, components)(GOOD)
    lengths = np.array([5.64 / np.sqrt(2), 4.12, 3.905])
    np.testing.assert_allclose(rewards.components["sizes"].filled, [2, -1, 5])
    np.testing.assert_allclose(rewards.raw, [4, -2, 10] + 0.5 * lengths, rtol=1e-6)
    normal = (lengths - lengths.min()) / (np.ptp(lengths) + 1e-4)
    np.testing.assert_allclose(rewards.total, [4, -2, 10] + 0.5 * normal, rtol=1e-5)
    summary = rewards.summary()
    assert summary["sizes_failures"] == 1
    assert summary["sizes_failures/no caesium"] == 1
    assert (summary["sizes_min"], summary["sizes_mean"], summary["sizes_max"]) == (2, 3.5, 5)
    assert summary["lengths_failures"] == summary["refused"] == 0


def test_the_default_floor_is_below_all(pool):
    rewards = function(pool, {"sizes": Weighted(PerChunk(sizes))})(GOOD)
    assert rewards.raw.tolist() == [2, 2 - 3, 5]
    alike = function(pool, {"sizes": Weighted(PerChunk(sizes))})(GOOD[:2])
    assert alike.raw.tolist() == [2, 1]


@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize("floor", [None, 100.0, -100.0])
def test_nothing_is_gained_by_breaking_crystals(pool, weight, floor, caplog):
    """A crystal without a value is worth less than the best, for any weight and floor."""
    component = Weighted(PerChunk(cell_lengths), weight=weight, floor=floor)
    rewards = function(pool, {"lengths": component})([*GOOD, COLLAPSED])
    worst, best = rewards.raw[:3].min(), rewards.raw[:3].max()
    if floor is not None and weight * floor < 0:
        assert rewards.raw[3] == weight * floor
    else:
        assert rewards.raw[3] == pytest.approx(worst - (best - worst))
    assert ("better than the best crystal" in caplog.text) == (weight * (floor or 0) > 0)
    assert rewards.total.argmax() != 3


def test_floors_may_be_kept(pool):
    """Validations do so, to be comparable."""
    reward = function(pool, {"sizes": Weighted(PerChunk(sizes))})
    first = reward(GOOD)
    assert first.components["sizes"].floor == -1.0
    assert reward(GOOD[:2]).raw.tolist() == [2, 1]
    assert reward(GOOD[:2], {"sizes": -1.0}).raw.tolist() == [2, -1]
    # So does the floor that replaced one better than the best crystal.
    paying = function(pool, {"sizes": Weighted(PerChunk(sizes), floor=100.0)})
    assert paying(GOOD).components["sizes"].floor == -1.0
    assert paying(GOOD[:2], {"sizes": -1.0}).raw.tolist() == [2, -1]


def test_the_sum_is_normalised(pool):
    rewards = function(pool, {"sizes": Weighted(PerChunk(sizes), floor=0.0)}, normalisation="std")(
        GOOD
    )
    assert rewards.total.mean() == pytest.approx(0, abs=1e-9)
    assert rewards.total.std(ddof=1) == pytest.approx(1, rel=1e-3)
    assert rewards.raw.tolist() == [2, 0, 5]


@pytest.mark.parametrize(("require", "refused"), [("", 1), ("valid", 2), ("covalent", 3)])
def test_refused_crystals_get_the_floor(pool, require, refused):
    crystals = [*GOOD, CROWDED, COLLAPSED, BROKEN]
    components = {"lengths": Weighted(PerChunk(cell_lengths), floor=0.0)}
    rewards = function(pool, components, require=require)(crystals)
    assert sum(reason is not None for reason in rewards.refused) == refused
    assert rewards.raw[len(crystals) - refused :].tolist() == [0] * refused
    assert (rewards.raw[: len(crystals) - refused] > 0).all()
    assert rewards.summary()["refused"] == refused
    assert rewards.summary()["lengths_failures"] == 0  # it judged none of them
    assert rewards.valid.tolist() == [True] * 4 + [False] * 2


def test_models_judge_chunk_by_chunk(pool):
    seen = []

    def judge(crystals, used):
        assert used is pool
        seen.append(len(crystals))
        return sizes(crystals, used)

    component = PerChunk(judge)
    prepared = [*component.prepare(GOOD[:2], pool), *component.prepare([GOOD[2], None], pool)]
    scores = component.score(prepared, pool)
    assert scores.values[[0, 2]].tolist() == [2, 5]
    assert scores.reasons == (None, "no caesium", None, NOT_JUDGED)
    assert seen == [2, 2]


def test_chunks_are_one_rollout(pool):
    components = {
        "sizes": Weighted(PerChunk(sizes), normalisation="norm"),
        "sites": Weighted(FunctionOfStructures("tests.rewards.user_rewards:number_of_sites")),
    }
    reward = function(pool, components, normalisation="std")
    together = reward([*GOOD, CROWDED])
    with reward.start() as evaluation:
        for crystal in [*GOOD, CROWDED]:
            evaluation.add([crystal])
        apart = evaluation.result()
    np.testing.assert_array_equal(apart.total, together.total)
    assert apart.refused == together.refused


def test_a_component_that_fails_for_all_is_an_error(pool):
    failing = Weighted(FunctionOfStructures("tests.rewards.user_rewards:always_fails"))
    reward = function(pool, {"mine": failing})
    with pytest.raises(
        RewardError, match=r"'mine' failed for all 3 .*nothing is good enough \(3\)"
    ):
        reward([*GOOD, COLLAPSED])


def test_a_rollout_of_no_use_has_a_problem(pool):
    """It is no error yet: one rollout may be bad luck."""
    failing = Weighted(FunctionOfStructures("tests.rewards.user_rewards:always_fails"), floor=-1.0)
    reward = function(pool, {"mine": failing, "lengths": Weighted(PerChunk(cell_lengths))})
    for crystals, problem in ((GOOD, "failed for all 3"), ([COLLAPSED], "none of 1")):
        with reward.start() as evaluation:
            evaluation.add(crystals)
            rewards = evaluation.result()
        assert problem in rewards.problem
        assert (rewards.components["mine"].filled == -1.0).all()
        assert np.isfinite(rewards.total).all()
        assert rewards.summary()["mine_mean"] == -1.0


def interrupt(evaluation):
    """Ctrl-C while crystals are judged."""
    with evaluation:
        evaluation.add(GOOD)
        raise KeyboardInterrupt


def test_an_interrupt_does_not_wait_for_the_work_under_way():
    """The workers can be used afterwards."""
    slow = FunctionOfStructures("tests.rewards.user_rewards:sleeps_for_caesium", timeout_s=3600)
    with WorkerPool(1) as pool:
        reward = function(pool, {"slow": Weighted(slow)})
        evaluation = reward.start()
        with pytest.raises(KeyboardInterrupt):
            interrupt(evaluation)
        assert function(pool, {"sizes": Weighted(PerChunk(sizes))})(GOOD).raw[0] == 2


def test_refusing_all_is_an_error(pool):
    reward = function(pool, {"sizes": Weighted(PerChunk(sizes))})
    with pytest.raises(
        RewardError,
        match=r"none of 2 crystals may be judged: volume 0.0911 cubic angstrom an atom \(2\)",
    ):
        reward([COLLAPSED, COLLAPSED])


def test_wrong_settings(pool):
    with pytest.raises(RewardError, match="no reward"):
        function(pool, {})
    with pytest.raises(RewardError, match="require is 'pretty'"):
        function(pool, {"sizes": Weighted(PerChunk(sizes))}, require="pretty")
