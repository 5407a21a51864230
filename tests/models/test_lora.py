"""Adapters: the layers that have them, their start at zero, their output, and merging."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.models.condition_kinds import FloatCondition
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.lora import LoRALinear, add_lora, merge
from chemeleon2_jax.models.sizes import ConditionSizes, DiTSizes, LoRASizes
from chemeleon2_jax.training.plain_trees import flat_names, to_plain
from tests.examples import packed, random_crystals, random_model, relative

pytestmark = pytest.mark.usefixtures("quick_compilation")

LORA = LoRASizes(3, 6.0, ("attention.out", "mlp.fc1", "t_embedder.fc2", "blocks.1.modulation"))
PLAIN = DiTSizes(latent_dim=4, hidden_size=8, depth=2, num_heads=2)
ADAPTED = replace(PLAIN, lora=LORA)
NAMES = {
    "blocks.0.attention.out",
    "blocks.1.attention.out",
    "blocks.0.mlp.fc1",
    "blocks.1.mlp.fc1",
    "blocks.1.modulation",
    "t_embedder.fc2",
}


def build(sizes):
    return random_model(lambda: DiT(sizes, rngs=nnx.Rngs(0)))


def names_of(params):
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}


def inputs():
    rows = packed(random_crystals((3, 4))).rows
    x = jnp.asarray(np.random.default_rng(1).normal(size=(*rows.is_atom.shape, 4)), jnp.float32)
    return x, jnp.full(rows.is_crystal.shape, 300), rows


def test_only_the_targets_have_adapters():
    _, adapted = build(ADAPTED)
    _, plain = build(PLAIN)
    added = {f"{name}.{part}" for name in NAMES for part in ("lora_a", "lora_b")}
    assert names_of(adapted) == names_of(plain) | added
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(adapted)}
    assert flat["blocks.0.mlp.fc1.lora_a"].shape == (8, 3)
    assert flat["blocks.0.mlp.fc1.lora_b"].shape == (3, 32)
    for name, leaf in flat.items():
        assert isinstance(leaf, nnx.LoRAParam) == (name in added)


def test_conditions_have_no_adapters():
    """Although their layers have the same names."""
    sizes = ConditionSizes((FloatCondition("gap"),), 8)
    lora = LoRASizes(2, 2.0, ("fc1",))
    _, params = build(replace(PLAIN, conditions=sizes, lora=lora))
    adapted = {name for name in names_of(params) if name.endswith("lora_a")}
    assert adapted == {
        f"{part}.fc1.lora_a" for part in ("t_embedder", "blocks.0.mlp", "blocks.1.mlp")
    }


def test_a_new_adapter_changes_nothing():
    sizes = replace(ADAPTED, lora=replace(LORA, targets=(*LORA.targets, "attention.qkv")))
    model, plain = DiT(sizes, rngs=nnx.Rngs(0)), DiT(PLAIN, rngs=nnx.Rngs(0))
    for ours, theirs in (
        (model.x_embedder, plain.x_embedder),
        (model.blocks[1].attention.qkv, plain.blocks[1].attention.qkv),
    ):
        np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])
    layer = model.blocks[0].attention.out
    assert isinstance(layer, LoRALinear)
    assert np.abs(layer.lora_b[...]).max() == 0
    first = np.asarray(layer.lora_a[...])
    assert 0.2 < np.abs(first).max() <= 1 / np.sqrt(8)
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_array_equal(layer(x), plain.blocks[0].attention.out(x))


def test_the_output_of_an_adapter():
    model = nnx.merge(*build(ADAPTED))
    layer = model.blocks[0].mlp.fc1
    x = np.random.default_rng(0).normal(size=(5, 8))
    a, b, kernel, bias = (
        np.asarray(p[...], np.float64)
        for p in (layer.lora_a, layer.lora_b, layer.kernel, layer.bias)
    )
    expected = x @ kernel + bias + 2.0 * (x @ a) @ b
    assert relative(layer(x.astype(np.float32)), expected) < 1e-5


def test_every_adapter_acts_and_learns():
    graphdef, params = build(ADAPTED)
    x, t, rows = inputs()

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(x, t, rows))))(params)

    for path, leaf in nnx.to_flat_state(gradient(params)):
        if path[-1].startswith("lora"):
            assert np.abs(leaf[...]).max() > 1e-4, path


def test_merged_is_the_same_function():
    graphdef, params = build(ADAPTED)
    plain_graphdef, plain = build(PLAIN)
    merged = merge(params, LORA)
    assert jax.tree.structure(merged) == jax.tree.structure(plain)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(np.float32)}
    x, t, rows = inputs()
    run = jax.jit(lambda g, p: nnx.merge(g, p)(x, t, rows), static_argnums=0)
    expected = run(graphdef, params)
    assert relative(run(plain_graphdef, merged), expected) < 1e-5
    assert relative(run(plain_graphdef, replace_kernels(params, plain)), expected) > 1e-2
    # Plain dicts, as in checkpoints, give the same; the argument is not changed.
    of_dicts = flat_names(merge(jax.tree.map(np.asarray, to_plain(params)), LORA))
    for name, array in flat_names(to_plain(merged)).items():
        np.testing.assert_array_equal(of_dicts[name], array)
    assert names_of(params) == names_of(build(ADAPTED)[1])


def replace_kernels(params, plain):
    """The kernels of the adapted model, without its adapters."""
    own = dict(nnx.to_flat_state(params))
    return nnx.from_flat_state([(path, own[path]) for path, _ in nnx.to_flat_state(plain)])


def test_bfloat16():
    graphdef, params = random_model(lambda: DiT(ADAPTED, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    layer = nnx.merge(graphdef, params).blocks[0].mlp.fc1
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    rough = layer(x)
    assert rough.dtype == jnp.bfloat16
    exact = nnx.merge(*build(ADAPTED)).blocks[0].mlp.fc1(x)
    assert 1e-5 < relative(rough, exact) < 5e-2


def test_sizes_survive_json():
    again = DiTSizes.from_dict(json.loads(json.dumps(ADAPTED.to_dict())))
    assert again == ADAPTED
    assert hash(again) == hash(ADAPTED)
    assert LORA.scale == 2.0


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("mlp.fc3",), "LoRA target 'mlp.fc3' names no linear layer; there are blocks.0.attention"),
        (("attention.out", "c1"), "LoRA target 'c1' names no linear layer"),
        (("blocks.0",), "LoRA target 'blocks.0' names no linear layer"),
        ((), "needs a rank of at least 1 and targets"),
    ],
)
def test_wrong_targets(targets, message):
    with pytest.raises(ValueError, match=message):
        DiT(replace(PLAIN, lora=LoRASizes(2, 2.0, targets)), rngs=nnx.Rngs(0))


def test_wrong_rank():
    with pytest.raises(ValueError, match="a rank of at least 1"):
        LoRASizes(0, 1.0, ("final",))


def test_a_layer_without_bias():
    class Small(nnx.Module):
        def __init__(self):
            self.out = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))

    module = Small()
    add_lora(module, LoRASizes(1, 1.0, ("out",)), rngs=nnx.Rngs(1))
    assert names_of(nnx.split(module, nnx.Param)[1]) == {"out.kernel", "out.lora_a", "out.lora_b"}
    assert module.out(jnp.ones((1, 3))).shape == (1, 2)
