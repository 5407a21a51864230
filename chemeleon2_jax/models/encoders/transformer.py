"""Transformer encoder: attention between the atoms of a crystal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from chemeleon2_jax.crystals.arrays import NUM_ATOM_CLASSES
from chemeleon2_jax.models.encoders.registry import TransformerSizes
from chemeleon2_jax.models.layers import MLP, Transformer, index_embedding
from chemeleon2_jax.rows.rows import Rows, attention_bias, gather_slots, slot_matrix


class Encoder(nnx.Module):
    """Sum of the embeddings of element, cell, coordinates and index, through a transformer."""

    def __init__(
        self, sizes: TransformerSizes, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ) -> None:
        d = sizes.d_model
        normal = nnx.initializers.normal(1.0)
        self.atom_types = nnx.Param(normal(rngs.params(), (NUM_ATOM_CLASSES, d), jnp.float32))
        # In float32: bfloat16 would round coordinates to 0.004 and cells to 0.06 angstrom.
        self.lattices = MLP((9, d, d), rngs=rngs, first_bias=False)
        num_coords = 9 if sizes.periodic_coords else 3
        self.frac_coords = MLP((num_coords, d, d), rngs=rngs, first_bias=False)
        self.periodic_coords = sizes.periodic_coords
        self.transformer = Transformer(
            d,
            sizes.nhead,
            sizes.dim_feedforward,
            num_layers=sizes.num_layers,
            rngs=rngs,
            dtype=dtype,
        )
        self.dtype = dtype

    def __call__(self, rows: Rows) -> jax.Array:
        """Encode atoms: (R * T, D)."""
        num_rows, tokens = rows.atom_types.shape
        table = self.atom_types[...]
        width = table.shape[1]
        cells = self.lattices(rows.lattices.reshape(-1, 9)).reshape(num_rows, -1, width)
        x = _lookup(table, rows.atom_types.reshape(-1))
        coords = rows.frac_coords.reshape(-1, 3)
        x = x + self.frac_coords(_with_waves(coords) if self.periodic_coords else coords)
        x = x + index_embedding(rows.position.reshape(-1), width, tokens)
        x = x + gather_slots(slot_matrix(rows), cells).reshape(-1, width)
        return self.transformer(x.astype(self.dtype), attention_bias(rows))


def _with_waves(coords: jax.Array) -> jax.Array:
    """Return (N, 9): fractions (N, 3), and their sin and cos, which are the same on both sides of
    a face of the cell.
    """
    angle = 2.0 * jnp.pi * coords
    return jnp.concatenate([coords, jnp.sin(angle), jnp.cos(angle)], -1)


def _lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of an embedding table (C, D) at index (N,): a product with one-hot vectors, whose
    gradient is a product too.
    """
    one_hot = jax.nn.one_hot(index, table.shape[0], dtype=table.dtype)
    return jnp.dot(one_hot, table, precision=jax.lax.Precision.HIGHEST)
