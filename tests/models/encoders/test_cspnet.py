"""The CSPNet encoder against loops over pairs, and its invariances."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.data.augment import rotation_matrix
from chemeleon2_jax.models.encoders.cspnet import Encoder, fourier_features, pair_graph
from chemeleon2_jax.models.encoders.registry import CSPNetSizes
from tests.examples import in_layout, packed, random_crystals, random_model

SIZES = CSPNetSizes(d_model=16, num_layers=2, num_freqs=3)


def encoder(sizes=SIZES):
    graphdef, params = random_model(lambda: Encoder(sizes, rngs=nnx.Rngs(0), dtype=jnp.float32))

    @jax.jit
    def apply(rows):
        return nnx.merge(graphdef, params)(rows).reshape(*rows.position.shape, -1)

    return apply, nnx.merge(graphdef, params)


@pytest.fixture(scope="module")
def encode():
    return encoder()[0]


@pytest.fixture(scope="module")
def batch():
    return in_layout(random_crystals(), "packed", edges=True)[0]


def _silu(x):
    return x / (1 + np.exp(-x))


def _norm(module, x):
    if module is None:
        return x
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return unit * np.asarray(module.scale[...]) + np.asarray(module.bias[...])


def _dense(module, x):
    return x @ np.asarray(module.kernel[...], np.float64) + np.asarray(module.bias[...])


def _by_hand(model, crystal, sizes):
    """One crystal through the encoder, pair by pair, in float64."""
    types, frac, lattice = crystal
    count, frac = len(types), frac.astype(float)
    metric = (lattice.astype(float) @ lattice.T.astype(float)).ravel()
    h = np.asarray(model.atom_types[...], np.float64)[types]
    for layer in model.layers:
        x = _norm(layer.norm, h)
        means = []
        for i in range(count):
            messages = []
            for j in range(count):
                angle = [
                    2 * np.pi * f * c
                    for c in (frac[j] - frac[i]) % 1
                    for f in range(sizes.num_freqs)
                ]
                inputs = np.concatenate([x[i], x[j], metric, np.sin(angle), np.cos(angle)])
                messages.append(_silu(_dense(layer.edge2, _silu(_dense(layer.edge1, inputs)))))
            means.append(np.mean(messages, 0))
        joined = np.concatenate([x, np.array(means)], -1)
        h = h + _silu(_dense(layer.node2, _silu(_dense(layer.node1, joined))))
    return _dense(model.out, _norm(model.norm, h))


@pytest.mark.parametrize("layer_norm", [True, False])
def test_against_loops_over_pairs(batch, layer_norm):
    sizes = replace(SIZES, layer_norm=layer_norm)
    apply, model = encoder(sizes)
    found = batch.where.split_atoms(apply(batch.rows))
    for i in range(3):
        expected = _by_hand(model, random_crystals().crystal(i), sizes)
        np.testing.assert_allclose(found[i], expected, atol=2e-4 * np.abs(expected).max())


def test_rotations_of_the_cell_do_not_matter(encode, batch):
    quaternions = jax.random.normal(jax.random.key(0), (*batch.rows.num_atoms.shape, 4))
    rotation = rotation_matrix(quaternions)
    lattices = jnp.einsum("rsij,rskj->rsik", batch.rows.lattices, rotation)
    assert np.abs(lattices - batch.rows.lattices).max() > 1
    before, after = (
        encode(replace(batch.rows, lattices=m)) for m in (batch.rows.lattices, lattices)
    )
    np.testing.assert_allclose(batch.atoms(after), batch.atoms(before), atol=2e-4)
    # Another cell matters.
    other = encode(replace(batch.rows, lattices=1.1 * batch.rows.lattices))
    assert np.abs(batch.atoms(other) - batch.atoms(before)).max() > 1e-2


def test_translations_do_not_matter(encode, batch):
    frac = batch.rows.frac_coords
    before = encode(batch.rows)
    shift = np.random.default_rng(0).random((frac.shape[0], 1, 3)).astype(np.float32)
    moved = encode(replace(batch.rows, frac_coords=(frac + shift) % 1.0))
    np.testing.assert_allclose(batch.atoms(moved), batch.atoms(before), atol=2e-4)
    # Nor do shifts by whole cells; a shift of one atom matters.
    whole = encode(replace(batch.rows, frac_coords=frac.at[:, ::2].add(3.0)))
    np.testing.assert_allclose(batch.atoms(whole), batch.atoms(before), atol=2e-4)
    one = encode(replace(batch.rows, frac_coords=frac.at[0, 0].add(0.1)))
    assert np.abs(batch.atoms(one) - batch.atoms(before)).max() > 1e-2


def test_the_order_of_atoms_does_not_matter(encode):
    crystals = random_crystals((5,))
    batch = in_layout(crystals, "packed", edges=True)[0]
    order = np.array([3, 0, 4, 1, 2])
    rows = batch.rows
    frac, types = (np.array(v) for v in (rows.frac_coords, rows.atom_types))
    frac[0, :5], types[0, :5] = frac[0, order], types[0, order]
    swapped = replace(rows, frac_coords=jnp.asarray(frac), atom_types=jnp.asarray(types))
    before, after = batch.atoms(encode(rows)), batch.atoms(encode(swapped))
    np.testing.assert_allclose(after, before[order], atol=2e-4)


def test_padded_edges_carry_nothing(encode, batch):
    edges = {k: np.array(v) for k, v in batch.rows.edges.items()}
    unused = ~edges["is_edge"]
    assert unused.sum() >= 10
    rng = np.random.default_rng(0)
    for name in ("senders", "receivers"):
        edges[name][unused] = rng.integers(0, batch.rows.position.size, unused.sum())
    found = encode(replace(batch.rows, edges={k: jnp.asarray(v) for k, v in edges.items()}))
    np.testing.assert_allclose(batch.atoms(found), batch.atoms(encode(batch.rows)), atol=1e-6)


def test_graph_of_pairs(batch):
    rows = batch.rows
    graph = pair_graph(rows)
    real = np.flatnonzero(rows.edges["is_edge"])
    frac = np.asarray(rows.frac_coords).reshape(-1, 3)
    i, j = np.asarray(graph.senders)[real], np.asarray(graph.receivers)[real]
    np.testing.assert_allclose(graph.edges[real, 9:], (frac[j] - frac[i]) % 1.0, atol=1e-6)
    assert (np.asarray(rows.slot).ravel()[i] == np.asarray(rows.slot).ravel()[j]).all()
    r, slot = i // 16, np.asarray(rows.slot).ravel()[i]
    cells = np.asarray(rows.lattices)[r, slot]
    metric = np.einsum("eij,ekj->eik", cells, cells).reshape(-1, 9)
    np.testing.assert_allclose(graph.edges[real, :9], metric, rtol=1e-5, atol=1e-4)
    assert int(graph.n_node.sum()) == rows.position.size
    assert int(graph.n_edge.sum()) == len(rows.edges["senders"])


def test_fourier_features_are_axis_major():
    found = fourier_features(jnp.array([[0.1, 0.25, 0.7]]), 2)
    angle = 2 * np.pi * np.array([0, 0.1, 0, 0.25, 0, 0.7])
    np.testing.assert_allclose(found, [[*np.sin(angle), *np.cos(angle)]], atol=1e-6)


def test_rows_without_edges_are_refused(encode):
    with pytest.raises(ValueError, match="needs rows with edges"):
        encode(packed(random_crystals()).rows)
