"""Distances of a set from a reference, worked out by hand."""

import re

import numpy as np
import pytest

from chemeleon2_jax.metrics.distribution import frechet_distance, squared_mmd
from chemeleon2_jax.metrics.metric import SetMetric, describe
from chemeleon2_jax.metrics.registry import METRICS, NEEDS
from chemeleon2_jax.metrics.report import evaluate
from tests.tiny import ROOT, perovskite, rocksalt

SALT, OXIDE, TITANATE = (
    rocksalt("Na", "Cl", 5.64),
    rocksalt("Mg", "O", 4.21),
    perovskite("Sr", "Ti", 3.905),
)
OF_FEATURES = [
    f"{kind}_{name}"
    for kind in ("structure", "composition")
    for name in ("diversity", "frechet", "mmd")
]


def scores_of(structures, reference, metrics, **options):
    return evaluate(structures, reference, metrics, num_workers=0, **options).summary["set"]


def test_wasserstein_distances():
    names = ["wasserstein_density", "wasserstein_num_elements"]
    scores = scores_of([SALT, TITANATE, None], [SALT, OXIDE], names)
    # Of two values each: the mean distance of the sorted ones.
    densities = np.sort([float(s.density) for s in (SALT, TITANATE)])
    known = np.sort([float(s.density) for s in (SALT, OXIDE)])
    expected = np.abs(densities - known).mean()
    assert scores["wasserstein_density"]["value"] == pytest.approx(expected, rel=1e-6)
    assert scores["wasserstein_density"]["unit"] == "g/cm3"
    assert scores["wasserstein_num_elements"]["value"] == pytest.approx(0.5)  # 2 and 3, 2 and 2
    assert [score["count"] for score in scores.values()] == [2, 2]


def test_a_set_is_at_no_distance_from_itself():
    names = ["wasserstein_density", "wasserstein_num_elements"]
    scores = scores_of([SALT, OXIDE, TITANATE], [TITANATE, SALT, OXIDE], names)
    assert [score["value"] for score in scores.values()] == pytest.approx([0, 0], abs=1e-6)


def test_nothing_to_compare_is_a_reason():
    for score in scores_of([None], [SALT], None).values():
        assert (score["value"], score["count"]) == (None, 0)
        assert score["reason"]


class Lengths:
    """Features with known values: the cell's edges, or mean and largest atomic number."""

    def __init__(self):
        self.calls = []

    def structure_features(self, crystals):
        self.calls.append(len(crystals))
        return np.array([[np.nan] * 3 if c is None else np.diag(c[2]) for c in crystals])

    def composition_features(self, crystals):
        return np.array(
            [[np.nan] * 2 if c is None else [np.mean(c[0]), max(c[0])] for c in crystals]
        )


def test_features_of_a_model():
    model = Lengths()
    generated, reference = [SALT, None, TITANATE, OXIDE], [OXIDE, SALT]
    scores = scores_of(generated, reference, OF_FEATURES, feature_model=model)
    samples = np.array([np.diag(s.lattice.matrix) for s in (SALT, TITANATE, OXIDE)])
    known = np.array([np.diag(s.lattice.matrix) for s in (OXIDE, SALT)])
    distance = frechet_distance(samples, known)
    assert scores["structure_frechet"]["value"] == pytest.approx(distance, rel=1e-5)
    assert scores["structure_diversity"]["value"] == pytest.approx(1 / (1 + distance), rel=1e-5)
    assert scores["structure_mmd"]["value"] == pytest.approx(squared_mmd(samples, known), rel=1e-4)
    assert scores["composition_frechet"]["value"] != scores["structure_frechet"]["value"]
    assert {score["count"] for score in scores.values()} == {3}
    assert model.calls == [4, 2]  # once for all metrics


def test_too_few_features_are_a_reason():
    scores = scores_of([SALT, None], [OXIDE, SALT], OF_FEATURES, feature_model=Lengths())
    for score in scores.values():
        assert score["value"] is None
        assert "at least 2 rows" in score["reason"]


def test_features_are_computed_where_a_model_is_given():
    assert not set(scores_of([SALT], [SALT], None)) & set(OF_FEATURES)
    scores = scores_of([SALT], [SALT], None, feature_model=Lengths())
    assert set(scores) == {n for n, metric in METRICS.items() if isinstance(metric, SetMetric)}


def test_every_metric_says_what_it_tells_and_needs():
    for name, metric in METRICS.items():
        assert describe(metric), name
        assert set(metric.needs) <= NEEDS.keys()


def test_the_readme_lists_all():
    table = re.search(r"\| metric \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    rows = [row.split("|")[1] for row in table[0].splitlines()[2:] if row]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == METRICS.keys()
