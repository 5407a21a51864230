"""The diffusion loss against numbers worked out for one atom."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.diffusion.gaussian import (
    add_noise,
    at_tokens,
    interpolate_log_variance,
    training_loss,
)
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.diffusion.targets import TARGETS
from tests.examples import in_layout, packed, random_crystals

SCHEDULE = Schedule.make()
TIMES = np.array([999, 0, 300, 1, 700, 0], np.int32)
LATENT = 3


def values_of(crystals, seed=0):
    """Clean latents, noise, prediction and variance values of every atom."""
    shape = (4, int(crystals.num_atoms.sum()), LATENT)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@partial(jax.jit, static_argnames=("target", "learned", "steps", "weighting"))
def loss_in_rows(
    start, noise, prediction, variance, t, rows, *, target, learned, steps=1000, weighting="uniform"
):
    def denoise(x, t):
        return prediction, variance if learned else None

    return training_loss(
        denoise,
        start,
        t=t,
        noise=noise,
        schedule=Schedule.make("linear", steps),
        rows=rows,
        target=target,
        weighting=weighting,
    )


def vb_by_hand(start, noise, prediction, values, *, t, schedule, target):
    """Bits of one atom, in float64 from the betas alone."""
    betas = schedule.betas
    bar = np.prod(1 - betas[: t + 1])
    before = np.prod(1 - betas[:t])
    x_t = np.sqrt(bar) * start + np.sqrt(1 - bar) * noise
    guess = prediction
    if target == "eps":
        guess = (x_t - np.sqrt(1 - bar) * prediction) / np.sqrt(bar)
    c1 = betas[t] * np.sqrt(before) / (1 - bar)
    c2 = (1 - before) * np.sqrt(1 - betas[t]) / (1 - bar)
    mean, true_mean = c1 * guess + c2 * x_t, c1 * start + c2 * x_t
    second = betas[1] * betas[0] / (1 - (1 - betas[0]) * (1 - betas[1]))
    clipped = betas[t] * (1 - before) / (1 - bar) if t else second
    share = (values + 1) / 2
    variance = np.exp(share * np.log(betas[t]) + (1 - share) * np.log(clipped))
    if t == 0:
        # A Gaussian's log density without its -log(std).
        return (0.5 * (start - mean) ** 2 / variance + 0.5 * np.log(2 * np.pi)) / np.log(2)
    ratio = clipped / variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (true_mean - mean) ** 2 / variance) / np.log(2)


@pytest.mark.parametrize("steps", [1000, 250])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("target", ["eps", "x_0"])
def test_loss_of_each_crystal_by_hand(target, layout, steps):
    crystals = random_crystals()
    times = TIMES * (steps - 1) // 999
    (batch,) = in_layout(crystals, layout)
    start, noise, prediction, variance = values_of(crystals)
    tokens = [batch.to_tokens(v) for v in (start, noise, prediction, variance)]
    options = {"target": target, "learned": True, "steps": steps}
    loss, terms = loss_in_rows(*tokens, batch.to_slots(times), batch.rows, **options)
    schedule = Schedule.make("linear", steps)
    mse, vb = (batch.where.take_slots(terms[name]) for name in ("mse", "vb"))
    for i, t in enumerate(times):
        atoms = slice(crystals.offsets[i], crystals.offsets[i + 1])
        of_crystal = [v[atoms].astype(float) for v in (start, noise, prediction, variance)]
        goal = of_crystal[1] if target == "eps" else of_crystal[0]
        assert mse[i] == pytest.approx(np.mean((goal - of_crystal[2]) ** 2), rel=1e-5)
        bits = vb_by_hand(*of_crystal, t=t, schedule=schedule, target=target)
        assert vb[i] == pytest.approx(np.mean(bits) * steps / 1000, rel=2e-4, abs=2e-9)
    np.testing.assert_allclose(batch.where.take_slots(loss), mse + vb, rtol=1e-6)
    empty = ~np.asarray(batch.rows.is_crystal)
    assert (np.asarray(loss)[empty] == 0).all()


@pytest.mark.parametrize("target", ["eps", "x_0"])
def test_without_learned_variance_there_is_no_bound(target):
    crystals = random_crystals()
    batch = packed(crystals)
    tokens = [batch.to_tokens(v) for v in values_of(crystals)]
    options = {"target": target, "learned": False}
    loss, terms = loss_in_rows(*tokens, batch.to_slots(TIMES), batch.rows, **options)
    assert set(terms) == {"mse"}
    np.testing.assert_array_equal(loss, terms["mse"])


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_min_snr_weights_the_loss_of_each_crystal(target):
    crystals = random_crystals()
    batch = packed(crystals)
    tokens = [batch.to_tokens(v) for v in values_of(crystals)]
    options = {"target": target, "learned": True, "weighting": "min_snr"}
    loss, terms = loss_in_rows(*tokens, batch.to_slots(TIMES), batch.rows, **options)
    bar = SCHEDULE.alphas_cumprod[TIMES]
    snr = bar / (1 - bar)
    assert snr.min() < 5 < snr.max()
    clipped = np.minimum(snr, 5.0)  # the weights that the paper states for each target
    expected = {
        "eps": clipped / snr,
        "x_0": clipped,
        "v": clipped / (snr + 1),
        "flow": clipped / (1 + np.sqrt(snr)) ** 2,
    }[target]
    loss, mse, vb = (batch.where.take_slots(v) for v in (loss, terms["mse"], terms["vb"]))
    np.testing.assert_allclose(loss - vb, expected * mse, rtol=1e-4, atol=1e-6)


def test_on_heads_a_model_is_given_its_own_estimate_without_a_gradient():
    batch = packed(random_crystals())
    start, noise, *_ = (batch.to_tokens(v) for v in values_of(random_crystals()))

    def loss(weight, key):
        def denoise(x, t, estimate=None):
            return weight * x + (0.0 if estimate is None else 0.5 * estimate), None

        values, _ = training_loss(
            denoise,
            start,
            t=batch.to_slots(TIMES),
            noise=noise,
            schedule=SCHEDULE,
            rows=batch.rows,
            target="x_0",
            estimate_key=key,
        )
        return jnp.sum(values)

    def by_hand(weight, is_given, held):
        x = add_noise(start, noise, batch.to_slots(TIMES), schedule=SCHEDULE, rows=batch.rows)
        residual = start - (weight + 0.5 * held * is_given) * x
        atoms = np.split(batch.atoms(jnp.mean(residual**2, -1)), np.cumsum(batch.where.sizes)[:-1])
        return sum(values.mean() for values in atoms)

    seen = set()
    for seed in range(6):
        key = jax.random.key(seed)
        is_given = bool(jax.random.bernoulli(key))
        seen.add(is_given)
        value, gradient = jax.value_and_grad(loss)(0.3, key)
        assert float(value) == pytest.approx(float(by_hand(0.3, is_given, 0.3)), rel=1e-4)
        # The estimate is held at its value.
        slope = (by_hand(0.301, is_given, 0.3) - by_hand(0.299, is_given, 0.3)) / 0.002
        assert float(gradient) == pytest.approx(float(slope), rel=1e-2)
    assert seen == {True, False}


def test_the_bound_teaches_the_variance_alone():
    crystals = random_crystals()
    batch = packed(crystals)
    start, noise, prediction, variance = (batch.to_tokens(v) for v in values_of(crystals))

    def term(name):
        def value(prediction, variance):
            options = {"target": "eps", "learned": True}
            tokens = (start, noise, prediction, variance)
            t = batch.to_slots(TIMES)
            return jnp.sum(loss_in_rows(*tokens, t, batch.rows, **options)[1][name])

        return jax.grad(value, argnums=(0, 1))(prediction, variance)

    for_eps, for_variance = term("vb")
    assert (np.asarray(for_eps) == 0).all()
    assert np.isfinite(for_variance).all()
    assert (np.abs(batch.atoms(for_variance)) > 0).all()
    for_eps, for_variance = term("mse")
    assert (np.abs(batch.atoms(for_eps)) > 0).all()
    assert (np.asarray(for_variance) == 0).all()


def test_a_perfect_prediction_costs_only_the_variance():
    crystals = random_crystals()
    batch = packed(crystals)
    start, noise, _, variance = (batch.to_tokens(v) for v in values_of(crystals))
    lower = jnp.full_like(variance, -1.0)  # the posterior's own variance
    options = {"target": "eps", "learned": True}
    t = batch.to_slots(TIMES)
    _, terms = loss_in_rows(start, noise, noise, lower, t, batch.rows, **options)
    bound = batch.where.take_slots(terms["vb"])
    assert (batch.where.take_slots(terms["mse"]) == 0).all()
    assert np.abs(bound[TIMES > 0]).max() < 1e-4
    density = 0.5 * np.log(2 * np.pi) / np.log(2)  # at its mean; x_0 is the mean at t = 0
    np.testing.assert_allclose(bound[TIMES == 0], density, rtol=1e-3)


def test_noising_uses_the_time_of_each_crystal():
    crystals = random_crystals()
    batch = packed(crystals)
    start, noise, _, _ = values_of(crystals)
    tokens = [batch.to_tokens(v) for v in (start, noise)]
    t = batch.to_slots(TIMES)
    noised = batch.atoms(add_noise(*tokens, t, schedule=SCHEDULE, rows=batch.rows))
    bar = SCHEDULE.alphas_cumprod[np.repeat(TIMES, crystals.num_atoms)][:, None]
    np.testing.assert_allclose(noised, np.sqrt(bar) * start + np.sqrt(1 - bar) * noise, atol=1e-6)
    looked_up = batch.atoms(at_tokens(SCHEDULE.betas, t, batch.rows))
    expected = SCHEDULE.betas[np.repeat(TIMES, crystals.num_atoms)][:, None]
    np.testing.assert_allclose(looked_up, expected, rtol=1e-6)


@pytest.mark.parametrize("t", [0, 10, 500, 999])
def test_start_and_eps_are_two_views_of_one_prediction(t):
    rng = np.random.default_rng(0)
    start, eps = rng.normal(size=(2, 5, LATENT)).astype(np.float32)
    bar = np.float32(SCHEDULE.alphas_cumprod[t])
    x = np.sqrt(bar) * start + np.sqrt(1 - bar) * eps
    tolerance = 1e-5 / min(np.sqrt(bar), np.sqrt(1 - bar))
    for target, prediction in (("eps", eps), ("x_0", start)):
        target = TARGETS[target]
        read = target.read(prediction, x, np.sqrt(bar), np.sqrt(1 - bar))
        np.testing.assert_allclose(read[0], start, atol=tolerance)
        np.testing.assert_allclose(read[1], eps, atol=tolerance)
        goal = target.of(start, eps, np.sqrt(bar), np.sqrt(1 - bar))
        np.testing.assert_array_equal(goal, prediction)


def test_learned_variance_goes_from_the_posterior_to_beta():
    beta, posterior = jnp.float32(-3.0), jnp.float32(-7.0)
    log_variance = interpolate_log_variance(jnp.array([-1.0, 0.0, 1.0]), beta, posterior)
    np.testing.assert_allclose(log_variance, [-7.0, -5.0, -3.0], rtol=1e-6)
