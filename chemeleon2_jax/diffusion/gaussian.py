"""Gaussian diffusion: noising, the meaning of a model's output, and the training loss.

`diffusion` knows no model: prediction and variance values come from a function. Shapes: x (R, T,
L); t (R, S) is the time of each crystal, an index into a schedule of K steps; `at_tokens` spreads
schedule values to (R, T, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.diffusion.targets import TARGETS
from chemeleon2_jax.diffusion.weights import WEIGHTINGS
from chemeleon2_jax.rows.rows import Rows, mean_over_crystal, slot_matrix

DenoiseFn = Callable[..., tuple[jax.Array, jax.Array | None]]
"""(x, t) -> (prediction, variance values or None), all (R, T, L); t (R, S) in original times. That
of a model with self-conditioning takes `estimate=` (R, T, L), an earlier estimate of x_0.
"""


class Level(NamedTuple):
    """Noise level x_t = signal x_0 + spread eps.

    Attributes:
        t: the time that the model sees, int32; () or (R, S), one a crystal.
        signal, spread: () or (R, T, 1) float32.
    """

    t: Any
    signal: jax.Array
    spread: jax.Array

    @staticmethod
    def of(t: Any, alphas_cumprod: Any) -> Level:
        """The level at `alphas_cumprod`, where signal and noise have variances that add up to 1."""
        # In the program, not on the host: XLA divides by a square root with rsqrt, and the bits of
        # a resumed run are those of the run.
        return Level(t, jnp.sqrt(alphas_cumprod), jnp.sqrt(1.0 - alphas_cumprod))


class Prediction(NamedTuple):
    """A model's output at a noise level, whatever its target: x_0, eps and, of a model that learns
    it, the variance values in [-1, 1] (see `interpolate_log_variance`). All (R, T, L).
    """

    start: jax.Array
    eps: jax.Array
    variance_values: jax.Array | None


PredictFn = Callable[[jax.Array, Level], Prediction]
"""(x (R, T, L), its noise level) -> Prediction. Calls the model once."""


def with_estimate(denoise: DenoiseFn, estimate: jax.Array) -> DenoiseFn:
    """Return the denoise function with an estimate of x_0 (Chen et al. 2022)."""
    return lambda x, t: denoise(x, t, estimate=estimate)


def predictor(denoise: DenoiseFn, *, target: str, rows: Rows) -> PredictFn:
    """Return the function that reads x_0 and eps off a model with this target."""
    read = TARGETS[target].read

    def predict(x: jax.Array, level: Level) -> Prediction:
        t = jnp.broadcast_to(level.t, rows.is_crystal.shape)
        prediction, variance_values = denoise(x, t)
        start, eps = read(prediction, x, level.signal, level.spread)
        return Prediction(start, eps, variance_values)

    return predict


def at_tokens(values: np.ndarray, t: jax.Array, rows: Rows) -> jax.Array:
    """Look up schedule values (K,) at the time t (R, S) of each token's crystal: (R, T, 1)
    float32.
    """
    per_slot = jnp.asarray(values, jnp.float32)[t]
    return jnp.take_along_axis(per_slot, rows.slot, axis=1)[..., None]


def level_at(t: jax.Array, *, schedule: Schedule, rows: Rows) -> Level:
    """Return the noise level of each crystal at its time t (R, S)."""
    return Level.of(t, at_tokens(schedule.alphas_cumprod, t, rows))


def add_noise(
    x_start: jax.Array, noise: jax.Array, t: jax.Array, *, schedule: Schedule, rows: Rows
) -> jax.Array:
    """Sample q(x_t | x_0) = sqrt(alphas_cumprod) x_0 + sqrt(1 - alphas_cumprod) noise."""
    signal = at_tokens(np.sqrt(schedule.alphas_cumprod), t, rows)
    spread = at_tokens(np.sqrt(1.0 - schedule.alphas_cumprod), t, rows)
    return signal * x_start + spread * noise


def interpolate_log_variance(
    values: jax.Array, log_beta: jax.Array, log_posterior: jax.Array
) -> jax.Array:
    """Learned variance: values in [-1, 1] go from the clipped posterior log variance to log beta
    (Nichol and Dhariwal 2021, eq. 15).
    """
    share = (values + 1.0) / 2.0
    return share * log_beta + (1.0 - share) * log_posterior


def training_loss(
    denoise: DenoiseFn,
    x_start: jax.Array,
    *,
    t: jax.Array,
    noise: jax.Array,
    schedule: Schedule,
    rows: Rows,
    target: str = "eps",
    weighting: str = "uniform",
    estimate_key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of each crystal: weighted MSE of the prediction, plus the variational bound where the
    variance is learned.

    The bound is in bits, sees the mean through a stop-gradient and is scaled by K / 1000. Means are
    over a crystal's atoms and L.

    Args:
        denoise: the model.
        x_start: (R, T, L) clean latents.
        t: (R, S) int in [0, K).
        noise: (R, T, L).
        schedule: of training.
        rows: the crystals.
        target: name of the model's target.
        weighting: weights of the MSE by noise level, a name in `weights.WEIGHTINGS`.
        estimate_key: key of a coin, for a model with self-conditioning: on heads it is given its
            own estimate of x_0, made without one. None gives it no estimate.

    Returns:
        (R, S) loss, and its terms `mse`, not weighted, and `vb`, (R, S) each. Slots without a
        crystal hold 0.
    """
    x_t = add_noise(x_start, noise, t, schedule=schedule, rows=rows)
    level = level_at(t, schedule=schedule, rows=rows)
    if estimate_key is not None:
        estimate = _own_estimate(
            estimate_key, predictor(denoise, target=target, rows=rows), x_t, level
        )
        denoise = with_estimate(denoise, estimate)
    prediction, variance_values = denoise(x_t, t)
    membership = slot_matrix(rows)

    def per_crystal(values: jax.Array) -> jax.Array:
        return mean_over_crystal(rows, membership, values.mean(-1, keepdims=True))[..., 0]

    goal = TARGETS[target].of(x_start, noise, level.signal, level.spread)
    squares = (goal - prediction) ** 2
    terms = {"mse": per_crystal(squares)}
    loss = terms["mse"]
    if weighting != "uniform":  # a product with 1 would cost a pass over the tokens
        loss = per_crystal(WEIGHTINGS[weighting](target, level.signal, level.spread) * squares)
    if variance_values is not None:
        fixed = jax.lax.stop_gradient(prediction)
        start, _ = TARGETS[target].read(fixed, x_t, level.signal, level.spread)
        bound = _variational_bound(
            start, variance_values, x_start=x_start, x_t=x_t, t=t, schedule=schedule, rows=rows
        )
        terms["vb"] = per_crystal(bound) * (schedule.num_steps / 1000.0)
        loss = loss + terms["vb"]
    return loss, terms


def _own_estimate(key: jax.Array, predict: PredictFn, x: jax.Array, level: Level) -> jax.Array:
    """Return the model's estimate of x_0, without a gradient, or zeros: one coin for the batch, so
    that half of the steps call the model once (Chen et al. 2022, algorithm 1).
    """

    def estimate() -> jax.Array:
        return jax.lax.stop_gradient(predict(x, level).start)

    return jax.lax.cond(jax.random.bernoulli(key), estimate, lambda: jnp.zeros_like(x))


def _variational_bound(
    start: jax.Array,
    variance_values: jax.Array,
    *,
    x_start: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    schedule: Schedule,
    rows: Rows,
) -> jax.Array:
    """KL(q(x_{t-1} | x_t, x_0) || p) in bits for the predicted x_0 `start`, and at t = 0 the
    negative log-density of x_0; (R, T, L).
    """

    def lookup(values: np.ndarray) -> jax.Array:
        return at_tokens(values, t, rows)

    coef1, coef2 = lookup(schedule.posterior_mean_coef1), lookup(schedule.posterior_mean_coef2)
    true_mean, mean = coef1 * x_start + coef2 * x_t, coef1 * start + coef2 * x_t
    true_log_variance = lookup(schedule.posterior_log_variance_clipped)
    log_variance = interpolate_log_variance(
        variance_values, lookup(np.log(schedule.betas)), true_log_variance
    )
    difference = true_log_variance - log_variance
    squared = (true_mean - mean) ** 2 * jnp.exp(-log_variance)
    kl = 0.5 * (-1.0 - difference + jnp.exp(difference) + squared)
    # As the original: a standard normal density of the standardised residual, without its -log(std)
    # term.
    residual = (x_start - mean) * jnp.exp(-0.5 * log_variance)
    nll = 0.5 * residual**2 + 0.5 * np.log(2.0 * np.pi)
    first = jnp.take_along_axis(t == 0, rows.slot, axis=1)[..., None]
    return jnp.where(first, nll, kl) / np.log(2.0)
