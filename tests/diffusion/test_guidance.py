"""Guidance: its formula, on prediction and variance, and how often it calls the model."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.diffusion.guidance import guided

X = jnp.arange(24.0).reshape(2, 3, 4) / 7
T = jnp.array([[5, 6], [7, 8]])
CONDITION = jnp.arange(12.0).reshape(2, 2, 3)
NULL = jnp.array([0.5, -1.0, 2.0])


def make_model(*, with_variance=True):
    """A denoise function, and the conditions that it was called with."""
    calls = []

    def denoise(x, t, condition):
        calls.append(condition)
        level = (condition.sum(-1) * t)[:, :1, None]
        return x * level, jnp.cos(level) + x if with_variance else None

    return denoise, calls


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, -1.0])
def test_formula(scale):
    denoise, calls = make_model()
    outputs = guided(denoise, CONDITION, null=NULL, scale=scale)(X, T)
    assert len(calls) == 2
    conditional = denoise(X, T, CONDITION)
    unconditional = denoise(X, T, jnp.broadcast_to(NULL, CONDITION.shape))
    for output, a, b in zip(outputs, conditional, unconditional, strict=True):
        assert np.abs(a - b).max() > 0.1
        np.testing.assert_allclose(output, b + scale * (a - b), rtol=1e-5)


def test_without_guidance_the_model_is_called_once():
    denoise, calls = make_model()
    outputs = guided(denoise, CONDITION, null=NULL, scale=1.0)(X, T)
    assert len(calls) == 1
    for output, expected in zip(outputs, denoise(X, T, CONDITION), strict=True):
        np.testing.assert_array_equal(output, expected)


def test_without_variance():
    denoise, _ = make_model(with_variance=False)
    assert guided(denoise, CONDITION, null=NULL, scale=2.0)(X, T)[1] is None


def test_what_is_asked_of_nothing_is_not_guided():
    """Where the condition is the null condition, any scale gives what the model does unasked."""
    denoise, _ = make_model()
    nothing = jnp.broadcast_to(NULL, CONDITION.shape)
    outputs = guided(denoise, nothing, null=NULL, scale=7.0)(X, T)
    for output, expected in zip(outputs, denoise(X, T, nothing), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-5)
