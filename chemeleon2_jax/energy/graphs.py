"""Crystals as graphs of neighbours, and batches of them in a few fixed shapes.

A program is compiled for each shape of a batch, and its cost grows with the padded edges. A batch
therefore has one of five shapes, and crystals are grouped by their number of edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jraph
import numpy as np


class Shape(NamedTuple):
    """Nodes, edges and graphs of a batch, padding included."""

    nodes: int
    edges: int
    graphs: int


SHAPES = tuple(
    Shape(edges // 8, edges, edges // 128 + 1)
    for edges in (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18)
)
"""Shapes of batches. At 6 angstrom a crystal has some 50 edges per atom; a gas has fewer."""

MAX_EDGES = SHAPES[-1].edges


@dataclass(frozen=True)
class Graph:
    """A crystal as Nequix sees it.

    Attributes:
        species: (n,) int32, indices into the model's elements.
        positions: (n, 3) angstrom.
        lattice: (3, 3) angstrom.
        senders, receivers: (e,) int32, atoms j and i of each edge.
        shifts: (e, 3) cells between them: r = x_j - x_i + shift @ lattice.
    """

    species: np.ndarray
    positions: np.ndarray
    lattice: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    shifts: np.ndarray

    def fits(self, shape: Shape) -> bool:
        """Tell whether it fits into a shape alone, with a node and a graph of padding."""
        return len(self.species) < shape.nodes and len(self.senders) <= shape.edges


def build_graph(
    species: np.ndarray, positions: np.ndarray, lattice: np.ndarray, *, cutoff: float
) -> Graph:
    """List the neighbours of each atom within a cutoff in angstrom, periodic images included.

    Args:
        species: (n,) indices.
        positions: (n, 3) angstrom.
        lattice: (3, 3) angstrom.
        cutoff: angstrom.
    """
    from matscipy.neighbours import neighbour_list

    receivers, senders, shifts = neighbour_list(
        "ijS", positions=positions, cell=lattice, pbc=[True] * 3, cutoff=cutoff
    )
    return Graph(
        species.astype(np.int32),
        positions,
        lattice,
        senders.astype(np.int32),
        receivers.astype(np.int32),
        shifts.reshape(-1, 3).astype(np.float32),
    )


def plan_batches(graphs: Sequence[Graph], shape: Shape) -> list[list[int]]:
    """Return the batches, as indices of graphs.

    Args:
        graphs: each fits into the last of `SHAPES`.
        shape: nodes, edges and graphs to fill a batch up to; a larger graph is a batch of its own.
    """
    batches: list[list[int]] = []
    nodes = edges = 0
    for index in sorted(range(len(graphs)), key=lambda i: -len(graphs[i].senders)):
        nodes += len(graphs[index].species)
        edges += len(graphs[index].senders)
        is_full = nodes >= shape.nodes or edges > shape.edges
        if not batches or is_full or len(batches[-1]) + 1 >= shape.graphs:
            batches.append([])
            nodes, edges = len(graphs[index].species), len(graphs[index].senders)
        batches[-1].append(index)
    return batches


def pad_batch(graphs: Sequence[Graph]) -> jraph.GraphsTuple:
    """Return graphs as one float32 batch in the smallest shape that holds it."""
    tuples = [
        jraph.GraphsTuple(
            nodes={"species": g.species, "positions": g.positions.astype(np.float32)},
            edges={"shifts": g.shifts},
            senders=g.senders,
            receivers=g.receivers,
            globals={"cell": g.lattice.astype(np.float32)[None]},
            n_node=np.array([len(g.species)], np.int32),
            n_edge=np.array([len(g.senders)], np.int32),
        )
        for g in graphs
    ]
    batch = jraph.batch_np(tuples)
    nodes, edges = len(batch.nodes["species"]), len(batch.senders)
    shape = next(
        s for s in SHAPES if nodes < s.nodes and edges <= s.edges and len(graphs) < s.graphs
    )
    return jraph.pad_with_graphs(batch, shape.nodes, shape.edges, shape.graphs)
