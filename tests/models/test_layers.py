"""Layers against plain numpy, and attention within crystals."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.models.layers import (
    MLP,
    SelfAttention,
    Transformer,
    TransformerLayer,
    gelu,
    index_embedding,
    layer_norm,
    linear,
)
from chemeleon2_jax.rows.rows import attention_bias
from tests.examples import in_layout, packed, random_crystals, random_model, relative

WIDTH, HEADS = 16, 4


def test_index_embedding():
    found = index_embedding(jnp.array([[0, 5], [19, 1]]), 8, 20)
    for index, place in ((0, (0, 0)), (5, (0, 1)), (19, (1, 0)), (1, (1, 1))):
        angle = [index * np.pi / 2048.0 ** (2 * k / 8) for k in range(4)]
        expected = np.concatenate([np.sin(angle), np.cos(angle)])
        np.testing.assert_allclose(found[place], expected, atol=1e-6)


def test_gelu_is_the_tanh_approximation():
    x = np.linspace(-4, 4, 41)
    expected = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


@pytest.mark.parametrize(("eps", "affine"), [(1e-5, True), (1e-6, False)])
def test_layer_norm(eps, affine):
    # Small numbers far from 0: the epsilon shows, and a one-pass variance would be wrong.
    x = (30.0 + 3e-3 * np.random.default_rng(0).normal(size=(5, 64))).astype(np.float32)
    build = partial(layer_norm, 64, eps=eps, affine=affine)
    graphdef, params = random_model(lambda: build(rngs=nnx.Rngs(0)))
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + eps)
    if affine:
        expected = expected * np.asarray(params["scale"][...]) + np.asarray(params["bias"][...])
    else:
        assert not jax.tree.leaves(params)
    np.testing.assert_allclose(nnx.merge(graphdef, params)(x), expected, atol=5e-3)


def test_linear_starts_as_in_pytorch():
    kernel = np.asarray(linear(100, 400, rngs=nnx.Rngs(0)).kernel[...])
    assert np.abs(kernel).max() <= 0.1
    assert np.abs(kernel).max() > 0.099
    assert kernel.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.02)


def _numpy_attention(x, params, mask):
    """Attention over (N, width) with a mask (N, N) of visible keys, in plain numpy."""
    kernel, bias = (np.asarray(params["qkv"][n][...], np.float64) for n in ("kernel", "bias"))
    query, key, value = np.split(x @ kernel + bias, 3, axis=-1)
    depth = WIDTH // HEADS
    out = np.zeros_like(query)
    for h in range(HEADS):
        part = slice(h * depth, (h + 1) * depth)
        scores = query[:, part] @ key[:, part].T / np.sqrt(depth)
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, part] = weights / weights.sum(-1, keepdims=True) @ value[:, part]
    return out @ np.asarray(params["out"]["kernel"][...]) + np.asarray(params["out"]["bias"][...])


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_attention_is_within_a_crystal(layout):
    (batch,) = in_layout(random_crystals(), layout)
    graphdef, params = random_model(lambda: SelfAttention(WIDTH, HEADS, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).normal(size=(*batch.rows.position.shape, WIDTH))

    @jax.jit
    def attend(params, x):
        return nnx.merge(graphdef, params)(x.reshape(-1, WIDTH), attention_bias(batch.rows))

    found = np.asarray(attend(params, x.astype(np.float32))).reshape(x.shape)
    assert np.isfinite(found).all()
    for ours, inputs in zip(
        batch.where.split_atoms(found), batch.where.split_atoms(x), strict=True
    ):
        size = len(inputs)
        expected = _numpy_attention(inputs, params, np.ones((size, size), bool))
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    # Padding of a padded row sees the atoms of its crystal, as in the original.
    if layout == "padded":
        mask = np.broadcast_to(np.asarray(batch.rows.is_atom[0]), (9, 9))
        np.testing.assert_allclose(found[0], _numpy_attention(x[0], params, mask), atol=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 16 is not a multiple of the 3 attention heads"):
        SelfAttention(16, 3, rngs=nnx.Rngs(0))


def test_mlp_and_transformer_layer():
    """Pre-norm and residual, composed of the layers tested above."""
    batch = packed(random_crystals((4, 2)))
    bias = attention_bias(batch.rows)
    x = jax.random.normal(jax.random.key(0), (bias.shape[0] * 16, WIDTH))
    model = random_model(lambda: TransformerLayer(WIDTH, HEADS, 24, rngs=nnx.Rngs(0)))
    layer = nnx.merge(*model)
    fc1, fc2 = layer.mlp.fc1, layer.mlp.fc2
    middle = x + layer.attention(layer.norm1(x), bias)
    hidden = gelu(layer.norm2(middle) @ fc1.kernel[...] + fc1.bias[...])
    expected = middle + hidden @ fc2.kernel[...] + fc2.bias[...]
    assert relative(layer(x, bias), expected) < 1e-5
    assert fc1.kernel.shape == (WIDTH, 24)

    stack = Transformer(WIDTH, HEADS, 24, num_layers=2, rngs=nnx.Rngs(0))
    first, second = stack.layers
    assert first.attention.qkv.kernel[0, 0] != second.attention.qkv.kernel[0, 0]
    assert relative(stack(x, bias), stack.norm(second(first(x, bias), bias))) < 1e-6

    silu = MLP((WIDTH, 8, 3), rngs=nnx.Rngs(0), first_bias=False)
    assert silu.fc1.bias is None
    inner = x @ silu.fc1.kernel[...]
    expected = (inner / (1 + jnp.exp(-inner))) @ silu.fc2.kernel[...] + silu.fc2.bias[...]
    assert relative(silu(x), expected) < 1e-5


@pytest.fixture(scope="module")
def transformer():
    return small_transformer(jnp.float32)


def small_transformer(dtype):
    graphdef, params = random_model(
        lambda: Transformer(WIDTH, HEADS, 32, num_layers=2, rngs=nnx.Rngs(0), dtype=dtype)
    )

    @jax.jit
    def apply(params, x, bias):
        return nnx.merge(graphdef, params)(x.reshape(-1, WIDTH), bias).reshape(x.shape)

    return apply, params


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_padding_reaches_no_atom(transformer, layout):
    apply, params = transformer
    (batch,) = in_layout(random_crystals(), layout)
    bias = attention_bias(batch.rows)
    is_atom = np.asarray(batch.rows.is_atom)[..., None]
    x = np.random.default_rng(0).normal(size=(*is_atom.shape[:2], WIDTH)).astype(np.float32)
    garbage = 1e4 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    clean = batch.atoms(apply(params, np.where(is_atom, x, 0.0), bias))
    dirty = batch.atoms(apply(params, np.where(is_atom, x, garbage), bias))
    np.testing.assert_array_equal(clean, dirty)


def test_no_crystal_reaches_another(transformer):
    apply, params = transformer
    batch = packed(random_crystals())
    bias = attention_bias(batch.rows)
    x = np.random.default_rng(0).normal(size=(*batch.rows.position.shape, WIDTH)).astype(np.float32)
    before = batch.where.split_atoms(apply(params, x, bias))
    row, start = batch.where.row[2], batch.where.start[2]
    x[row, start, 0] += 2.0  # the first atom of crystal 2
    after = batch.where.split_atoms(apply(params, x, bias))
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if i == 2:
            assert (np.abs(a - b).max(-1) > 1e-4).all()  # reaches all atoms of the crystal
        else:
            np.testing.assert_array_equal(a, b)


def test_bfloat16_is_close(transformer):
    batch = packed(random_crystals())
    bias = attention_bias(batch.rows)
    x = np.random.default_rng(0).normal(size=(*bias.shape[:2], WIDTH)).astype(np.float32)
    apply, params = transformer
    exact = apply(params, x, bias)
    apply, params = small_transformer(jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    rough = apply(params, x.astype(jnp.bfloat16), bias)
    assert rough.dtype == jnp.bfloat16
    assert 1e-4 < relative(rough.astype(jnp.float32), exact) < 5e-2
