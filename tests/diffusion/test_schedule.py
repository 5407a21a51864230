"""Noise schedules against their closed forms, and the steps that samplers keep."""

from __future__ import annotations

import numpy as np
import pytest

from chemeleon2_jax.diffusion.schedule import Schedule, make_betas, sampling_timesteps

# The numbers of steps that an integer stride through 1000 gives exactly.
STRIDE_STEPS = sorted({-(-1000 // stride) for stride in range(1, 1000)})


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


def test_there_are_62_strides():
    assert len(STRIDE_STEPS) == 62
    assert {10, 50, 100, 250, 1000} <= set(STRIDE_STEPS)


@pytest.mark.parametrize("steps", STRIDE_STEPS)
def test_ddim_takes_the_smallest_stride(steps):
    stride = next(s for s in range(1, 1000) if len(range(0, 1000, s)) == steps)
    assert sampling_timesteps("ddim", steps).tolist() == list(range(0, 1000, stride))


OTHERS = [1, 3, 30, 33, 64, 99, 128, 150, 300, 333, 400, 501, 750, 999]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", OTHERS)
def test_any_number_of_steps(sampler, steps):
    times = sampling_timesteps(sampler, steps)
    assert len(times) == steps
    assert np.issubdtype(times.dtype, np.integer)
    assert times[0] == 0
    assert times[-1] < 1000
    gaps = np.diff(times)
    assert (gaps >= 1).all()
    if steps > 1:
        assert (
            gaps.max() - gaps.min() <= (1 if steps not in STRIDE_STEPS else 0) or sampler == "ddpm"
        )
        assert 1000 - times[-1] <= gaps.max() + 1


def test_ddpm_spaces_evenly_with_both_ends():
    assert sampling_timesteps("ddpm", 5).tolist() == [0, 250, 500, 749, 999]
    assert sampling_timesteps("ddpm", 1000).tolist() == list(range(1000))
    fifty = sampling_timesteps("ddpm", 50)
    np.testing.assert_array_equal(fifty, [round(i * 999 / 49) for i in range(50)])


def test_shorter_chains():
    assert sampling_timesteps("ddim", 10, 100).tolist() == list(range(0, 100, 10))
    assert sampling_timesteps("ddim", 100, 100).tolist() == list(range(100))
    assert sampling_timesteps("ddpm", 3, 11).tolist() == [0, 5, 10]


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_numbers_of_steps_out_of_range(sampler, steps):
    with pytest.raises(ValueError, match=f"1 to 1000 steps, not {steps}"):
        sampling_timesteps(sampler, steps)


def test_unknown_sampler():
    with pytest.raises(ValueError, match="'euler' is unknown; choose one of ddim, ddpm"):
        sampling_timesteps("euler", 10)
