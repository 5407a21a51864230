"""Distances of distributions, uniqueness, novelty and rewards are those of the original."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals.structures import structure_from_cif
from chemeleon2_jax.metrics.distribution import (
    amd_distances,
    average_minimum_distances,
    frechet_distance,
    leave_one_out_mmd,
    squared_mmd,
)
from chemeleon2_jax.metrics.matching import reduce_cells
from chemeleon2_jax.metrics.uniqueness import References, find_novel, find_unique
from chemeleon2_jax.rewards.creativity import creativity
from chemeleon2_jax.rewards.diversity import diversity
from chemeleon2_jax.rewards.normalise import normalise
from tests.examples import relative


def test_mmd(golden):
    samples, reference = (golden.arrays[f"reward/mmd/{name}"] for name in ("z_gen", "z_ref"))
    # The original's reward of a whole set is minus the discrepancy.
    expected = -float(golden.arrays["reward/mmd/r"])
    assert squared_mmd(samples, reference) == pytest.approx(expected, rel=1e-5)
    left_out = golden.arrays["reward/mmd/r_indiv"]
    assert relative(leave_one_out_mmd(samples, reference), left_out) < 1e-5
    assert relative(diversity(samples, reference).values, left_out) < 1e-5


def test_frechet_distance(golden):
    samples, reference = (golden.arrays[f"reward/mmd/{name}"] for name in ("z_gen", "z_ref"))
    expected = float(golden.arrays["metrics/frechet"])
    assert frechet_distance(samples, reference) == pytest.approx(expected, rel=1e-5)


def test_average_minimum_distances(golden):
    cifs = json.loads((golden.folder / "crystals.json").read_text())["cif"]
    found = np.array([average_minimum_distances(structure_from_cif(cif)) for cif in cifs])
    assert relative(found, golden.arrays["metrics/amd"]) < 1e-5
    between = amd_distances(found, found)
    assert relative(between, golden.arrays["metrics/amd_cdist"]) < 1e-5


@pytest.fixture(scope="module")
def generated(golden):
    """The generated crystals, ready to be compared, and the references."""
    content = json.loads((golden.folder / "novelty.json").read_text())
    structures = [Structure.from_dict(entry) for entry in content["generated"]]
    references = [Structure.from_dict(entry) for entry in content["reference"]]
    return reduce_cells(structures), References(references)


def test_unique_and_novel(golden, generated):
    cells, references = generated
    np.testing.assert_array_equal(find_unique(cells).passed, golden.arrays["metrics/unique"])
    np.testing.assert_array_equal(
        find_novel(cells, references).passed, golden.arrays["metrics/novel"]
    )


def test_creativity(golden, generated):
    scores = creativity(*generated)
    assert scores.failures == {}
    assert relative(scores.values, golden.arrays["reward/creativity"]) < 1e-5


@pytest.mark.parametrize(("how", "name"), [("std", "standardize"), ("norm", "normalize")])
def test_normalisation(golden, how, name):
    found = normalise(golden.arrays["rl/rewards"], how)
    np.testing.assert_allclose(found, golden.arrays[f"reward/{name}"], atol=1e-6)
