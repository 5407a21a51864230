"""CSPNet encoder: message passing over all pairs of atoms of a crystal (after DiffCSP, Jiao et al.
2023).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jraph
from flax import nnx

from chemeleon2_jax.crystals.arrays import NUM_ATOM_CLASSES
from chemeleon2_jax.models.encoders.registry import CSPNetSizes
from chemeleon2_jax.models.layers import layer_norm, linear
from chemeleon2_jax.rows.rows import Rows


def pair_graph(rows: Rows) -> jraph.GraphsTuple:
    """Return the graph of all ordered pairs within crystals: node r * T + t, edge features (E, 9 +
    3) of cell and offset.

    Padded edges lead from node 0 to itself; `rows.edges["is_edge"]` is False there.

    Raises:
        ValueError: the rows were built without edges.
    """
    if not rows.edges:
        raise ValueError("the CSPNet encoder needs rows with edges: plan_shapes(..., edges=True)")
    num_rows, tokens = rows.atom_types.shape
    slots = rows.is_crystal.shape[1]
    senders, receivers = rows.edges["senders"], rows.edges["receivers"]
    frac = rows.frac_coords.reshape(-1, 3)
    # lattice @ lattice.T of an edge's crystal: invariant to rotations
    gram = jnp.einsum("rsij,rskj->rsik", rows.lattices, rows.lattices).reshape(-1, 9)
    crystal = (jnp.arange(num_rows)[:, None] * slots + rows.slot).reshape(-1)
    offset = (frac[receivers] - frac[senders]) % 1.0
    return jraph.GraphsTuple(
        nodes=None,
        edges=jnp.concatenate([gram[crystal[senders]], offset], -1),
        senders=senders,
        receivers=receivers,
        n_node=jnp.array([num_rows * tokens]),
        n_edge=jnp.array([senders.shape[0]]),
        globals=None,
    )


def fourier_features(offset: jax.Array, num_freqs: int) -> jax.Array:
    """Return concat(sin, cos) of 2 pi f x_c, axis-major, f < num_freqs: (E, 3) -> (E, 6
    num_freqs).
    """
    freqs = 2.0 * jnp.pi * jnp.arange(num_freqs, dtype=jnp.float32)
    angle = (offset[:, :, None] * freqs).reshape(offset.shape[0], -1)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class CSPLayer(nnx.Module):
    """One round of messages: edge MLP, mean over the edges of an atom, node MLP, residual."""

    def __init__(self, sizes: CSPNetSizes, *, rngs: nnx.Rngs, dtype: Any) -> None:
        d = sizes.d_model
        self.norm = layer_norm(d, rngs=rngs, dtype=dtype) if sizes.layer_norm else None
        self.edge1 = linear(2 * d + 9 + 6 * sizes.num_freqs, d, rngs=rngs, dtype=dtype)
        self.edge2 = linear(d, d, rngs=rngs, dtype=dtype)
        self.node1 = linear(2 * d, d, rngs=rngs, dtype=dtype)
        self.node2 = linear(d, d, rngs=rngs, dtype=dtype)
        self.width = d

    def __call__(
        self, h: jax.Array, graph: jraph.GraphsTuple, weights: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """Update nodes.

        Args:
            h: (N, D).
            graph: with edge features (E, 9 + 6 F).
            weights: (E, 1), 0 on padded edges, and (N, 1), 1 / number of edges of a node.

        Returns:
            (N, D).
        """
        edge_weight, node_weight = weights
        d = self.width
        x = h if self.norm is None else self.norm(h)
        # The first edge layer is linear in (h_i, h_j, edge): its terms of atoms are computed once
        # per atom, not once per edge.
        kernel = self.edge1.kernel[...].astype(x.dtype)
        from_sender, from_receiver = x @ kernel[:d], x @ kernel[d : 2 * d]
        assert self.edge1.bias is not None
        # In float32: bfloat16 would round offsets, and metric tensors of hundreds of angstrom^2.
        from_edge = graph.edges @ self.edge1.kernel[...][2 * d :] + self.edge1.bias[...]
        edges = from_edge.astype(x.dtype)
        edges = edges + from_sender[graph.senders] + from_receiver[graph.receivers]
        edges = jax.nn.silu(self.edge2(jax.nn.silu(edges)))
        total = jraph.segment_sum(edges * edge_weight, graph.senders, h.shape[0])
        inputs = jnp.concatenate([x, total * node_weight], -1)
        return h + jax.nn.silu(self.node2(jax.nn.silu(self.node1(inputs))))


class Encoder(nnx.Module):
    """Atom embeddings through CSP layers; invariant to rotations and translations of a crystal."""

    def __init__(self, sizes: CSPNetSizes, *, rngs: nnx.Rngs, dtype: Any) -> None:
        d = sizes.d_model
        normal = nnx.initializers.normal(1.0)
        self.atom_types = nnx.Param(normal(rngs.params(), (NUM_ATOM_CLASSES, d), jnp.float32))
        self.layers = nnx.List(
            CSPLayer(sizes, rngs=rngs, dtype=dtype) for _ in range(sizes.num_layers)
        )
        self.norm = layer_norm(d, rngs=rngs, dtype=dtype) if sizes.layer_norm else None
        self.out = linear(d, d, rngs=rngs, dtype=dtype)
        self.num_freqs = sizes.num_freqs
        self.dtype = dtype

    def __call__(self, rows: Rows) -> jax.Array:
        """Encode atoms: (R * T, D)."""
        graph = pair_graph(rows)
        features = [graph.edges[:, :9], fourier_features(graph.edges[:, 9:], self.num_freqs)]
        graph = graph._replace(edges=jnp.concatenate(features, -1))
        h = self.atom_types[...][rows.atom_types.reshape(-1)].astype(self.dtype)
        # Every atom sends to all atoms of its crystal, itself included.
        degree = jnp.take_along_axis(rows.num_atoms, rows.slot, axis=1).reshape(-1, 1)
        node_weight = (1.0 / jnp.maximum(degree, 1)).astype(self.dtype)
        edge_weight = rows.edges["is_edge"][:, None].astype(self.dtype)
        for layer in self.layers:
            h = layer(h, graph, (edge_weight, node_weight))
        return self.out(h if self.norm is None else self.norm(h))
