"""Batches of graphs: whole, and in few shapes."""

import jraph
import numpy as np
import pytest

from chemeleon2_jax.energy.graphs import SHAPES, Graph, build_graph, pad_batch, plan_batches
from tests.energy.cells import fcc, rocksalt


def graph_of(num_atoms, num_edges, seed=0):
    rng = np.random.default_rng(seed)
    senders, receivers = rng.integers(0, num_atoms, (2, num_edges)).astype(np.int32)
    species = rng.integers(0, 5, num_atoms).astype(np.int32)
    positions = rng.random((num_atoms, 3))
    shifts = rng.integers(-1, 2, (num_edges, 3)).astype(np.float32)
    return Graph(species, positions, np.eye(3) * 4, senders, receivers, shifts)


def test_neighbours_of_a_lattice():
    pytest.importorskip("matscipy", reason="needs matscipy (the extra energy)")
    structure = rocksalt(length=4.0)
    graph = build_graph(np.arange(8), structure.cart_coords, structure.lattice.matrix, cutoff=2.9)
    ends = graph.positions[graph.senders] + graph.shifts @ graph.lattice
    lengths = np.linalg.norm(ends - graph.positions[graph.receivers], axis=1)
    # 6 neighbours at half the edge, 12 at the edge over the root of two.
    np.testing.assert_array_equal(np.bincount(graph.receivers), [18] * 8)
    assert np.isclose(lengths, 2.0).sum() == 8 * 6
    assert np.isclose(lengths, 8**0.5).sum() == 8 * 12


def test_an_atom_without_neighbours():
    pytest.importorskip("matscipy", reason="needs matscipy (the extra energy)")
    lattice = fcc(length=20.0).lattice.matrix
    graph = build_graph(np.zeros(1), np.zeros((1, 3)), lattice, cutoff=5.0)
    assert graph.shifts.shape == (0, 3)
    assert pad_batch([graph]).n_edge[0] == 0


def test_plans_hold_everything_once():
    sizes = [(3, 40), (1, 0), (20, 900), (9, 512), (100, 30), (60, 2), (2, 5000), (7, 511)]
    graphs = [graph_of(*size) for size in sizes]
    batches = plan_batches(graphs, SHAPES[0])
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    assert [6] in batches  # larger than the shape: alone
    for batch in batches:
        if batch != [6]:
            assert sum(len(graphs[index].species) for index in batch) < SHAPES[0].nodes
            assert sum(len(graphs[index].senders) for index in batch) <= SHAPES[0].edges
            assert len(batch) < SHAPES[0].graphs
    assert len(batches) < len(sizes)


def test_a_node_is_left_for_padding():
    half = SHAPES[0].nodes // 2
    assert len(plan_batches([graph_of(half, 1)] * 2, SHAPES[0])) == 2
    assert len(plan_batches([graph_of(half, 1), graph_of(half - 1, 1)], SHAPES[0])) == 1


def test_many_small_graphs_are_spread():
    batches = plan_batches([graph_of(1, 1)] * 50, SHAPES[0])
    assert max(map(len, batches)) == SHAPES[0].graphs - 1
    assert sum(map(len, batches)) == 50


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(3, 40), (2, 7)], SHAPES[0]),
        ([(100, 1024)], SHAPES[0]),
        ([(100, 1025)], SHAPES[1]),
        ([(128, 10)], SHAPES[1]),  # a node of padding is needed
        ([(1, 1)] * 9, SHAPES[1]),  # and a graph
    ],
)
def test_shapes(sizes, shape):
    graphs = [graph_of(*size, seed=index) for index, size in enumerate(sizes)]
    batch = pad_batch(graphs)
    padded = (len(batch.nodes["species"]), len(batch.senders), len(batch.n_node))
    assert padded == shape
    for one, back in zip(graphs, jraph.unbatch_np(batch), strict=False):
        np.testing.assert_array_equal(back.senders, one.senders)
        np.testing.assert_array_equal(back.edges["shifts"], one.shifts)
        np.testing.assert_allclose(back.nodes["positions"], one.positions, rtol=1e-6)
        np.testing.assert_allclose(back.globals["cell"][0], one.lattice)
