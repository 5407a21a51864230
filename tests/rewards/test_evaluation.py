"""Several rewards as one number: floors, normalisation, weights, what may not be judged."""

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
    found = function(pool, components)(GOOD)
    lengths = np.array([5.64 / np.sqrt(2), 4.12, 3.905])
    np.testing.assert_allclose(found.components["sizes"].filled, [2, -1, 5])
    np.testing.assert_allclose(found.raw, [4, -2, 10] + 0.5 * lengths, rtol=1e-6)
    normal = (lengths - lengths.min()) / (np.ptp(lengths) + 1e-4)
    np.testing.assert_allclose(found.total, [4, -2, 10] + 0.5 * normal, rtol=1e-5)
    summary = found.summary()
    assert summary["sizes_failures"] == 1
    assert summary["sizes_failures/no caesium"] == 1
    assert (summary["sizes_min"], summary["sizes_mean"], summary["sizes_max"]) == (2, 3.5, 5)
    assert summary["lengths_failures"] == summary["refused"] == 0


def test_floor_that_is_not_given_is_below_all(pool):
    found = function(pool, {"sizes": Weighted(PerChunk(sizes))})(GOOD)
    assert found.raw.tolist() == [2, 2 - 3, 5]
    alike = function(pool, {"sizes": Weighted(PerChunk(sizes))})(GOOD[:2])
    assert alike.raw.tolist() == [2, 1]


@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize("floor", [None, 100.0, -100.0])
def test_nothing_is_gained_by_breaking_crystals(pool, weight, floor, caplog):
    """Whatever the weight and the floor: what has no value is worth less than the best."""
    component = Weighted(PerChunk(cell_lengths), weight=weight, floor=floor)
    found = function(pool, {"lengths": component})([*GOOD, COLLAPSED])
    worst, best = found.raw[:3].min(), found.raw[:3].max()
    if floor is not None and weight * floor < 0:
        assert found.raw[3] == weight * floor
    else:
        assert found.raw[3] == pytest.approx(worst - (best - worst))
    assert ("better than the best crystal" in caplog.text) == (weight * (floor or 0) > 0)
    assert found.total.argmax() != 3


def test_floors_may_be_kept(pool):
    """As validations do, so that they can be compared."""
    reward = function(pool, {"sizes": Weighted(PerChunk(sizes))})
    first = reward(GOOD)
    assert first.components["sizes"].floor == -1.0
    assert reward(GOOD[:2]).raw.tolist() == [2, 1]
    assert reward(GOOD[:2], {"sizes": -1.0}).raw.tolist() == [2, -1]
    # So are those that came of a floor that would have paid.
    paying = function(pool, {"sizes": Weighted(PerChunk(sizes), floor=100.0)})
    assert paying(GOOD).components["sizes"].floor == -1.0
    assert paying(GOOD[:2], {"sizes": -1.0}).raw.tolist() == [2, -1]


def test_the_sum_is_normalised(pool):
    found = function(pool, {"sizes": Weighted(PerChunk(sizes), floor=0.0)}, normalisation="std")(
        GOOD
    )
    assert found.total.mean() == pytest.approx(0, abs=1e-9)
    assert found.total.std(ddof=1) == pytest.approx(1, rel=1e-3)
    assert found.raw.tolist() == [2, 0, 5]


@pytest.mark.parametrize(("require", "refused"), [("", 1), ("valid", 2), ("covalent", 3)])
def test_what_may_not_be_judged_gets_the_floor(pool, require, refused):
    crystals = [*GOOD, CROWDED, COLLAPSED, BROKEN]
    components = {"lengths": Weighted(PerChunk(cell_lengths), floor=0.0)}
    found = function(pool, components, require=require)(crystals)
    assert sum(reason is not None for reason in found.refused) == refused
    assert found.raw[len(crystals) - refused :].tolist() == [0] * refused
    assert (found.raw[: len(crystals) - refused] > 0).all()
    assert found.summary()["refused"] == refused
    assert found.summary()["lengths_failures"] == 0  # it was not asked
    assert found.valid.tolist() == [True] * 4 + [False] * 2


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


def test_failing_for_all_ends_it(pool):
    failing = Weighted(FunctionOfStructures("tests.rewards.user_rewards:always_fails"))
    reward = function(pool, {"mine": failing})
    with pytest.raises(
        RewardError, match=r"'mine' failed for all 3 .*nothing is good enough \(3\)"
    ):
        reward([*GOOD, COLLAPSED])


def test_a_rollout_may_tell_nothing(pool):
    """By bad luck, as far as one rollout can tell."""
    failing = Weighted(FunctionOfStructures("tests.rewards.user_rewards:always_fails"), floor=-1.0)
    reward = function(pool, {"mine": failing, "lengths": Weighted(PerChunk(cell_lengths))})
    for crystals, problem in ((GOOD, "failed for all 3"), ([COLLAPSED], "none of 1")):
        with reward.start() as evaluation:
            evaluation.add(crystals)
            found = evaluation.result()
        assert problem in found.problem
        assert (found.components["mine"].filled == -1.0).all()
        assert np.isfinite(found.total).all()
        assert found.summary()["mine_mean"] == -1.0


def interrupt(evaluation):
    """What Ctrl-C does while crystals are judged."""
    with evaluation:
        evaluation.add(GOOD)
        raise KeyboardInterrupt


def test_an_interrupt_does_not_wait_for_what_is_judged():
    """And the workers are there for what comes after it."""
    slow = FunctionOfStructures("tests.rewards.user_rewards:sleeps_for_caesium", timeout_s=3600)
    with WorkerPool(1) as pool:
        reward = function(pool, {"slow": Weighted(slow)})
        evaluation = reward.start()
        with pytest.raises(KeyboardInterrupt):
            interrupt(evaluation)
        assert function(pool, {"sizes": Weighted(PerChunk(sizes))})(GOOD).raw[0] == 2


def test_none_that_may_be_judged_ends_it(pool):
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
