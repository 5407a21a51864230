"""A batch of crystals in rows, and operations on it: spreading, pooling, masks, random keys.

Letters: R rows, T tokens in a row, S slots (crystals) in a row. `packing` places the crystals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """A batch of crystals in rows (a pytree of numpy or JAX arrays).

    Attributes:
        atom_types: (R, T) int32, 0 on padding.
        frac_coords: (R, T, 3) float32.
        is_atom: (R, T) bool.
        slot: (R, T) int32, the crystal of the row that a token belongs to.
        position: (R, T) int32, the index of an atom in its crystal.
        lattices: (R, S, 3, 3) float32, angstrom; identity where there is no crystal.
        num_atoms: (R, S) int32.
        crystal_id: (R, S) int32, row of the data set or index of the sample; NO_CRYSTAL where
            empty.
        is_crystal: (R, S) bool.
        targets: name -> (R, S) float32.
        conditions: name -> (R, S, width) float32, encoded conditions; NaN is the null condition.
        features: name -> (R, T, width) float32, further features of atoms, such as latents.
        edges: for graph encoders, `senders` and `receivers` (E,) int32, tokens r * T + t of all
            ordered pairs within crystals, and `is_edge` (E,) bool; {} for others.
    """

    atom_types: Any
    frac_coords: Any
    is_atom: Any
    slot: Any
    position: Any
    lattices: Any
    num_atoms: Any
    crystal_id: Any
    is_crystal: Any
    targets: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    edges: dict[str, Any] = field(default_factory=dict)


def slot_matrix(rows: Rows) -> jax.Array:
    """Return (R, T, S) float32, 1 where a token belongs to a slot.

    Gathering and pooling within a row are products with this matrix: gathering is exact (one term a
    sum), and both are faster than gather and scatter.
    """
    return jax.nn.one_hot(rows.slot, rows.is_crystal.shape[1], dtype=jnp.float32)


def gather_slots(membership: jax.Array, values: jax.Array) -> jax.Array:
    """Spread (R, S, D) values of crystals to their tokens: (R, T, D)."""
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("rts,rsd->rtd", membership.astype(values.dtype), values, precision=exact)


def pool_tokens(membership: jax.Array, values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum (R, T, D) values of tokens, times weights (R, T), over each crystal: (R, S, D) in
    float32.
    """
    weighted = values.astype(jnp.float32) * weights[..., None]
    return jnp.einsum("rts,rtd->rsd", membership, weighted, precision=jax.lax.Precision.HIGHEST)


def mean_over_crystal(rows: Rows, membership: jax.Array, values: jax.Array) -> jax.Array:
    """Mean of (R, T, D) values over the atoms of each crystal: (R, S, D) float32, 0 in empty
    slots.
    """
    total = pool_tokens(membership, values, rows.is_atom.astype(jnp.float32))
    return total / jnp.maximum(rows.num_atoms, 1)[..., None]


def attention_bias(rows: Rows) -> jax.Array:
    """Return (R, T, T) float32: 0 where a query (second axis) may see a key (third axis), else
    -1e9.

    A query sees the atoms of its own crystal. Queries of the dummy slot, which has none, see all
    keys equally: finite and unused.
    """
    same = rows.slot[:, :, None] == rows.slot[:, None, :]
    return jnp.where(same & rows.is_atom[:, None, :], 0.0, -1e9).astype(jnp.float32)


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return sum(values * weights) / sum(weights) over all axes; under jit, over all devices."""
    weights = weights.astype(jnp.float32)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


# --- random numbers that do not depend on the packing ---------------------------------------------


def crystal_keys(key: jax.Array, rows: Rows) -> jax.Array:
    """Return (R, S) keys, one per crystal: fold_in(key, crystal_id)."""
    fold = jax.vmap(jax.vmap(lambda i: jax.random.fold_in(key, i)))
    return fold(rows.crystal_id)


def atom_keys(key: jax.Array, rows: Rows) -> jax.Array:
    """Return (R, T) keys, one per atom: fold_in(fold_in(key, crystal_id), position).

    Padding tokens of padded rows belong to a crystal and share its last position; their place in
    the row stands for it, so that no two draw the same.
    """
    ids = jnp.take_along_axis(rows.crystal_id, rows.slot, axis=1)

    def fold(crystal_id: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, crystal_id), position)

    index = jnp.where(rows.is_atom, rows.position, jnp.arange(rows.position.shape[1]))
    return jax.vmap(jax.vmap(fold))(ids, index)


def atom_normal(key: jax.Array, rows: Rows, width: int) -> jax.Array:
    """Return (R, T, width) standard normal numbers; each depends on key, crystal and atom alone."""
    draw = jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (width,))))
    return draw(atom_keys(key, rows))
