"""What each crystal adds to a set."""

import numpy as np
import pytest

from chemeleon2_jax.crystals.structures import arrays_from_structure
from chemeleon2_jax.metrics.distribution import leave_one_out_mmd
from chemeleon2_jax.rewards.diversity import Diversity, diversity
from chemeleon2_jax.workers import WorkerPool
from tests.tiny import perovskite, rocksalt


def test_crystals_without_features_do_not_count():
    rng = np.random.default_rng(0)
    samples, reference = rng.normal(size=(6, 3)), rng.normal(size=(20, 3))
    with_gaps = np.insert(samples, [2, 6], np.nan, axis=0)
    scores = diversity(with_gaps, reference)
    expected = np.insert(leave_one_out_mmd(samples, reference), [2, 6], np.nan)
    np.testing.assert_array_equal(scores.values, expected)
    assert scores.failures == {"no features": 2}


def test_a_rare_kind_scores_higher():
    reference = np.array([[-1.0], [1.0]])
    scores = diversity(np.array([[1.0], [1.0], [1.0], [-1.0]]), reference)
    assert scores.values[3] > 0 > scores.values[0]


@pytest.mark.parametrize("num_known", [0, 2])
def test_too_few_crystals(num_known):
    features = np.full((3, 2), np.nan)
    features[:num_known] = 1.0
    scores = diversity(features, np.ones((4, 2)))
    assert np.isnan(scores.values).all()
    assert scores.reasons[-1] == "no features"
    assert scores.failures.get("fewer than 3 crystals have features", 0) == num_known


def test_all_chunks_are_compared():
    def features(crystals):
        return np.array([[len(c[0]), c[2][0, 0]] if c else [np.nan] * 2 for c in crystals])

    component, pool = Diversity(features, np.array([[2.0, 1.0], [5.0, 3.0]])), WorkerPool(0)
    structures = [rocksalt("Na", "Cl", 5.64), perovskite("Sr", "Ti", 3.9), rocksalt("Mg", "O", 4.2)]
    crystals = [*map(arrays_from_structure, structures), None]
    together = component.score(component.prepare(crystals, pool), pool)
    chunks = [*component.prepare(crystals[:2], pool), *component.prepare(crystals[2:], pool)]
    np.testing.assert_array_equal(component.score(chunks, pool).values, together.values)
    assert together.reasons[:3] == (None,) * 3
    assert together.reasons[3] is not None
