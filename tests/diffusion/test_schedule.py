"""Noise schedules against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from chemeleon2_jax.diffusion.schedule import Schedule, make_betas
from chemeleon2_jax.models.sizes import DiffusionConfig


@pytest.mark.parametrize("num_steps", [1000, 250])
def test_linear_betas(num_steps):
    betas = make_betas("linear", num_steps)
    scale = 1000 / num_steps
    expected = [scale * (1e-4 + (0.02 - 1e-4) * i / (num_steps - 1)) for i in (0, 7, num_steps - 1)]
    assert betas.dtype == np.float64
    assert len(betas) == num_steps
    np.testing.assert_allclose(betas[[0, 7, -1]], expected, rtol=1e-12)


def test_cosine_betas():
    def bar(t: float) -> float:
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    betas = make_betas("squaredcos_cap_v2", 1000)
    expected = [1 - bar((i + 1) / 1000) / bar(i / 1000) for i in range(999)]
    np.testing.assert_allclose(betas[:-1], expected, rtol=1e-9)
    assert betas[-1] == 0.999  # capped
    kept = Schedule.make("squaredcos_cap_v2").alphas_cumprod
    np.testing.assert_allclose(kept[500], bar(0.501) / bar(0), rtol=1e-9)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'cubic' is unknown; choose one of linear, squaredcos"):
        make_betas("cubic", 1000)


@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
def test_what_follows_from_the_betas(name):
    """Against Bayes: q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0), normalised."""
    schedule = Schedule.make(name, 50)
    bars = 1.0
    for t, beta in enumerate(schedule.betas):
        previous, bars = bars, bars * (1 - beta)
        assert schedule.alphas_cumprod[t] == pytest.approx(bars, rel=1e-12)
        assert schedule.alphas_cumprod_prev[t] == pytest.approx(previous, rel=1e-12)
        if t == 0:
            assert schedule.posterior_variance[0] == 0.0
            assert schedule.posterior_mean_coef1[0] == pytest.approx(1.0, rel=1e-12)
            assert schedule.posterior_mean_coef2[0] == 0.0
            continue
        precision = 1 / (1 - previous) + (1 - beta) / beta
        assert schedule.posterior_variance[t] == pytest.approx(1 / precision, rel=1e-9)
        coef1 = np.sqrt(previous) / (1 - previous) / precision
        coef2 = np.sqrt(1 - beta) / beta / precision
        assert schedule.posterior_mean_coef1[t] == pytest.approx(coef1, rel=1e-9)
        assert schedule.posterior_mean_coef2[t] == pytest.approx(coef2, rel=1e-9)
    logs = np.log(schedule.posterior_variance[1:])
    np.testing.assert_allclose(schedule.posterior_log_variance_clipped, [logs[0], *logs])
    large = np.log(schedule.betas[1:])
    np.testing.assert_allclose(schedule.fixed_large_log_variance, [logs[0], *large])


def test_respacing_keeps_the_noise_levels():
    schedule = Schedule.make()
    timesteps = np.array([3, 40, 41, 999])
    kept = schedule.respace(timesteps)
    assert kept.num_steps == 4
    np.testing.assert_array_equal(kept.timesteps, timesteps)
    np.testing.assert_allclose(kept.alphas_cumprod, schedule.alphas_cumprod[timesteps], rtol=1e-12)
    assert ((kept.betas > 0) & (kept.betas < 1)).all()
    twice = kept.respace(np.array([0, 3]))
    np.testing.assert_array_equal(twice.timesteps, [3, 999])
    one = schedule.respace(np.array([10]))
    assert np.isfinite(one.posterior_log_variance_clipped).all()


def test_config():
    schedule = Schedule.of(DiffusionConfig(100, "squaredcos_cap_v2"))
    np.testing.assert_array_equal(schedule.betas, Schedule.make("squaredcos_cap_v2", 100).betas)
    assert Schedule.of(DiffusionConfig()).num_steps == 1000
    with pytest.raises(ValueError, match="target 'score' is unknown; choose one of eps, x_0"):
        Schedule.of(DiffusionConfig(target="score"))
