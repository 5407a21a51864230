"""Spread, width and information of latents, and the tolerance curve of a known decoder."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.crystals.structures import structures_to_crystals
from chemeleon2_jax.metrics.latents import NOISE_LEVELS, Posteriors, tolerance_curves
from chemeleon2_jax.metrics.latents_figure import draw_latents
from chemeleon2_jax.workers import WorkerPool

SALTS = [
    Structure(Lattice.cubic(length), ["Cs", anion], [[0.1, 0.1, 0.1], [0.6, 0.6, 0.6]])
    for length, anion in ((4.12, "Cl"), (4.29, "Br"), (4.57, "I"), (3.9, "F"))
]


@pytest.fixture(scope="module")
def posteriors() -> Posteriors:
    """1,200 atoms of 4 channels: spreads of the means of 1, 2, 0 and 1, widths of 0.1, 1, 1, 0."""
    rng = np.random.default_rng(0)
    means = [rng.normal(size=(6, 4)) * [1.0, 2.0, 0.0, 1.0] + 5.0 for _ in range(200)]
    logvars = [np.tile(2.0 * np.log([0.1, 1.0, 1.0, 1e-6]), (6, 1)) for _ in range(200)]
    return Posteriors(means, logvars)


def test_spread_and_width(posteriors):
    np.testing.assert_allclose(posteriors.widths(), [0.1, 1.0, 1.0, 1e-6], rtol=1e-6)
    np.testing.assert_allclose(posteriors.spread(0.0), [1.0, 2.0, 0.0, 1.0], rtol=0.05, atol=1e-9)
    np.testing.assert_allclose(posteriors.spread(1.0), [1.005, 5**0.5, 1.0, 1.0], rtol=0.05)


def test_nats_are_the_kl_of_each_channel():
    # KL(N(1, e) || N(0, 1)) = (1 + e - 1 - 1) / 2; a standard posterior carries nothing.
    posteriors = Posteriors([np.array([[1.0, 0.0]] * 3)], [np.array([[1.0, 0.0]] * 3)])
    np.testing.assert_allclose(posteriors.nats(), [(np.e - 1.0) / 2.0, 0.0], atol=1e-12)


@pytest.mark.parametrize(("scale", "level"), list(product((0.0, 0.5, 1.0), (0.0, 0.2))))
def test_noise_has_the_stated_size(posteriors, scale, level):
    drawn = posteriors.draw(scale, level=level, seed=1)
    errors = np.concatenate(drawn) - np.concatenate(posteriors.means)
    expected = np.hypot(scale * posteriors.widths(), level * posteriors.spread(scale))
    np.testing.assert_allclose(errors.std(0), expected, rtol=0.1, atol=1e-5)


def test_levels_differ_by_the_size_of_one_noise(posteriors):
    at = {e: np.concatenate(posteriors.draw(1.0, level=e, seed=1)) for e in (0.0, 0.1, 0.2)}
    np.testing.assert_allclose(at[0.2] - at[0.0], 2.0 * (at[0.1] - at[0.0]), atol=1e-5)
    assert not np.allclose(at[0.1], np.concatenate(posteriors.draw(1.0, level=0.1, seed=2)))


def test_curve_of_latents_that_are_the_coordinates():
    crystals = structures_to_crystals(SALTS * 4)
    cells = [crystals.crystal(index) for index in range(len(crystals))]
    known = Posteriors([c[1] for c in cells], [np.full((2, 3), 2.0 * np.log(0.25))] * len(cells))

    def decode(latents):
        decoded = [(c[0], z, c[2]) for c, z in zip(cells, latents, strict=True)]
        return [*decoded[:-1], None]

    points = tolerance_curves(decode, known, crystals, pool=WorkerPool(0))
    assert [(p.posterior_scale, p.level) for p in points] == [
        (scale, level) for scale in (0.0, 1.0) for level in NOISE_LEVELS
    ]
    first, last = points[0], points[len(NOISE_LEVELS) - 1]
    # All but the one that was not built; the spread is 0.25: noise of 30 % moves atoms by 0.3 A.
    assert first.match_rate == first.covalent_share == 15 / 16
    assert last.match_rate == 15 / 16
    # Posteriors as wide as the spread of the means: nothing is left of most crystals.
    assert all(p.covalent_share < 0.8 for p in points if p.posterior_scale == 1.0)
    assert draw_latents(known, points).shape[2] == 3
