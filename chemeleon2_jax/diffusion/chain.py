"""A sampler's chain as one compiled scan, from noise to clean latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.diffusion.gaussian import (
    DenoiseFn,
    Level,
    Prediction,
    predictor,
    with_estimate,
)
from chemeleon2_jax.diffusion.sampler import Memory, Sampler, step_constants
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.rows.rows import Rows, atom_normal, slot_matrix

# Standardised latents are of order 1. What is far beyond overflows within the denoiser, and
# masked attention computes 0 * inf: it would take the other crystals of its row along.
LARGEST_STATE = 1e6


class _State(NamedTuple):
    """Latents (R, T, L), the crystals that failed (R, S), the sampler's memory, and the estimate of
    x_0 for a model with self-conditioning (R, T, L).
    """

    x: jax.Array
    failed: jax.Array
    memory: Memory
    estimate: jax.Array | None


class Trajectory(NamedTuple):
    """A chain with all its states.

    Attributes:
        states: (K + 1, R, T, L), from noise to clean standardised latents.
        failed: (R, S) bool, crystals whose chain stopped being finite; their states are 0.
    """

    states: jax.Array
    failed: jax.Array


def initial_noise(key: jax.Array, rows: Rows, latent_dim: int) -> jax.Array:
    """The state that sampling starts from, (R, T, L): standard normal, by crystal and atom."""
    return atom_normal(jax.random.fold_in(key, 0), rows, latent_dim)


def sample_chain(
    denoise: DenoiseFn,
    key: jax.Array,
    rows: Rows,
    *,
    schedule: Schedule,
    sampler: Sampler,
    latent_dim: int,
    target: str = "eps",
    self_conditioning: bool = False,
) -> jax.Array:
    """Run the chain from noise to clean standardised latents: (R, T, L).

    The noise of step k comes from fold_in(key, k + 1), crystal and atom. A crystal that stops being
    finite, or is on its way (beyond LARGEST_STATE), is set to 0 within the chain, so that it cannot
    reach its neighbours in the row, and to NaN in the result. A model with `self_conditioning` is
    given its last estimate of x_0, at first zeros.
    """
    start, scanned, step = _chain(
        denoise,
        key,
        rows,
        schedule=schedule,
        sampler=sampler,
        latent_dim=latent_dim,
        target=target,
        self_conditioning=self_conditioning,
    )
    end, _ = jax.lax.scan(lambda state, inputs: (step(state, inputs), None), start, scanned)
    failed = jnp.take_along_axis(end.failed, rows.slot, axis=1)[..., None]
    return jnp.where(failed, jnp.nan, end.x)


def roll_out(
    denoise: DenoiseFn,
    key: jax.Array,
    rows: Rows,
    *,
    schedule: Schedule,
    sampler: Sampler,
    latent_dim: int,
    target: str = "eps",
) -> Trajectory:
    """Run the chain of `sample_chain` and keep every state."""
    start, scanned, step = _chain(
        denoise, key, rows, schedule=schedule, sampler=sampler, latent_dim=latent_dim, target=target
    )

    def keep(state: _State, inputs: Any) -> tuple[_State, jax.Array]:
        state = step(state, inputs)
        return state, state.x

    end, states = jax.lax.scan(keep, start, scanned)
    return Trajectory(jnp.concatenate([start.x[None], states]), end.failed)


def _chain(
    denoise: DenoiseFn,
    key: jax.Array,
    rows: Rows,
    *,
    schedule: Schedule,
    sampler: Sampler,
    latent_dim: int,
    target: str,
    self_conditioning: bool = False,
) -> tuple[_State, Any, Callable[[_State, Any], _State]]:
    """The first state, the arrays to scan over, and one step."""
    constants = step_constants(schedule, sampler)
    membership = slot_matrix(rows)

    def fails(x: jax.Array) -> jax.Array:
        bad_token = ~jnp.all(jnp.abs(x) < LARGEST_STATE, -1)
        return jnp.einsum("rts,rt->rs", membership, bad_token.astype(jnp.float32)) > 0

    def at_tokens(failed: jax.Array) -> jax.Array:
        return jnp.take_along_axis(failed, rows.slot, axis=1)[..., None]

    def step(state: _State, inputs: tuple[jax.Array, jax.Array, Any]) -> _State:
        number, is_drawn, values = inputs
        estimate = state.estimate

        def predict_finite(x: jax.Array, level: Level) -> Prediction:
            # Samplers of higher order call the model at states of their own, between two of the
            # chain.
            nonlocal estimate
            failed = at_tokens(fails(x))
            informed = denoise if estimate is None else with_estimate(denoise, estimate)
            predict = predictor(informed, target=target, rows=rows)
            prediction = predict(jnp.where(failed, 0.0, x), level)
            if estimate is not None:
                estimate = jnp.where(at_tokens(fails(prediction.start)), 0.0, prediction.start)
            start, eps = (jnp.where(failed, jnp.nan, v) for v in (prediction.start, prediction.eps))
            return Prediction(start, eps, prediction.variance_values)

        following = sampler.transition(predict_finite, state.x, values, memory=state.memory)
        noise = atom_normal(jax.random.fold_in(key, number), rows, latent_dim)
        x = following.mean + is_drawn * following.std * noise
        failed = state.failed | fails(x)
        if estimate is not None:
            estimate = jnp.where(at_tokens(failed), 0.0, estimate)
        return _State(jnp.where(at_tokens(failed), 0.0, x), failed, following.memory, estimate)

    x = initial_noise(key, rows, latent_dim)
    memory = (jnp.zeros_like(x),) * sampler.num_remembered
    estimate = jnp.zeros_like(x) if self_conditioning else None
    start = _State(x, jnp.zeros(rows.is_crystal.shape, bool), memory, estimate)
    numbers = np.arange(1, sampler.steps + 1)
    is_drawn = (numbers <= sampler.num_drawn).astype(np.float32)
    return start, jax.tree.map(jnp.asarray, (numbers, is_drawn, constants)), step
