"""The contract of samplers, and the transitions of each against the papers' formulas."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.diffusion.gaussian import predictor
from chemeleon2_jax.diffusion.sampler import Transition, log_probability, step_constants
from chemeleon2_jax.diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from tests.examples import packed, random_crystals

SCHEDULE = Schedule.make()
LATENT = 4
# The numbers of steps that an integer stride through 1000 gives exactly.
STRIDE_STEPS = sorted({-(-1000 // stride) for stride in range(1, 1000)})


@pytest.fixture(scope="module")
def batch():
    return packed(random_crystals())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_the_contract(batch, name):
    sampler = make_sampler(name, 5, 1.0)
    assert (sampler.name, sampler.steps, sampler.eta) == (name, 5, 1.0)
    assert 0 <= sampler.num_drawn <= 5
    assert hash(sampler) == hash(make_sampler(name, 5, 1.0))
    assert sampler != make_sampler(name, 6, 1.0)
    constants = step_constants(SCHEDULE, sampler)
    assert {values.shape for values in jax.tree.leaves(constants)} == {(5,)}
    x = jnp.ones((*batch.rows.position.shape, LATENT))
    predict = predictor(lambda x, t: (0.1 * x, None), target="eps", rows=batch.rows)
    memory = (jnp.zeros_like(x),) * sampler.num_remembered
    for k in range(5):
        now = jax.tree.map(lambda values, k=k: values[k], constants)
        transition = sampler.transition(predict, x, now, memory=memory)
        assert np.isfinite(transition.mean).all()
        assert transition.mean.shape == x.shape
        assert np.shape(jnp.broadcast_to(transition.std, x.shape)) == x.shape
        assert k >= sampler.num_drawn or (np.asarray(transition.std) > 0).all()
        memory = transition.memory
        assert [values.shape for values in memory] == [x.shape] * sampler.num_remembered


def test_names_are_read_without_jax():
    """Flags and checks of a config ask for them."""
    modules = ("samplers", "schedule", "targets")
    imports = "; ".join(f"import chemeleon2_jax.diffusion.{name}" for name in modules)
    code = f"import sys; {imports}; print([m for m in sys.modules if m.split('.')[0] == 'jax'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert DEFAULT_SAMPLER in SAMPLERS


def test_eta_is_the_share_of_the_noise():
    schedule = SCHEDULE.respace(np.arange(0, 1000, 20))
    full, half, none = (
        step_constants(SCHEDULE, make_sampler("ddim", 50, e)).std for e in (1.0, 0.5, 0.0)
    )
    # eta = 1 has the variance of the posterior.
    np.testing.assert_allclose(full[:-1], np.sqrt(schedule.posterior_variance[:0:-1]), rtol=1e-3)
    np.testing.assert_allclose(half, full / 2, rtol=1e-6)
    assert (none == 0).all()
    assert full[-1] == 0  # at the last step


def test_constants_are_in_sampling_order():
    constants = step_constants(SCHEDULE, make_sampler("ddpm", 10))
    kept = SCHEDULE.respace(np.array([round(i * 111) for i in range(10)]))
    np.testing.assert_array_equal(constants.t, kept.timesteps[::-1])
    assert constants.t[0] == 999
    assert constants.t.dtype == np.int32
    np.testing.assert_allclose(constants.bar, kept.alphas_cumprod[::-1], rtol=1e-6)
    np.testing.assert_allclose(constants.coef1, kept.posterior_mean_coef1[::-1], rtol=1e-6)
    np.testing.assert_allclose(constants.coef2, kept.posterior_mean_coef2[::-1], atol=1e-7)
    np.testing.assert_allclose(constants.log_beta, np.log(kept.betas[::-1]), rtol=1e-6)
    following = step_constants(SCHEDULE, make_sampler("ddim", 10)).bar_next
    ddim = SCHEDULE.respace(np.arange(0, 1000, 100)).alphas_cumprod[::-1]
    np.testing.assert_allclose(following, [*ddim[1:], 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "variance"),
    [
        (make_sampler("ddim", 50, 1.0), None),
        (make_sampler("ddim", 50, 0.3), None),
        (make_sampler("ddpm", 50), None),
        (make_sampler("ddpm", 50), 0.7),
    ],
    ids=str,
)
def test_transition_and_its_score_by_hand(batch, sampler, variance):
    """The Gaussian of a step by the papers' formulas, and the density of a state drawn from it."""
    rng = np.random.default_rng(0)
    x, eps, noise = rng.normal(size=(3, *batch.rows.position.shape, LATENT)).astype(np.float32)
    step = 20
    constants = step_constants(SCHEDULE, sampler)
    times = np.sort(constants.t)
    t = 49 - step
    bar, previous = SCHEDULE.alphas_cumprod[times[t]], SCHEDULE.alphas_cumprod[times[t - 1]]
    beta = 1 - bar / previous
    start = (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar)
    posterior = beta * (1 - previous) / (1 - bar)
    if sampler.name == "ddim":
        std = sampler.eta * np.sqrt(posterior)
        mean = np.sqrt(previous) * start + np.sqrt(1 - previous - std**2) * eps
    else:
        mean = np.sqrt(previous) * beta * start + np.sqrt(1 - beta) * (1 - previous) * x
        mean = mean / (1 - bar)
        share = 1.0 if variance is None else (variance + 1) / 2
        std = np.exp(0.5 * (share * np.log(beta) + (1 - share) * np.log(posterior)))

    def denoise(x, t):
        assert t.shape == batch.rows.is_crystal.shape
        return jnp.asarray(eps), None if variance is None else jnp.full_like(x, variance)

    now = jax.tree.map(lambda v: v[step], constants)
    predict = predictor(denoise, target="eps", rows=batch.rows)
    transition = sampler.transition(predict, jnp.asarray(x), now)
    np.testing.assert_allclose(transition.mean, mean, atol=1e-4)
    np.testing.assert_allclose(np.broadcast_to(transition.std, x.shape), std, rtol=1e-3)

    state = transition.mean + transition.std * noise
    scored = batch.where.take_slots(log_probability(transition, state, batch.rows))
    density = -0.5 * noise.astype(float) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    expected = [part.mean() for part in batch.where.split_atoms(density)]
    np.testing.assert_allclose(scored, expected, atol=2e-3)


def test_the_score_of_a_given_state_is_the_gaussian_density(batch):
    rng = np.random.default_rng(1)
    mean, state, log_std = rng.normal(size=(3, *batch.rows.position.shape, LATENT))
    gaussian = Transition(
        jnp.asarray(mean, jnp.float32), jnp.exp(jnp.asarray(log_std, jnp.float32))
    )
    scored = log_probability(gaussian, jnp.asarray(state, jnp.float32), batch.rows)
    std = np.exp(log_std)
    density = np.log(np.exp(-0.5 * ((state - mean) / std) ** 2) / std / np.sqrt(2 * np.pi))
    expected = [part.mean() for part in batch.where.split_atoms(density)]
    np.testing.assert_allclose(batch.where.take_slots(scored), expected, rtol=1e-5)
    assert (np.asarray(scored)[~np.asarray(batch.rows.is_crystal)] == 0).all()


# --- the steps that samplers keep -----------------------------------------------------------------


def test_there_are_62_strides():
    assert len(STRIDE_STEPS) == 62
    assert {10, 50, 100, 250, 1000} <= set(STRIDE_STEPS)


@pytest.mark.parametrize("steps", STRIDE_STEPS)
def test_ddim_takes_the_smallest_stride(steps):
    stride = next(s for s in range(1, 1000) if len(range(0, 1000, s)) == steps)
    assert make_sampler("ddim", steps).timesteps(1000).tolist() == list(range(0, 1000, stride))


OTHERS = [1, 3, 30, 33, 64, 99, 128, 150, 300, 333, 400, 501, 750, 999]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", OTHERS)
def test_any_number_of_steps(sampler, steps):
    times = make_sampler(sampler, steps).timesteps(1000)
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
    assert make_sampler("ddpm", 5).timesteps(1000).tolist() == [0, 250, 500, 749, 999]
    assert make_sampler("ddpm", 1000).timesteps(1000).tolist() == list(range(1000))
    fifty = make_sampler("ddpm", 50).timesteps(1000)
    np.testing.assert_array_equal(fifty, [round(i * 999 / 49) for i in range(50)])


def test_shorter_chains():
    assert make_sampler("ddim", 10).timesteps(100).tolist() == list(range(0, 100, 10))
    assert make_sampler("ddim", 100).timesteps(100).tolist() == list(range(100))
    assert make_sampler("ddpm", 3).timesteps(11).tolist() == [0, 5, 10]


def test_options_that_are_none():
    with pytest.raises(ValueError, match="sampler 'rk4' is unknown; choose one of ddim, ddpm"):
        make_sampler("rk4")
    with pytest.raises(ValueError, match="steps 0 must be at least 1"):
        make_sampler("ddim", 0)
    with pytest.raises(ValueError, match="steps -1 must be at least 1"):
        make_sampler("ddpm", -1)
    with pytest.raises(ValueError, match=r"eta -0\.5 at least 0"):
        make_sampler("ddim", 10, -0.5)
    for name in SAMPLERS:
        with pytest.raises(ValueError, match="1 to 1000 steps, not 1001"):
            step_constants(SCHEDULE, replace(make_sampler(name), steps=1001))
