"""Gaussian diffusion: noising, what a model's output means, and the training loss.

`diffusion` knows no model: eps and variance values come from a function. Shapes: x (R, T, L); t (R,
S) is the time of each crystal, an index into a schedule of K steps; `at_tokens` spreads schedule
values to (R, T, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.rows.rows import Rows, mean_over_crystal, slot_matrix, weighted_mean

# (x, t) -> (prediction, variance values or None), all (R, T, L); t (R, S) in original times
DenoiseFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


def at_tokens(values: np.ndarray, t: jax.Array, rows: Rows) -> jax.Array:
    """Look up schedule values (K,) at the time t (R, S) of each token's crystal: (R, T, 1)
    float32.
    """
    per_slot = jnp.asarray(values, jnp.float32)[t]
    return jnp.take_along_axis(per_slot, rows.slot, axis=1)[..., None]


def add_noise(
    x_start: jax.Array, noise: jax.Array, t: jax.Array, *, schedule: Schedule, rows: Rows
) -> jax.Array:
    """Sample q(x_t | x_0) = sqrt(alphas_cumprod) x_0 + sqrt(1 - alphas_cumprod) noise."""
    signal = at_tokens(np.sqrt(schedule.alphas_cumprod), t, rows)
    spread = at_tokens(np.sqrt(1.0 - schedule.alphas_cumprod), t, rows)
    return signal * x_start + spread * noise


def predict_start_and_eps(
    prediction: jax.Array, x: jax.Array, alphas_cumprod: jax.Array, *, target: str
) -> tuple[jax.Array, jax.Array]:
    """Return (x_0, eps) from what a model with that target predicts at x; alphas_cumprod broadcasts
    to x.
    """
    signal, spread = jnp.sqrt(alphas_cumprod), jnp.sqrt(1.0 - alphas_cumprod)
    if target == "x_0":
        return prediction, (x - signal * prediction) / spread
    return (x - spread * prediction) / signal, prediction


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
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of each crystal: MSE of the prediction, plus the variational bound where the variance is
    learned.

    The bound is in bits, sees the mean through a stop-gradient and is scaled by K / 1000. Means are
    over a crystal's atoms and L.

    Args:
        denoise: the model.
        x_start: (R, T, L) clean latents.
        t: (R, S) int in [0, K).
        noise: (R, T, L).
        schedule: of training.
        rows: what is where.
        target: what the model predicts.

    Returns:
        (R, S) loss, and its terms `mse` and `vb`, (R, S) each. Slots without a crystal hold 0.
    """
    x_t = add_noise(x_start, noise, t, schedule=schedule, rows=rows)
    prediction, variance_values = denoise(x_t, t)
    membership = slot_matrix(rows)

    def per_crystal(values: jax.Array) -> jax.Array:
        return mean_over_crystal(rows, membership, values.mean(-1, keepdims=True))[..., 0]

    goal = noise if target == "eps" else x_start
    terms = {"mse": per_crystal((goal - prediction) ** 2)}
    loss = terms["mse"]
    if variance_values is not None:
        bound = _variational_bound(
            jax.lax.stop_gradient(prediction),
            variance_values,
            x_start=x_start,
            x_t=x_t,
            t=t,
            schedule=schedule,
            rows=rows,
            target=target,
        )
        terms["vb"] = per_crystal(bound) * (schedule.num_steps / 1000.0)
        loss = loss + terms["vb"]
    return loss, terms


def mean_loss(
    loss: jax.Array, terms: dict[str, jax.Array], rows: Rows
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over the crystals of the global batch, of the loss and of each term."""
    means = {f"loss_{name}": weighted_mean(value, rows.is_crystal) for name, value in terms.items()}
    return weighted_mean(loss, rows.is_crystal), means


def _variational_bound(
    prediction: jax.Array,
    variance_values: jax.Array,
    *,
    x_start: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    schedule: Schedule,
    rows: Rows,
    target: str,
) -> jax.Array:
    """KL(q(x_{t-1} | x_t, x_0) || p) in bits, and at t = 0 the negative log-density of x_0; (R, T,
    L).
    """

    def lookup(values: np.ndarray) -> jax.Array:
        return at_tokens(values, t, rows)

    alphas_cumprod = lookup(schedule.alphas_cumprod)
    start, _ = predict_start_and_eps(prediction, x_t, alphas_cumprod, target=target)
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
