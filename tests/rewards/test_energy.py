"""The reward for stable crystals."""

import numpy as np
import pytest

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.scores import check_values
from chemeleon2_jax.energy.entry import Entry
from chemeleon2_jax.energy.hull import Hull
from chemeleon2_jax.energy.results import Energies
from chemeleon2_jax.rewards.energy import check_energy_reward, energy_reward
from tests.energy.cells import fcc, rocksalt

STRUCTURES = [rocksalt(), None, rocksalt(), rocksalt(), fcc("Cu", 3.6)]
ENERGIES = [-3.3, None, -3.5, 7.0, -4.0]
REASONS = [None, "not built", None, None, None]


class Fixed:
    """A model with fixed energies."""

    name = "fixed"
    elements = None

    def __init__(self, corrected):
        self.corrected = corrected

    def energies(self, structures):
        assert len(structures) == len(ENERGIES)
        return Energies(*check_values(ENERGIES, REASONS), self.corrected)


def hull_of(corrected):
    entries = [Entry({11: 1.0}, -1.3), Entry({17: 1.0}, -1.8), Entry({11: 0.5, 17: 0.5}, -3.4)]
    return Hull(entries, corrected=corrected)


@pytest.mark.parametrize("corrected", [False, True])
def test_minus_the_energy_above_the_hull_clipped(corrected):
    scores = energy_reward(STRUCTURES, Fixed(corrected), hull_of(corrected))
    np.testing.assert_allclose(scores.values, [-0.1, np.nan, 0.0, -1.0, np.nan], atol=1e-9)
    assert scores.reasons == (None, "not built", None, None, "missing elements: Cu")


def test_uncorrected_energies_are_corrected_for_a_corrected_hull():
    scores = energy_reward(STRUCTURES, Fixed(False), hull_of(True))
    # MP2020's chloride: -0.614 eV an atom of chlorine. Both are below the hull then.
    np.testing.assert_allclose(scores.values[[0, 2, 3]], [0.0, 0.0, -1.0], atol=1e-9)
    low = Hull(
        [*[Entry({z: 1.0}, -1.0) for z in (11, 17)], Entry({11: 0.5, 17: 0.5}, -4.0)],
        corrected=True,
    )
    scores = energy_reward(STRUCTURES, Fixed(False), low)
    np.testing.assert_allclose(scores.values[[0, 2]], [-0.393, -0.193], atol=1e-3)


def test_a_hull_of_both_scales_needs_no_correction():
    entries = [Entry({11: 1.0}, -1.3, 0.0), Entry({17: 1.0}, -1.8, 0.0)]
    hull = Hull([*entries, Entry({11: 0.5, 17: 0.5}, -3.4, -0.307)])
    for corrected, expected in ((False, [-0.1, 0.0]), (True, [-0.407, -0.207])):
        scores = energy_reward(STRUCTURES, Fixed(corrected), hull)
        np.testing.assert_allclose(scores.values[[0, 2]], expected, atol=1e-9)


def test_minus_the_energy_itself():
    scores = energy_reward(STRUCTURES, Fixed(True), quantity="energy")
    np.testing.assert_allclose(scores.values, [3.3, np.nan, 3.5, -7.0, 4.0])
    assert scores.failures == {"not built": 1}


@pytest.mark.parametrize(
    ("model", "hull", "quantity", "message"),
    [
        (Fixed(True), None, "e_above_hull", 'needs a hull: .* quantity="energy"'),
        (Fixed(True), hull_of(False), "e_above_hull", "the hull is on the uncorrected scale"),
        (Fixed(True), hull_of(True), "stability", "no quantity 'stability'"),
    ],
)
def test_wrong_settings_are_found_before_a_run(model, hull, quantity, message):
    with pytest.raises(EnergyError, match=message):
        check_energy_reward(model, hull, quantity=quantity)
    with pytest.raises(EnergyError, match=message):
        energy_reward(STRUCTURES, model, hull, quantity=quantity)
