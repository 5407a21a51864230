"""Weights of the training loss by noise level, by name. A new one is an entry of `WEIGHTINGS`.

Every target is a combination of x_0 and eps, so that an error of the prediction is, times a factor
that the level and the target fix, an error of x_0. A weighting is stated for the error of x_0, as
in its paper, and holds for every target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chemeleon2_jax.diffusion.targets import TARGETS

# JAX is imported where it is needed: checks of a config read the names.

Array = Any
LARGEST_RATIO = 5.0
"""Largest weight of an error of x_0, the gamma of Hang et al. 2023 (their default)."""


def uniform(target: str, signal: Array, spread: Array) -> Array:
    """Weight 1 on the error of the prediction, whatever the target."""
    import jax.numpy as jnp

    return jnp.ones_like(signal)


def min_snr(target: str, signal: Array, spread: Array) -> Array:
    """Weight min(snr, gamma) on the error of x_0, with snr = (signal / spread)^2 (Hang et al. 2023,
    eq. 5): levels of little noise do not outweigh the others. Of eps it is min(snr, gamma) / snr,
    of v min(snr, gamma) / (snr + 1).
    """
    import jax.numpy as jnp

    # Both are linear in the prediction: read off at x_t = 0.
    start, _ = TARGETS[target].read(1.0, 0.0, signal, spread)
    return jnp.minimum((signal / spread) ** 2, LARGEST_RATIO) * start**2


WEIGHTINGS: dict[str, Callable[[str, Array, Array], Array]] = {
    "uniform": uniform,
    "min_snr": min_snr,
}
