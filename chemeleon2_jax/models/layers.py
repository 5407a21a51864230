"""Layers shared by the VAE, the diffusion transformer and the predictor.

Tokens are flattened, (R * T, width): XLA on CPUs needs two-dimensional matmuls for full speed; GPUs
and TPUs do not mind. Linear layers are initialised as in PyTorch, so that published learning rates
carry over.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Uniform in +-1/sqrt(fan_in): the default of PyTorch's Linear.
torch_linear_init = nnx.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
xavier_init = nnx.initializers.xavier_uniform()
zeros_init = nnx.initializers.zeros_init()


def linear(
    num_in: int,
    num_out: int,
    *,
    rngs: nnx.Rngs,
    bias: bool = True,
    kernel_init: Any = torch_linear_init,
    dtype: Any = jnp.float32,
) -> nnx.Linear:
    """Linear layer with a (num_in, num_out) kernel; float32 parameters, computed in `dtype`."""
    return nnx.Linear(
        num_in, num_out, use_bias=bias, kernel_init=kernel_init, dtype=dtype, rngs=rngs
    )


def layer_norm(
    width: int, *, rngs: nnx.Rngs, eps: float = 1e-5, affine: bool = True, dtype: Any = jnp.float32
) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics (two-pass variance)."""
    return nnx.LayerNorm(
        width,
        epsilon=eps,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )


def gelu(x: jax.Array) -> jax.Array:
    """GELU, tanh approximation."""
    return jax.nn.gelu(x, approximate=True)


def index_embedding(position: jax.Array, width: int, max_positions: int) -> jax.Array:
    """Embed the index of an atom in its crystal: concat(sin, cos) of idx * pi / 2048**(2k/width), k
    < width / 2.

    Args:
        position: (...) int, smaller than `max_positions`.
        width: even.
        max_positions: static bound; the embedding is looked up in a table of this length.

    Returns:
        (..., width) float32.
    """
    k = np.arange(width // 2)
    angle = np.arange(max_positions)[:, None] * np.pi / 2048.0 ** (2 * k / width)
    table = np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)
    return jnp.asarray(table)[position]


class MLP(nnx.Module):
    """Linear, activation, Linear."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        *,
        rngs: nnx.Rngs,
        activation: Any = jax.nn.silu,
        first_bias: bool = True,
        kernel_init: Any = torch_linear_init,
        dtype: Any = jnp.float32,
    ) -> None:
        num_in, hidden, num_out = sizes
        self.fc1 = linear(
            num_in, hidden, rngs=rngs, bias=first_bias, kernel_init=kernel_init, dtype=dtype
        )
        self.fc2 = linear(hidden, num_out, rngs=rngs, kernel_init=kernel_init, dtype=dtype)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, num_in) -> (N, num_out)."""
        return self.fc2(self.activation(self.fc1(x)))


class SelfAttention(nnx.Module):
    """Multi-head self-attention within rows, with one fused projection to queries, keys and values
    (in this order).
    """

    def __init__(
        self, width: int, num_heads: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ) -> None:
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of the {num_heads} attention heads")
        self.qkv = linear(width, 3 * width, rngs=rngs, kernel_init=xavier_init, dtype=dtype)
        self.out = linear(width, width, rngs=rngs, dtype=dtype)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Attend.

        Args:
            x: (R * T, width).
            bias: (R, T, T) float32, added to the scores of (query, key).

        Returns:
            (R * T, width).
        """
        num_rows, tokens, _ = bias.shape
        heads = self.num_heads
        qkv = self.qkv(x)
        depth = qkv.shape[-1] // (3 * heads)
        # (R, T, 3, heads, depth) -> (3, R * heads, T, depth): heads are folded into the batch.
        folded = qkv.reshape(num_rows, tokens, 3, heads, depth).transpose(2, 0, 3, 1, 4)
        query, key, value = folded.reshape(3, num_rows * heads, tokens, depth)
        scores = jnp.einsum("btd,bsd->bts", query, key, preferred_element_type=jnp.float32)
        scores = scores.reshape(num_rows, heads, tokens, tokens) / math.sqrt(depth) + bias[:, None]
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        weights = weights.reshape(num_rows * heads, tokens, tokens)
        mixed = jnp.einsum("bts,bsd->btd", weights, value)
        mixed = mixed.reshape(num_rows, heads, tokens, depth).transpose(0, 2, 1, 3)
        return self.out(mixed.reshape(num_rows * tokens, heads * depth))


class TransformerLayer(nnx.Module):
    """Pre-norm transformer layer: x += attention(norm(x)); x += MLP(norm(x))."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        feedforward: int,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        self.norm1 = layer_norm(width, rngs=rngs, dtype=dtype)
        self.attention = SelfAttention(width, num_heads, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(width, rngs=rngs, dtype=dtype)
        self.mlp = MLP((width, feedforward, width), rngs=rngs, activation=gelu, dtype=dtype)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """(R * T, width) with attention bias (R, T, T) -> (R * T, width)."""
        x = x + self.attention(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))


class Transformer(nnx.Module):
    """A stack of pre-norm layers and a final LayerNorm."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        feedforward: int,
        *,
        num_layers: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        self.layers = nnx.List(
            TransformerLayer(width, num_heads, feedforward, rngs=rngs, dtype=dtype)
            for _ in range(num_layers)
        )
        self.norm = layer_norm(width, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """(R * T, width) with attention bias (R, T, T) -> (R * T, width)."""
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x)
