"""Properties of a crystal from the latents of a frozen VAE.

Letters as in `rows.packing`; P targets.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chemeleon2_jax.models.layers import layer_norm, linear
from chemeleon2_jax.models.sizes import PredictorSizes
from chemeleon2_jax.models.vae import Posterior
from chemeleon2_jax.rows.rows import Rows, pool_tokens, slot_matrix

DROPOUT = 0.1
_STD_OFFSET = 1e-5  # the original's, for constant targets


class Predictor(nnx.Module):
    """MLP over the pooled features of a crystal's atoms."""

    def __init__(self, sizes: PredictorSizes, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        width = sizes.width
        narrow, middle = width // 4, width // 2
        self.fc1 = linear(width, narrow, rngs=rngs, dtype=dtype)
        self.norm1 = layer_norm(narrow, rngs=rngs, dtype=dtype)
        self.fc2 = linear(narrow, middle, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(middle, rngs=rngs, dtype=dtype)
        self.fc3 = linear(middle, len(sizes.targets), rngs=rngs)
        self.sizes = sizes

    def __call__(self, posterior: Posterior, rows: Rows) -> jax.Array:
        """Predict standardised targets.

        Args:
            posterior: of the VAE.
            rows: layout of the crystals.

        Returns:
            (R, S, P) float32; see `to_units`. Empty slots hold anything finite.
        """
        pooled = pool_features(posterior, rows, self.sizes)
        return self.head(pooled.reshape(-1, pooled.shape[-1])).reshape(*pooled.shape[:2], -1)

    def head(self, x: jax.Array, *, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Predict from pooled features: (N, W) -> (N, P).

        With `dropout_keys` (N,), a tenth of each crystal's hidden values are dropped.
        """
        layers = ((self.fc1, self.norm1), (self.fc2, self.norm2))
        for number, (layer, norm) in enumerate(layers):
            x = jax.nn.silu(norm(layer(x)))
            if dropout_keys is not None:
                x = _drop(x, jax.vmap(lambda k, n=number: jax.random.fold_in(k, n))(dropout_keys))
        return self.fc3(x.astype(jnp.float32))


def pool_features(posterior: Posterior, rows: Rows, sizes: PredictorSizes) -> jax.Array:
    """Pool the latents (and encoder features) of a crystal's atoms: (R, S, W) float32."""
    features = posterior.mean
    if sizes.use_encoder_features:
        features = jnp.concatenate([features, posterior.features], -1)
    pooled = pool_tokens(slot_matrix(rows), features, rows.is_atom.astype(jnp.float32))
    if sizes.reduce == "mean":
        pooled = pooled / jnp.maximum(rows.num_atoms, 1)[..., None]
    return pooled


def _drop(x: jax.Array, keys: jax.Array) -> jax.Array:
    """Dropout over (N, W), with a key (N,) per row."""
    kept = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - DROPOUT, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - DROPOUT), 0.0).astype(x.dtype)


def to_units(values: Any, sizes: PredictorSizes) -> Any:
    """Convert standardised targets (..., P) to their units."""
    mean, spread = _moments(sizes)
    return values * spread + mean


def standardise(values: Any, sizes: PredictorSizes) -> Any:
    """Undo `to_units`: (y - mean) / (std + 1e-5)."""
    mean, spread = _moments(sizes)
    return (values - mean) / spread


def _moments(sizes: PredictorSizes) -> tuple[np.ndarray, np.ndarray]:
    """Mean and divisor of each target, (P,); 0 and 1 where it is not standardised."""
    moments = [
        (0.0, 1.0) if t.mean is None or t.std is None else (t.mean, t.std + _STD_OFFSET)
        for t in sizes.targets
    ]
    mean, spread = np.array(moments).T
    return mean, spread
