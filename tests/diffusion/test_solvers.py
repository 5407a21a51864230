"""Chains against a case that can be solved by hand: one Gaussian, whose x_0 is known exactly.

For x_0 ~ N(MEAN, STD^2) the best prediction at x_t = a x_0 + b eps is linear in x_t, and the
probability-flow ODE keeps (x_t - a MEAN) / sqrt(a^2 STD^2 + b^2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.diffusion.chain import initial_noise, sample_chain
from chemeleon2_jax.diffusion.gaussian import Prediction
from chemeleon2_jax.diffusion.sampler import NOISE_IN_SPACING, spaced_in_noise, step_constants
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.diffusion.schedule import SCHEDULES, Schedule
from chemeleon2_jax.diffusion.targets import TARGETS
from tests.examples import packed, random_crystals

MEAN, STD, LATENT = 0.7, 0.4, 64
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def batch():
    return packed(random_crystals(sizes=(8, 7, 6, 5, 4, 3)))


def denoise_fn(schedule, target):
    """The exact prediction of a model with this target."""
    bars = jnp.asarray(schedule.alphas_cumprod, jnp.float32)

    def denoise(x, t):
        # All crystals are at the same time.
        a, b = jnp.sqrt(bars[t[0, 0]]), jnp.sqrt(1.0 - bars[t[0, 0]])
        start = MEAN + a * STD**2 / (a**2 * STD**2 + b**2) * (x - a * MEAN)
        return TARGETS[target].of(start, (x - a * start) / b, a, b), None

    return denoise


def run(batch, sampler, *, schedule, target):
    """The atoms' final latents, and what the ODE makes of their first ones."""
    chain = jax.jit(
        lambda rows: sample_chain(
            denoise_fn(schedule, target),
            KEY,
            rows,
            schedule=schedule,
            sampler=sampler,
            latent_dim=LATENT,
            target=target,
        )
    )
    end = batch.atoms(chain(batch.rows))
    start = batch.atoms(initial_noise(KEY, batch.rows, LATENT))
    last = sampler.kept_steps(schedule)[-1]
    bar = schedule.alphas_cumprod[last]
    a, b = np.sqrt(bar), np.sqrt(1.0 - bar)
    exact = MEAN + STD * (start - a * MEAN) / np.sqrt(a**2 * STD**2 + b**2)
    return end, exact


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("target", ["flow", "v"])
def test_order_of_convergence(batch, name, order, target):
    """Twice the steps, half or a quarter of the error."""
    schedule = Schedule.make("straight_line")
    errors = []
    for steps in (8, 16):
        end, exact = run(batch, make_sampler(name, steps), schedule=schedule, target=target)
        errors.append(np.abs(end - exact).mean())
    assert 0.8 * 2**order < errors[0] / errors[1] < 2 ** (order + 1)
    assert errors[1] < 0.05


def test_unipc_is_exact_where_x_0_is_a_parabola_in_lambda():
    """The corrector passes through three predictions, so that from the third on its states are
    those of the ODE, whatever the lengths of the steps.
    """
    sampler = make_sampler("unipc", 6)
    constants = step_constants(Schedule.make("linear"), sampler)
    bars = constants.bar.astype(float)
    lambdas = 0.5 * np.log(bars / (1.0 - bars))
    signals, spreads = np.sqrt(bars), np.sqrt(1.0 - bars)

    def start_at(value):
        return 0.3 + 0.2 * value - 0.1 * value**2

    x, memory, corrected = jnp.array([0.5]), (jnp.zeros(1),) * 3, []
    for k in range(5):
        start = jnp.array([start_at(lambdas[k])])
        step = jax.tree.map(lambda values, k=k: values[k], constants)
        following = sampler.transition(
            lambda x, level, start=start: Prediction(start, x, None), x, step, memory=memory
        )
        x, memory = following.mean, following.memory
        corrected.append(float(memory[0][0]))
    for k in (2, 3, 4):
        fine = np.linspace(lambdas[k - 1], lambdas[k], 4001)
        integral = np.trapezoid(np.exp(fine - lambdas[k]) * start_at(fine), fine)
        exact = spreads[k] / spreads[k - 1] * corrected[k - 1] + signals[k] * integral
        assert corrected[k] == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "straight_line"])
@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
def test_unipc_is_nearer_than_its_predictor(batch, schedule, target):
    """DPM-Solver++(2M) is its predictor, to the order of both."""
    made = Schedule.make(schedule)
    error = {}
    for name in ("euler", "dpmpp_2m", "unipc"):
        end, exact = run(batch, make_sampler(name, 8), schedule=made, target=target)
        error[name] = np.abs(end - exact).mean()
    assert error["unipc"] < 0.8 * error["dpmpp_2m"] < 0.8 * error["euler"]


@pytest.mark.parametrize("schedule", ["linear", "straight_line"])
def test_heun_needs_fewer_steps(batch, schedule):
    made = Schedule.make(schedule)
    error = {}
    for name in ("euler", "heun"):
        end, exact = run(batch, make_sampler(name, 25), schedule=made, target="v")
        error[name] = np.abs(end - exact).mean()
    assert error["heun"] < 0.5 * error["euler"]


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_stochastic_chain_has_the_same_marginals(batch, name, eta):
    schedule = Schedule.make("straight_line")
    sampler = make_sampler(name, 100, eta)
    assert sampler.num_drawn == 99
    end, exact = run(batch, sampler, schedule=schedule, target="flow")
    assert np.abs(end - exact).mean() > 0.05  # another path
    count = end.size
    assert abs(end.mean() - MEAN) < 4 * STD / np.sqrt(count) + 0.01
    assert abs(end.std() / STD - 1) < 4 / np.sqrt(2 * count) + 0.03


def test_a_step_of_euler_is_one_along_the_line():
    """In y = x / (a + b) and t = b / (a + b): y' = y + (t' - t) (eps - x_0)."""
    schedule = Schedule.make("straight_line", 100)
    a, b = np.sqrt(schedule.alphas_cumprod), np.sqrt(1.0 - schedule.alphas_cumprod)
    np.testing.assert_allclose(b / (a + b), (np.arange(100) + 0.5) / 100)
    straight = Schedule.make("straight_line")
    assert make_sampler("euler", 4).kept_steps(straight).tolist() == [249, 499, 749, 999]
    assert make_sampler("ddim", 4).kept_steps(straight).tolist() == [0, 250, 500, 750]


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_target_and_its_reading_are_inverse(target):
    rng = np.random.default_rng(0)
    start, eps = rng.normal(size=(2, 5, 3))
    angle = rng.uniform(0.1, 1.4, size=(5, 1))
    signal, spread = np.cos(angle), np.sin(angle)
    x = signal * start + spread * eps
    prediction = TARGETS[target].of(start, eps, signal, spread)
    np.testing.assert_allclose(TARGETS[target].read(prediction, x, signal, spread), (start, eps))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 999, 1000])
def test_spacing_in_noise(name, steps):
    schedule = Schedule.make(name)
    kept = spaced_in_noise(steps, schedule)
    assert len(kept) == steps
    assert kept[-1] == 999
    assert kept[0] >= 0
    assert (np.diff(kept) > 0).all()
    if steps <= 10:
        ratio = np.sqrt(schedule.alphas_cumprod / (1.0 - schedule.alphas_cumprod))
        noise, time = 1.0 / (1.0 + ratio), (np.arange(1000) + 1) / 1000
        position = NOISE_IN_SPACING * noise / noise[-1] + (1.0 - NOISE_IN_SPACING) * time
        np.testing.assert_allclose(position[kept], np.arange(1, steps + 1) / steps, atol=2e-3)
