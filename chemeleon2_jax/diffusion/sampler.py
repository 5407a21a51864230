"""DDPM and DDIM as one compiled scan (Ho et al. 2020; Song et al. 2021).

One function, `transition`, gives the Gaussian of a step: sampling draws from it, and scoring
(log-probability of a given next state) reads the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.diffusion.gaussian import (
    DenoiseFn,
    interpolate_log_variance,
    predict_start_and_eps,
)
from chemeleon2_jax.diffusion.schedule import SAMPLERS, Schedule, sampling_timesteps
from chemeleon2_jax.rows.rows import Rows, atom_normal, mean_over_crystal, slot_matrix

# Latents over latent_std are of order 1. What is far beyond overflows within the denoiser, and
# masked attention computes 0 * inf: it would take the other crystals of its row along.
LARGEST_STATE = 1e6


@dataclass(frozen=True)
class SamplerConfig:
    """Which sampler, how many steps, and for DDIM how much noise: eta 0 is deterministic, 1 as
    DDPM.
    """

    sampler: str = "ddim"
    steps: int = 50
    eta: float = 1.0

    def __post_init__(self) -> None:
        """Check name and ranges."""
        if self.sampler not in SAMPLERS:
            raise ValueError(
                f"sampler {self.sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}"
            )
        if self.steps < 1 or not 0.0 <= self.eta < math.inf:
            raise ValueError(f"steps {self.steps} must be at least 1 and eta {self.eta} at least 0")


class StepConstants(NamedTuple):
    """Of one step, each a float32 scalar (stacked over steps for the scan); `t` is the time that
    the model sees, int32.
    """

    t: Any
    alphas_cumprod: Any
    alphas_cumprod_prev: Any
    ddim_std: Any
    coef1: Any
    coef2: Any
    log_beta: Any
    log_posterior: Any
    log_fixed: Any
    has_noise: Any


class Gaussian(NamedTuple):
    """Distribution of the next state: mean and std (R, T, L) or broadcastable to it."""

    mean: jax.Array
    std: jax.Array


def step_constants(schedule: Schedule, config: SamplerConfig) -> StepConstants:
    """Constants of all steps in sampling order, the noisiest first: (K,) each."""
    kept = schedule.respace(sampling_timesteps(config.sampler, config.steps, schedule.num_steps))
    # Song et al. 2021, eq. 16. In float32, as the original: 1 - bar / previous cancels where bar is
    # near 1, and log-probabilities hang on the digits that are left.
    bar, previous = (np.float32(v) for v in (kept.alphas_cumprod, kept.alphas_cumprod_prev))
    ddim_std = config.eta * np.sqrt((1 - previous) / (1 - bar)) * np.sqrt(1 - bar / previous)
    values = StepConstants(
        t=kept.timesteps,
        alphas_cumprod=bar,
        alphas_cumprod_prev=previous,
        ddim_std=ddim_std,
        coef1=kept.posterior_mean_coef1,
        coef2=kept.posterior_mean_coef2,
        log_beta=np.log(kept.betas),
        log_posterior=kept.posterior_log_variance_clipped,
        log_fixed=kept.fixed_large_log_variance,
        has_noise=np.arange(kept.num_steps) > 0,
    )
    as_float32 = [np.asarray(v[::-1], np.float32) for v in values]
    return StepConstants(*as_float32)._replace(t=kept.timesteps[::-1].astype(np.int32))


def transition(
    denoise: DenoiseFn,
    x: jax.Array,
    constants: StepConstants,
    *,
    rows: Rows,
    sampler: str,
    target: str = "eps",
) -> Gaussian:
    """Return the Gaussian of the next state at x (R, T, L); its std is 0 at the last step of DDIM.

    Where `denoise` gives no variance values, DDPM takes the fixed variance. A model with an
    interleaved variance gives them in padded rows alone: see `dit.split_output`.
    """
    t = jnp.broadcast_to(constants.t, rows.is_crystal.shape)
    prediction, variance_values = denoise(x, t)
    start, eps = predict_start_and_eps(prediction, x, constants.alphas_cumprod, target=target)
    if sampler == "ddim":
        previous, std = constants.alphas_cumprod_prev, constants.ddim_std
        direction = jnp.sqrt(jnp.maximum(1.0 - previous - std**2, 0.0))
        return Gaussian(jnp.sqrt(previous) * start + direction * eps, std)
    mean = constants.coef1 * start + constants.coef2 * x
    if variance_values is None:
        return Gaussian(mean, jnp.exp(0.5 * constants.log_fixed))
    log_variance = interpolate_log_variance(
        variance_values, constants.log_beta, constants.log_posterior
    )
    return Gaussian(mean, jnp.exp(0.5 * log_variance))


def log_probability(gaussian: Gaussian, state: jax.Array, rows: Rows) -> jax.Array:
    """Mean over a crystal's atoms and L of the log density of `state` (R, T, L): (R, S). The std
    must not be 0.
    """
    std = jnp.broadcast_to(gaussian.std, state.shape)
    density = -0.5 * ((state - gaussian.mean) / std) ** 2 - jnp.log(std) - 0.5 * np.log(2 * np.pi)
    means = mean_over_crystal(rows, slot_matrix(rows), density.mean(-1, keepdims=True))
    return means[..., 0]


def initial_noise(key: jax.Array, rows: Rows, latent_dim: int) -> jax.Array:
    """The state that sampling starts from, (R, T, L): standard normal, by crystal and atom."""
    return atom_normal(jax.random.fold_in(key, 0), rows, latent_dim)


def sample_chain(
    denoise: DenoiseFn,
    key: jax.Array,
    rows: Rows,
    *,
    schedule: Schedule,
    config: SamplerConfig,
    latent_dim: int,
    target: str = "eps",
) -> jax.Array:
    """Run the chain from noise to clean latents over latent_std: (R, T, L).

    The noise of step k comes from fold_in(key, k + 1), crystal and atom. A crystal that stops being
    finite, or is on its way (beyond LARGEST_STATE), is set to 0 within the chain, so that it cannot
    reach its neighbours in the row, and to NaN in the result.
    """
    start, scanned, step = _chain(
        denoise, key, rows, schedule=schedule, config=config, latent_dim=latent_dim, target=target
    )
    (x, failed), _ = jax.lax.scan(lambda state, inputs: (step(state, inputs), None), start, scanned)
    return jnp.where(jnp.take_along_axis(failed, rows.slot, axis=1)[..., None], jnp.nan, x)


class Trajectory(NamedTuple):
    """A chain with all that it went through.

    Attributes:
        states: (K + 1, R, T, L), from noise to clean latents over latent_std.
        failed: (R, S) bool, crystals whose chain stopped being finite; their states are 0.
    """

    states: jax.Array
    failed: jax.Array


def roll_out(
    denoise: DenoiseFn,
    key: jax.Array,
    rows: Rows,
    *,
    schedule: Schedule,
    config: SamplerConfig,
    latent_dim: int,
    target: str = "eps",
) -> Trajectory:
    """Run the chain of `sample_chain` and keep every state."""
    start, scanned, step = _chain(
        denoise, key, rows, schedule=schedule, config=config, latent_dim=latent_dim, target=target
    )

    def keep(state: _State, inputs: Any) -> tuple[_State, jax.Array]:
        state = step(state, inputs)
        return state, state[0]

    (_, failed), states = jax.lax.scan(keep, start, scanned)
    return Trajectory(jnp.concatenate([start[0][None], states]), failed)


_State = tuple[jax.Array, jax.Array]
"""Where a chain is: latents (R, T, L), and which crystals failed (R, S)."""


def _chain(
    denoise: DenoiseFn,
    key: jax.Array,
    rows: Rows,
    *,
    schedule: Schedule,
    config: SamplerConfig,
    latent_dim: int,
    target: str,
) -> tuple[_State, Any, Callable[[_State, Any], _State]]:
    """Where the chain starts, what is scanned over, and one step."""
    constants = step_constants(schedule, config)
    membership = slot_matrix(rows)

    def step(state: _State, inputs: tuple[jax.Array, StepConstants]) -> _State:
        x, failed = state
        number, values = inputs
        gaussian = transition(denoise, x, values, rows=rows, sampler=config.sampler, target=target)
        noise = atom_normal(jax.random.fold_in(key, number), rows, latent_dim)
        x = gaussian.mean + values.has_noise * gaussian.std * noise
        bad_token = ~jnp.all(jnp.abs(x) < LARGEST_STATE, -1)
        failed = failed | (jnp.einsum("rts,rt->rs", membership, bad_token.astype(jnp.float32)) > 0)
        stopped = jnp.take_along_axis(failed, rows.slot, axis=1)[..., None]
        return jnp.where(stopped, 0.0, x), failed

    numbers = jnp.arange(1, config.steps + 1)
    start = (initial_noise(key, rows, latent_dim), jnp.zeros(rows.is_crystal.shape, bool))
    return start, jax.tree.map(jnp.asarray, (numbers, constants)), step
