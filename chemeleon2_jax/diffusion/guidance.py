"""Classifier-free guidance (Ho and Salimans 2022): away from the unconditional prediction."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from chemeleon2_jax.diffusion.gaussian import DenoiseFn

ConditionalFn = Callable[..., tuple[jax.Array, jax.Array | None]]
"""(x, t, condition) -> (prediction, variance values or None); further as a `DenoiseFn`."""


def guided(
    denoise: ConditionalFn, condition: jax.Array, *, null: jax.Array, scale: float
) -> DenoiseFn:
    """Return the denoise function null + scale * (conditional - null).

    It applies to the prediction and to the variance values, as in the original. The model is called
    twice, or once with scale 1: one batch of both would not shard as the rows do.

    Args:
        denoise: the model.
        condition: (R, S, H) embedding of the conditions.
        null: (H,) embedding of the null condition.
        scale: 0 is unconditional, 1 conditional, more extrapolates beyond it.
    """
    null_condition = jnp.broadcast_to(null, condition.shape)

    def combine(conditional: jax.Array, unconditional: jax.Array) -> jax.Array:
        return unconditional + scale * (conditional - unconditional)

    def guided_fn(
        x: jax.Array, t: jax.Array, **inputs: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        prediction, variance = denoise(x, t, condition, **inputs)
        if scale == 1.0:
            return prediction, variance
        null_prediction, null_variance = denoise(x, t, null_condition, **inputs)
        if variance is not None and null_variance is not None:
            variance = combine(variance, null_variance)
        return combine(prediction, null_prediction), variance

    return guided_fn
