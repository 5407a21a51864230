"""Distributions of the diffusion times that training draws, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# JAX is imported where it is needed: checks of a config read the names.


def uniform(key: Any, num_steps: int) -> Any:
    """Every time of the chain with the same probability, () int32."""
    import jax

    return jax.random.randint(key, (), 0, num_steps)


def logit_normal(key: Any, num_steps: int) -> Any:
    """The sigmoid of a standard normal number, () int32: most of the times in the middle, where the
    velocity of a flow is hardest to predict (Esser et al. 2024, eq. 19 with m = 0, s = 1).
    """
    import jax
    import jax.numpy as jnp

    share = jax.nn.sigmoid(jax.random.normal(key, ()))
    return jnp.minimum((share * num_steps).astype(jnp.int32), num_steps - 1)


TIMES: dict[str, Callable[[Any, int], Any]] = {"uniform": uniform, "logit_normal": logit_normal}
