"""Embedding of a crystal's conditions.

A row of NaN is the null condition, which a learned input stands for. Classifier-free guidance (Ho
and Salimans 2022) compares predictions with and without conditions.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from chemeleon2_jax.models.layers import MLP, torch_linear_init
from chemeleon2_jax.models.sizes import ConditionSizes


class ConditionEncoder(nnx.Module):
    """MLP over the input of one condition, with a learned input for the null condition."""

    def __init__(self, width: int, hidden_dim: int, *, rngs: nnx.Rngs) -> None:
        self.null_embed = nnx.Param(torch_linear_init(rngs.params(), (1, width), jnp.float32))
        mlp = MLP((width, hidden_dim, hidden_dim), rngs=rngs)
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def __call__(self, values: jax.Array) -> jax.Array:
        """(N, width), NaN where the condition is null -> (N, hidden_dim)."""
        is_null = jnp.isnan(values).any(-1, keepdims=True)
        # The inner `where` too: a NaN in the branch that is not taken would reach the gradients.
        values = jnp.where(is_null, self.null_embed[...], jnp.where(is_null, 0.0, values))
        return self.fc2(jax.nn.silu(self.fc1(values)))


class Conditions(nnx.Module):
    """Embeddings of all conditions, joined and projected, in float32."""

    def __init__(self, sizes: ConditionSizes, *, rngs: nnx.Rngs) -> None:
        hidden = sizes.hidden_dim
        for name in sizes.names:
            if hasattr(nnx.Dict, name):  # names become attributes
                raise ValueError(f"{name!r} cannot be the name of a condition")
        self.encoders = nnx.Dict(
            {c.name: ConditionEncoder(c.width, hidden, rngs=rngs) for c in sizes.conditions}
        )
        mlp = MLP((len(sizes.conditions) * hidden, hidden, hidden), rngs=rngs)
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2
        self.sizes = sizes

    def __call__(self, values: Mapping[str, jax.Array]) -> jax.Array:
        """Embed conditions.

        Args:
            values: name -> (R, S, width), encoded by `Condition.encode`.

        Returns:
            (R, S, hidden_dim).

        Raises:
            ValueError: the names are not those of this model's conditions.
        """
        if set(values) != set(self.sizes.names):
            raise ValueError(
                f"this model takes the conditions {', '.join(self.sizes.names)}; got "
                f"{', '.join(sorted(values)) or 'none'}"
            )
        shape = values[self.sizes.names[0]].shape[:-1]
        embeddings = [
            self.encoders[c.name](values[c.name].reshape(-1, c.width).astype(jnp.float32))
            for c in self.sizes.conditions
        ]
        joined = self.fc2(jax.nn.silu(self.fc1(jnp.concatenate(embeddings, -1))))
        return joined.reshape(*shape, -1)

    def null(self) -> jax.Array:
        """Return the embedding (hidden_dim,) with all conditions null."""
        values = {c.name: jnp.full((1, 1, c.width), jnp.nan) for c in self.sizes.conditions}
        return self(values)[0, 0]
