"""The diffusion transformer (DiT, Peebles and Xie 2023) over the latents of a crystal's atoms.

Letters as in `rows.packing`; H hidden width, L latent width. Time, condition and the modulation of
each block belong to the crystal: computed once per slot and spread to the tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chemeleon2_jax.models.conditions import Conditions
from chemeleon2_jax.models.layers import (
    MLP,
    SelfAttention,
    gelu,
    index_embedding,
    layer_norm,
    linear,
    xavier_init,
    zeros_init,
)
from chemeleon2_jax.models.lora import add_lora
from chemeleon2_jax.models.sizes import VARIANCE_LAYOUTS, DiTSizes
from chemeleon2_jax.rows.rows import Rows, attention_bias, gather_slots, slot_matrix

TIME_EMBEDDING_WIDTH = 256


def time_embedding(t: jax.Array) -> jax.Array:
    """Embed diffusion times (N,) as concat(cos, sin) of t * exp(-ln(10000) k / 128), k < 128: (N,
    256).
    """
    half = TIME_EMBEDDING_WIDTH // 2
    freqs = np.exp(-np.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angle = t.astype(jnp.float32)[:, None] * freqs
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class DiTBlock(nnx.Module):
    """Attention and MLP with adaptive LayerNorm and gates that start at zero (adaLN-Zero)."""

    def __init__(self, sizes: DiTSizes, *, rngs: nnx.Rngs, dtype: Any) -> None:
        h = sizes.hidden_size
        self.norm1 = layer_norm(h, eps=1e-6, affine=False, rngs=rngs, dtype=dtype)
        self.attention = SelfAttention(h, sizes.num_heads, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(h, eps=1e-6, affine=False, rngs=rngs, dtype=dtype)
        hidden = round(h * sizes.mlp_ratio)
        self.mlp = MLP(
            (h, hidden, h), rngs=rngs, activation=gelu, kernel_init=xavier_init, dtype=dtype
        )
        self.modulation = linear(h, 6 * h, rngs=rngs, kernel_init=zeros_init, dtype=dtype)

    def __call__(
        self, x: jax.Array, c: jax.Array, membership: jax.Array, bias: jax.Array
    ) -> jax.Array:
        """Update tokens.

        Args:
            x: (R * T, H).
            c: (R * S, H), SiLU of the embedding of time plus condition.
            membership: (R, T, S), from `rows.slot_matrix`.
            bias: (R, T, T) attention bias.

        Returns:
            (R * T, H).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulate(self.modulation(c), membership, 6)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, bias)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def _modulate(values: jax.Array, membership: jax.Array, count: int) -> list[jax.Array]:
    """Spread (R * S, count * H) modulation to tokens: `count` arrays (R * T, H)."""
    num_rows, tokens, slots = membership.shape
    spread = gather_slots(membership, values.reshape(num_rows, slots, -1))
    return jnp.split(spread.reshape(num_rows * tokens, -1), count, axis=-1)


class DiT(nnx.Module):
    """Predict noise (and variance) from noisy latents, time and condition."""

    def __init__(self, sizes: DiTSizes, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        if sizes.variance_layout not in VARIANCE_LAYOUTS:
            raise ValueError(
                f"variance_layout is {sizes.variance_layout!r}; choose one of {VARIANCE_LAYOUTS}"
            )
        if sizes.conditions and sizes.conditions.hidden_dim != sizes.hidden_size:
            raise ValueError(
                f"the conditions are embedded in {sizes.conditions.hidden_dim} dimensions, but the "
                f"denoiser has {sizes.hidden_size}"
            )
        h, width = sizes.hidden_size, sizes.latent_dim * (2 if sizes.learn_sigma else 1)
        self.x_embedder = linear(
            sizes.latent_dim, h, rngs=rngs, kernel_init=xavier_init, dtype=dtype
        )
        # Without a bias: no estimate is an estimate of 0.
        self.estimate_embedder = (
            linear(
                *(sizes.latent_dim, h),
                rngs=rngs,
                kernel_init=xavier_init,
                bias=False,
                dtype=dtype,
            )
            if sizes.self_conditioning
            else None
        )
        normal = nnx.initializers.normal(0.02)
        self.t_embedder = MLP((TIME_EMBEDDING_WIDTH, h, h), rngs=rngs, kernel_init=normal)
        self.blocks = nnx.List(DiTBlock(sizes, rngs=rngs, dtype=dtype) for _ in range(sizes.depth))
        self.final_norm = layer_norm(h, eps=1e-6, affine=False, rngs=rngs, dtype=dtype)
        self.final_modulation = linear(h, 2 * h, rngs=rngs, kernel_init=zeros_init, dtype=dtype)
        self.final = linear(h, width, rngs=rngs, kernel_init=zeros_init)
        self.dtype = dtype
        if sizes.lora:  # before the conditions, which have no adapters
            add_lora(self, sizes.lora, rngs=rngs)
        self.conditions = Conditions(sizes.conditions, rngs=rngs) if sizes.conditions else None

    def embed(self, rows: Rows) -> jax.Array:
        """Embed the conditions of the rows: (R, S, H).

        Raises:
            ValueError: a model without conditions, or rows with other conditions.
        """
        if self.conditions is None:
            raise ValueError("this model takes no conditions")
        return self.conditions(rows.conditions)

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        rows: Rows,
        *,
        condition: jax.Array | None = None,
        estimate: jax.Array | None = None,
    ) -> jax.Array:
        """Denoise.

        Args:
            x: (R, T, L) noisy standardised latents.
            t: (R, S) int, 0 to 999.
            rows: layout of the crystals.
            condition: (R, S, H) embedding, added to that of the time; None is the null condition.
            estimate: (R, T, L) of x_0, for a model with self-conditioning; None is none.

        Returns:
            (R, T, 2L) with learned variance, else (R, T, L); float32. See `split_output`.
        """
        num_rows, tokens, latent_dim = x.shape
        membership, bias = slot_matrix(rows), attention_bias(rows)
        c = self.t_embedder(time_embedding(t.reshape(-1)))
        if condition is not None:
            c = c + condition.reshape(c.shape)
        elif self.conditions is not None:
            c = c + self.conditions.null()
        c = jax.nn.silu(c).astype(self.dtype)
        h = self.x_embedder(x.reshape(-1, latent_dim).astype(self.dtype))
        if self.estimate_embedder is not None and estimate is not None:
            h = h + self.estimate_embedder(estimate.reshape(-1, latent_dim).astype(self.dtype))
        position = rows.position.reshape(-1)
        h = (h + index_embedding(position, h.shape[-1], tokens)).astype(self.dtype)
        for block in self.blocks:
            h = block(h, c, membership, bias)
        shift, scale = _modulate(self.final_modulation(c), membership, 2)
        h = self.final_norm(h) * (1 + scale) + shift
        return self.final(h.astype(jnp.float32)).reshape(num_rows, tokens, -1)


def split_output(
    output: jax.Array, rows: Rows, sizes: DiTSizes
) -> tuple[jax.Array, jax.Array | None]:
    """Split a DiT's output into eps (R, T, L) and the variance values, (R, T, L) or None.

    Published weights read a crystal's (N, 2L) output as (2N, L): the first N rows are eps, the last
    N the variance. So eps of atom i is half i % 2 of token i // 2 of its crystal, in any layout,
    while the variance depends on the padded length N and exists only in padded rows (one slot per
    row). In packed rows it is None; DDIM does not need it.
    """
    latent_dim = sizes.latent_dim
    is_atom = rows.is_atom[..., None]
    # Padding evolves with eps 0, as in the original, where its variance values reach the atoms.
    if not sizes.learn_sigma:
        return jnp.where(is_atom, output, 0.0), None
    if sizes.variance_layout == "per_token":
        return jnp.where(is_atom, output[..., :latent_dim], 0.0), output[..., latent_dim:]
    num_rows, tokens, _ = output.shape
    if rows.is_crystal.shape[1] == 1:
        halves = output.reshape(num_rows, 2 * tokens, latent_dim)
        return jnp.where(is_atom, halves[:, :tokens], 0.0), halves[:, tokens:]
    first = jnp.arange(tokens) - rows.position
    source = jnp.take_along_axis(output, (first + rows.position // 2)[..., None], axis=1)
    odd = (rows.position % 2 == 1)[..., None]
    eps = jnp.where(odd, source[..., latent_dim:], source[..., :latent_dim])
    return jnp.where(is_atom, eps, 0.0), None
