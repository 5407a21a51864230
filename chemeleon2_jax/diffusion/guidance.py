"""Classifier-free guidance (Ho and Salimans 2022): away from what a model does unasked."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from chemeleon2_jax.diffusion.gaussian import DenoiseFn

# (x, t, condition) -> (prediction, variance values or None)
ConditionalFn = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


def guided(
    denoise: ConditionalFn, condition: jax.Array, *, null: jax.Array, scale: float
) -> DenoiseFn:
    """Return the denoise function null + scale * (conditional - null).

    Prediction and variance values alike are guided, as in the original. The model is called twice,
    and once where scale is 1; a batch of both would not shard as the rows do.

    Args:
        denoise: the model.
        condition: (R, S, H) embedding of what is asked for.
        null: (H,) embedding of the null condition.
        scale: 0 is unconditional, 1 conditional, above it the difference is overdone.
    """
    nothing = jnp.broadcast_to(null, condition.shape)

    def combine(asked: jax.Array, unasked: jax.Array) -> jax.Array:
        return unasked + scale * (asked - unasked)

    def guided_fn(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        prediction, variance = denoise(x, t, condition)
        if scale == 1.0:
            return prediction, variance
        null_prediction, null_variance = denoise(x, t, nothing)
        if variance is not None and null_variance is not None:
            variance = combine(variance, null_variance)
        return combine(prediction, null_prediction), variance

    return guided_fn
